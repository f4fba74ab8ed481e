"""How is the shipped family made? Pre-train the base, train every member, write the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.recipe import Recipe
from workbench.lab.train import train
from workbench.loaders import Checkpoint
from workbench.results import versions, writing

LOGGED, SCORED = 64, 400


def build(
    out: str | Path = "data/family",
    *,
    recipes: Mapping[str, Recipe] | None = None,
    members: list[str] | None = None,
    steps: float = 1.0,
) -> Path:
    """Make the base and its members in the folder `out`, then manifest.json; returns `out`.

    What is finished is kept and what was cut off goes on, so the call can be repeated. recipes:
    member name -> Recipe; None takes the shipped ones. members: make only these of them (and the
    base). steps: a factor on every number of steps, for a quick trial.
    """
    out = Path(out)
    recipes = dict(shipped.MEMBERS if recipes is None else recipes)
    unknown = set(members or ()) - set(recipes)
    if unknown:
        raise WorkbenchError(f"Unknown members {sorted(unknown)}; known are {sorted(recipes)}.")
    base(out, steps)
    texts = shipped.task_texts()
    evaluate = shipped.Evaluation(LOGGED, "validation")
    for name, recipe in recipes.items():
        if members is None or name in members:
            train(out / "base", scaled(recipe, steps), texts, out / name, evaluate=evaluate)
    manifest(out)
    return out


def base(out: str | Path, steps: float = 1.0) -> Path:
    """Pre-train the base by `shipped.PRETRAINING` into `out`/base; returns that folder."""
    folder = Path(out) / "base"
    if (folder / "training.json").is_file():
        return folder
    return train(
        shipped.untrained(),
        scaled(shipped.PRETRAINING, steps),
        shipped.mixture(shipped.PRETRAINING_TEXTS),
        folder,
        tokenizer=shipped.tokenizer(),
        evaluate=shipped.Evaluation(LOGGED, "validation"),
        compiled=True,
    )


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The same recipe over `factor` times the steps, checkpoints and evaluations included."""
    if factor == 1:
        return recipe
    return replace(
        recipe,
        steps=max(1, round(recipe.steps * factor)),
        evaluate_every=round(recipe.evaluate_every * factor),
        checkpoints=tuple(round(s * factor) for s in recipe.checkpoints),
    )


def manifest(out: str | Path) -> dict[str, Any]:
    """Score the base and every member in `out` on held-out prompts and write manifest.json.

    It holds the recipes, package versions, each member's seed and scores (mean, 95% interval and
    n per task, on the test split, which no recipe was chosen by), the sha256 of every file, and
    `sweep`, the trials listed in sweep.json, by which the recipes were chosen.
    """
    from transformers import AutoTokenizer

    out = Path(out)
    words = AutoTokenizer.from_pretrained(out / "base")
    evaluate = shipped.Evaluation(SCORED, "test")
    members: dict[str, Any] = {}
    for folder in sorted(f.parent for f in out.glob("[!.]*/training.json")):
        about = json.loads((folder / "training.json").read_text())
        intervals = evaluate.intervals(Checkpoint.parse(folder).load(dtype=torch.float32), words)
        scores = {
            name: {k: v if k == "n" else round(v, 5) for k, v in interval._asdict().items()}
            for name, interval in intervals.items()
        }
        members[folder.name] = {"recipe": about["recipe"], "seed": about["seed"], "scores": scores}
    trials = out / "sweep.json"
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and ".training" not in str(p))
    made = {
        "task": shipped.TASK,
        "mixture": shipped.MIXTURE,
        "model": shipped.SHAPE,
        "texts": {"pretraining": shipped.PRETRAINING_TEXTS, "task": shipped.TASK_TEXTS},
        "versions": versions(),
        "base": members.pop("base"),
        "members": members,
        "sweep": json.loads(trials.read_text()) if trials.is_file() else [],
        "sha256": {
            str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
            if p.name != "manifest.json"
        },
    }
    with writing(out / "manifest.json") as temporary:
        temporary.write_text(json.dumps(made, indent=1))
    return made
