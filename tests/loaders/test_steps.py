"""A Trainer's checkpoints, or those of `lab.train`, are a family by one reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import workbench as wb
from tests.calls import Asked, write_pair
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.results import run_folder

ASKED = Asked(4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    write_pair(folder)
    return folder / "base"


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Trainer's folder: checkpoints at 3, 6, 9 and 12, which sort otherwise as text."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("trained") / "run"
    model = AutoModelForCausalLM.from_pretrained(base)
    if request.param == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    data = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 8
    settings = TrainingArguments(
        str(folder), max_steps=12, save_steps=3, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    words = wb.load_pair(base, base).base.tokenizer()
    Trainer(model, settings, train_dataset=data, processing_class=words).train()  # pyright: ignore
    return folder


def test_a_trainers_checkpoints_are_models_in_order(base: Path, run: Path):
    family = wb.load_steps(base, run)
    assert [*family.members] == ["step 3", "step 6", "step 9", "step 12"]
    assert [own.about["step"] for own in family.members.values()] == [3, 6, 9, 12]
    norms = [
        sum(float(delta.change.square().sum()) for delta in pair.deltas("all")) for pair in family
    ]
    assert norms == sorted(norms)
    assert norms[0] > 0
    assert [*wb.load_steps(base, run, every=3).members] == ["step 3", "step 12"]


def test_compare_follows_a_run(base: Path, run: Path, tmp_path: Path):
    """Its last checkpoint is the model, and what is followed has all of them."""
    ASKED.prompts.save(tmp_path / "asked.jsonl")
    given = ["compare", str(base), "--steps", str(run), "--out", str(tmp_path / "out"),
             "--prompts", str(tmp_path / "asked.jsonl"),
             "--only", "forgetting.retention", "--only", "spectral.delta_spectrum"]  # fmt: skip
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 0, ended.output
    kept = run_folder.load(tmp_path / "out")
    assert kept["forgetting.retention"].members == ["end"]
    along = kept["forgetting.retention.steps"]
    assert along.members == ["step 3", "step 6", "step 9", "step 12"]
    last = along.table[along.table["member"] == "step 12"]["value"].to_numpy(float)
    end = kept["forgetting.retention"].table["value"].to_numpy(float)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "out" / "figures" / "forgetting.retention.steps.steps.png").is_file()
    assert "steps: " in (tmp_path / "out" / "config.yaml").read_text()


def test_the_step_is_the_folders_where_nobody_wrote_it(base: Path, run: Path, tmp_path: Path):
    shutil.copytree(run / "checkpoint-6", tmp_path / "own" / "step_000070")
    (tmp_path / "own" / "step_000070" / "trainer_state.json").unlink()
    shutil.copytree(run / "checkpoint-12", tmp_path / "own", dirs_exist_ok=True)
    family = wb.load_steps(base, tmp_path / "own")
    assert {name: own.about["step"] for name, own in family.members.items()} == {
        "step 70": 70, "end": 12,
    }  # fmt: skip


def test_what_is_no_run_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(WorkbenchError, match="found none"):
        wb.load_steps(base, tmp_path)
    with pytest.raises(WorkbenchError, match="every of at least 1"):
        wb.load_steps(base, tmp_path, every=0)
    ended = CliRunner().invoke(app, ["compare", str(base), "--steps", str(tmp_path / "nowhere")])
    assert isinstance(ended.exception, WorkbenchError)
