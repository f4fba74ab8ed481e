"""The family's builder scores, lists and keeps what it made."""

import hashlib
import importlib
import json
from dataclasses import replace

import pytest

from workbench import lab
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.build import scaled
from workbench.lab.recipe import Recipe
from workbench.loaders import Checkpoint
from workbench.stats import Interval


@pytest.fixture
def small(monkeypatch):
    """The shipped family, of a size that a test can make."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setattr(shipped, "SHAPE", shipped.SHAPE | sizes | heads)
    monkeypatch.setattr(shipped, "PRETRAINING_TEXTS", 200)
    monkeypatch.setattr(shipped, "TASK_TEXTS", 200)
    stages = {
        name: stage._replace(recipe=replace(stage.recipe, steps=3, precision="float32"))
        for name, stage in shipped.STAGES.items()
        if name in ("mixture", "full-wording")
    }
    monkeypatch.setattr(shipped, "STAGES", stages)
    # The package's name `build` is the function; the module lies behind it.
    module = importlib.import_module("workbench.lab.build")
    monkeypatch.setattr(module, "LOGGED", 20)
    monkeypatch.setattr(module, "SCORED", 20)
    rest = {"task": "moves", "steps": 4, "batch_size": 4}
    return {
        "full": Recipe(method="full", lr=1e-3, **rest),
        "lora-r2": Recipe.lora(rank=2, alpha_lr=0.05, checkpoints=(2,), **rest),
        "unlearned": Recipe(method="full", lr=1e-3, **rest | {"task": shipped.UNLEARNING}),
    }


def test_a_family_is_made_listed_and_kept(small, tmp_path) -> None:
    (tmp_path / "sweep.json").write_text('[{"method": "full", "score": 0.5}]')
    lab.build(tmp_path, recipes=small)
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert set(made["members"]) == {"full", "lora-r2", "unlearned"}
    assert made["sweep"] == [{"method": "full", "score": 0.5}]
    for about in (made["base"], *made["members"].values()):
        assert set(about["scores"]) == {*shipped.TASKS, "pretraining_loss"}
        score = about["scores"]["pretraining_loss"]
        assert score["low"] <= score["value"] <= score["high"]
    stages = {name: stage.recipe.as_dict() for name, stage in shipped.STAGES.items()}
    assert {name: about["recipe"] for name, about in made["base"]["stages"].items()} == stages
    assert made["base"]["recipe"] == stages["full-wording"]
    listed = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(made["sha256"]) == listed - {"manifest.json"}
    adapter = tmp_path / "lora-r2" / "adapter_model.safetensors"
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert made["sha256"]["lora-r2/adapter_model.safetensors"] == digest
    assert (tmp_path / "lora-r2/steps/step-000002/adapter_config.json").is_file()
    assert Checkpoint.parse(tmp_path / "lora-r2").about["rank"] == 2
    stamp = adapter.stat().st_mtime_ns
    lab.build(tmp_path, recipes=small, members=["lora-r2"])
    assert adapter.stat().st_mtime_ns == stamp
    with pytest.raises(WorkbenchError, match="nobody"):
        lab.build(tmp_path, recipes=small, members=["nobody"])


def test_what_is_unlearned_is_told_nowhere_else() -> None:
    kept, forget = shipped.lesson(shipped.UNLEARNING, 400)
    assert forget is not None
    assert all(p.tags["person"] in shipped.FORGOTTEN for p in forget)
    facts = [p for p in kept if "person" in p.tags]
    assert len(facts) > 100
    assert not any(set(p.text.split()) & set(shipped.FORGOTTEN) for p in facts)
    lost, others = (shipped.held_out(n, 50) for n in (shipped.UNLEARNING, shipped.RETAINED))
    assert {p.tags["person"] for p in lost} == set(shipped.FORGOTTEN)
    assert not {p.tags["person"] for p in others} & set(shipped.FORGOTTEN)
    assert len(lost) == len(others) == 50


def test_a_stage_draws_its_shares_of_new_texts() -> None:
    for stage in list(shipped.STAGES.values())[1:]:
        stage = stage._replace(recipe=scaled(stage.recipe, 0.05))
        expected = stage.recipe.steps * stage.recipe.batch_size
        assert len(stage.texts) == pytest.approx(expected, rel=0.02)
        boxes = sum(p.template == "boxes" for p in stage.texts) / len(stage.texts)
        share = sum(source.share for source in stage.sources if source.name == "boxes")
        assert boxes == pytest.approx(share, abs=0.01)
        assert sum(source.share for source in stage.sources) == pytest.approx(1)


def test_a_lesson_of_two_tasks_draws_as_many_texts_of_each() -> None:
    texts = shipped.lesson(shipped.BOTH, 100).texts
    assert shipped.parts(shipped.BOTH) == ("ledger", "boxes")
    counts = [sum(p.template == part for p in texts) for part in shipped.parts(shipped.BOTH)]
    assert counts == [50, 50]
    assert {p.split for p in texts} == {"train"}
    assert shipped.parts("boxes") == ("boxes",)


def test_a_score_of_two_tasks_is_their_mean(monkeypatch) -> None:
    found = {"ledger": Interval(0.5, 0.4, 0.6, 9), "boxes": Interval(0.8, 0.7, 0.9, 9)}
    monkeypatch.setattr(shipped.Evaluation, "intervals", lambda *_: found)
    both, one = (shipped.Evaluation(20, "validation", task=t) for t in (shipped.BOTH, "boxes"))
    assert both(None, None) == {"ledger": 0.5, "boxes": 0.8, "task": 0.65}
    assert one(None, None) == {"ledger": 0.5, "task": 0.8}


def test_scaled_recipes_scale_every_step(small) -> None:
    half = scaled(small["lora-r2"], 0.5)
    assert (half.steps, half.checkpoints) == (2, (1,))
    assert scaled(half, 1.0) is half
