"""A watched training is the unwatched one, and its measurements are those of its checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import workbench as wb
from tests.calls import Asked, write_pair
from workbench.errors import WorkbenchError
from workbench.integrations import Watch
from workbench.integrations.transformers import Callback
from workbench.integrations.watch import rule
from workbench.results import run_folder
from workbench.results.result import Result

ASKED = Asked(3)
KEYS = ("spectral.delta_spectrum", "forgetting.retention")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    write_pair(folder)
    return folder / "base"


def live(base: Path, method: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    if method == "lora":
        config = LoraConfig(r=2, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear")
        model = get_peft_model(model, config)
    return model


def loop(model: Any, steps: int, watch: Watch | None = None) -> list[Any]:
    """A loop of one's own, with dropout and so with random numbers; the model after each step."""
    torch.manual_seed(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    ids, after = torch.arange(24).view(2, 12) + 3, []
    model.train()
    for step in range(1, steps + 1):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.step(model, step)
        after.append(copy.deepcopy(model.state_dict()))
    if watch is not None:
        watch.finish(model, steps)
    return after


def watched(base: Path, out: Path, **more: Any) -> Watch:
    given = {"prompts": ASKED.prompts, "texts": ASKED.texts, "every": 2, "budget": 1e9}
    return Watch(base, out, **{**given, "analyses": KEYS, **more})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_watched_training_is_the_unwatched_one(method: str, base: Path, tmp_path: Path):
    watch = watched(base, tmp_path / "out")
    own, plain = loop(live(base, method), 5, watch), loop(live(base, method), 5)
    for one, other in zip(own, plain, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_measured_is_what_the_saved_step_gives(method: str, base: Path, tmp_path: Path):
    model = live(base, method)
    loop(model, 5, watched(base, tmp_path / "out"))
    model.eval().save_pretrained(tmp_path / "saved")
    if method == "full":
        wb.load_pair(base, base).base.tokenizer().save_pretrained(tmp_path / "saved")
    pair = wb.load_pair(base, tmp_path / "saved")
    kept = run_folder.load(tmp_path / "out")
    assert [*kept] == [f"{key}.steps" for key in KEYS]
    for key, again in (
        (KEYS[0], wb.spectral.delta_spectrum(pair)),
        (KEYS[1], wb.forgetting.retention(pair, task=ASKED.prompts, texts=ASKED.texts)),
    ):
        found = kept[f"{key}.steps"]
        steps = {name: about["step"] for name, about in found.provenance.members.items()}
        assert steps == {"step 2": 2, "step 4": 4, "step 5": 5}
        last = found.table[found.table["member"] == "step 5"]["value"].to_numpy(float)
        wanted = again.table["value"].to_numpy(float)
        torch.testing.assert_close(
            torch.from_numpy(last), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_an_interrupted_run_keeps_its_earlier_steps(base: Path, tmp_path: Path):
    for steps in (2, 4):
        loop(live(base, "lora"), steps, watched(base, tmp_path / "out"))
    found = Result.load(tmp_path / "out" / "results" / "spectral.delta_spectrum.steps")
    assert found.members == ["step 2", "step 4"]
    assert found.table.duplicated(["member", "layer", "component", "metric", "rank"]).sum() == 0


def test_measuring_keeps_to_its_budget(base: Path, tmp_path: Path, monkeypatch):
    """By a clock of its own: a step takes 1 s and a measurement 10 s, so that a twentieth of the
    time is one measurement in 200 steps, of which the last is kept for the end."""
    now, cost = [0.0], 10.0
    monkeypatch.setattr("workbench.integrations.watch.time.monotonic", lambda: now[0])
    watch, done = watched(base, tmp_path / "out", every=1, budget=0.05), []

    def measure(self: Watch, model: Any, step: int) -> dict[str, float]:
        done.append(step)
        now[0] += cost
        self._spent, self._cost, self._measured = self._spent + cost, cost, step
        return {}

    monkeypatch.setattr(Watch, "_measure", measure)
    for step in range(1, 951):
        now[0] += 1
        watch.step(torch.nn.Identity(), step)
    watch.finish(torch.nn.Identity(), 950)
    assert done == [1, 600, 800, 950]
    assert watch.overhead == pytest.approx(40 / 950)


def test_a_trainer_logs_what_was_found_and_stops_by_the_rule(base: Path, tmp_path: Path):
    data = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 8
    settings = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=40, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, save_strategy="no", learning_rate=1e-2, disable_tqdm=True, logging_steps=100,
    )  # fmt: skip
    trainer = Trainer(live(base, "lora"), settings, train_dataset=data)  # pyright: ignore
    callback = Callback(
        base, tmp_path / "out", prompts=ASKED.prompts, texts=ASKED.texts, every=5, budget=1e9,
        analyses=KEYS, stop="relative_norm > 0.01",
    ).attach(trainer)  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "workbench/relative_norm" in entry]
    assert callback.watch.stopped
    assert trainer.state.global_step < 40
    assert [entry["step"] for entry in logged][-1] == trainer.state.global_step
    norms = [entry["workbench/relative_norm"] for entry in logged]
    assert norms[-1] > 0.01
    assert all(norm <= 0.01 for norm in norms[:-1])


def test_rules():
    assert rule("retention < 0.95")({"retention": 0.9})
    assert not rule("retention < 0.95")({"retention": 0.96})
    assert not rule("retention < 0.95")({})
    assert rule(" kl > 1e-1 ")({"kl": 0.2})
    for wrong in ("retention", "retention <= 1", "retention < x"):
        with pytest.raises(WorkbenchError, match="Expected a rule such as"):
            rule(wrong)


def test_what_cannot_be_watched_is_refused(base: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(WorkbenchError):
        watched(base, tmp_path / "mine")
    with pytest.raises(WorkbenchError, match="every of at least 1"):
        watched(base, tmp_path / "a", every=0)
    with pytest.raises(WorkbenchError, match="no analysis"):
        watched(base, tmp_path / "b", analyses=("spectral.surgery",))


def test_lightning_watches_alike(base: Path, tmp_path: Path):
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    from workbench.integrations.lightning import Callback as OfLightning

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = live(base, "lora")

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.model(batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    watching = OfLightning(
        base, tmp_path / "out", prompts=ASKED.prompts, texts=ASKED.texts, every=2, budget=1e9,
        analyses=KEYS, stop="relative_norm > 0.01",
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=40, callbacks=[watching], logger=CSVLogger(tmp_path), accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader([*torch.arange(64).view(8, 8) + 3]))
    assert watching.watch.stopped
    assert trainer.global_step < 40
    (told,) = tmp_path.rglob("metrics.csv")
    assert "workbench/relative_norm" in told.read_text()
    found = Result.load(tmp_path / "out" / "results" / "spectral.delta_spectrum.steps")
    assert max(about["step"] for about in found.provenance.members.values()) == trainer.global_step
