"""The family's builder scores, lists and keeps what it made."""

import hashlib
import importlib
import json

import pytest

from workbench import lab
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.build import scaled
from workbench.lab.recipe import Recipe
from workbench.lab.train import train
from workbench.loaders import Checkpoint


@pytest.fixture
def small(monkeypatch):
    """The shipped family, of a size that a test can make."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setattr(shipped, "SHAPE", shipped.SHAPE | sizes | heads)
    monkeypatch.setattr(shipped, "PRETRAINING_TEXTS", 200)
    texts = shipped.task_texts(40)
    monkeypatch.setattr(shipped, "task_texts", lambda: texts)
    # The package's name `build` is the function; the module lies behind it.
    module = importlib.import_module("workbench.lab.build")
    monkeypatch.setattr(module, "LOGGED", 20)
    monkeypatch.setattr(module, "SCORED", 20)
    rest = {"task": "moves", "steps": 4, "batch_size": 4}
    return {
        "full": Recipe(method="full", lr=1e-3, **rest),
        "lora-r2": Recipe.lora(rank=2, alpha_lr=0.05, checkpoints=(2,), **rest),
    }


def test_a_family_is_made_listed_and_kept(base_folder, small, tmp_path) -> None:
    base = Recipe(task="mixture", method="full", trainable="all", lr=1e-3, steps=3)
    texts, words = shipped.mixture(100), shipped.tokenizer()
    train(shipped.untrained(), base, texts, tmp_path / "base", tokenizer=words)
    (tmp_path / "sweep.json").write_text('[{"method": "full", "score": 0.5}]')
    lab.build(tmp_path, recipes=small)
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert set(made["members"]) == {"full", "lora-r2"}
    assert made["sweep"] == [{"method": "full", "score": 0.5}]
    for about in (made["base"], *made["members"].values()):
        assert set(about["scores"]) == {shipped.TASK, *shipped.MIXTURE, "pretraining_loss"}
        score = about["scores"]["pretraining_loss"]
        assert score["low"] <= score["value"] <= score["high"]
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


def test_scaled_recipes_scale_every_step(small) -> None:
    half = scaled(small["lora-r2"], 0.5)
    assert (half.steps, half.checkpoints) == (2, (1,))
    assert scaled(half, 1.0) is half
