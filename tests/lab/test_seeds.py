"""The same recipes with other seeds are other runs of one recipe, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.seeds import runs, seeds
from workbench.loaders import load_family
from workbench.results.recipes import curves, recipes

ROOT = Path(__file__).parents[2]


def test_runs_differ_in_seed_or_rate_alone():
    made = runs(["lora-r4"], seeds=3, swept=["lora-r4"], rates=[2.0], swept_seeds=2)
    assert list(made) == ["lora-r4-s1", "lora-r4-s2", "lora-r4-x2-s0", "lora-r4-x2-s1"]
    own = replace(shipped.MEMBERS["lora-r4"], checkpoints=())
    assert [recipe.seed for recipe in made.values()] == [1, 2, 0, 1]
    assert {replace(recipe, seed=0, lr=own.lr) for recipe in made.values()} == {own}
    assert {recipe.lr / own.lr for recipe in made.values()} == {1, 2}
    with pytest.raises(WorkbenchError, match=r"\['r4'\]; known are"):
        runs(["r4"])


def test_trained_runs_are_known_by_what_they_tell(tmp_path: Path):
    """Also beside a shipped run, which an earlier version trained."""
    base = ROOT / "data" / "family" / "base"
    short = {
        name: replace(recipe, steps=2, evaluate_every=0)
        for name, recipe in runs(
            ["lora-r1"], seeds=2, swept=["lora-r1"], rates=[2.0], swept_seeds=2
        ).items()
    }
    made = seeds(base, tmp_path / "out", wanted=short)
    assert seeds(base, tmp_path / "out", wanted=short) == made  # what is finished is kept
    family = load_family(base, {**made})
    members = {pair.name: pair.tuned.about for pair in family}
    assert recipes(members) == {
        "lora-r1-s1": ("lora-r1-s1",), "lora-r1-x2": ("lora-r1-x2-s0", "lora-r1-x2-s1"),
    }  # fmt: skip
    rate = shipped.MEMBERS["lora-r1"].lr
    assert curves(members) == {"lora-r1": {rate: "lora-r1-s1", 2 * rate: "lora-r1-x2"}}
    shipped_run = load_family(base, {"lora-r1": ROOT / "data" / "family" / "lora-r1"})["lora-r1"]
    told = shipped_run.tuned.about["recipe"]
    assert told.replace("steps 1000", "steps 2") == members["lora-r1-s1"]["recipe"]
