"""How is the shipped family made? Pre-train the base, train every member, write the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.errors import WorkbenchError
from workbench.files.writing import OWN, Mark, finished, replacing, require_free, writing
from workbench.lab import shipped
from workbench.lab.member_in_training import MEMBER
from workbench.lab.recipe import Recipe
from workbench.lab.train import train
from workbench.loaders import Checkpoint
from workbench.results.result import versions

LOGGED, SCORED = 64, 400


def _is_family(out: Path) -> bool:
    """Whether a folder holds nothing but members, finished or on their way, and what is told of
    them."""
    told = {"manifest.json", "sweep.json", ".stages"}
    return out.is_dir() and all(
        path.name in told or path.name.endswith(".training") or MEMBER.known(path)
        for path in finished(out)
    )


FAMILY = Mark("a family", _is_family)
BASE = Mark("a base model", lambda folder: False)  # one that is there is kept


def build(
    out: str | Path = "out/family",
    *,
    recipes: Mapping[str, Recipe] | None = None,
    members: list[str] | None = None,
    steps: float = 1.0,
) -> Path:
    """Train the base and its fine-tuned models in the folder `out`, then write manifest.json;
    returns `out`.

    What is finished is saved and an interrupted training resumes, so the call can be repeated.
    recipes: model name -> Recipe; None takes the shipped ones. members: train only these of them
    (and the base). steps: a factor on every number of steps, for a quick trial.
    """
    out = Path(out)
    require_free(out, FAMILY)
    recipes = dict(shipped.MEMBERS if recipes is None else recipes)
    unknown = set(members or ()) - set(recipes)
    if unknown:
        raise WorkbenchError(f"Unknown models {sorted(unknown)}; known are {sorted(recipes)}.")
    base(out, steps)
    lesson = cache(shipped.lesson)
    for name, recipe in recipes.items():
        if members is None or name in members:
            train(
                out / "base",
                scaled(recipe, steps),
                lesson(recipe.task).texts,
                out / name,
                forget=lesson(recipe.task).forget,
                start=out / recipe.start if recipe.start else None,
                evaluate=shipped.Evaluation(LOGGED, "validation", task=recipe.task),
            )
    lighten(out)
    manifest(out)
    return out


def lighten(out: str | Path) -> None:
    """Store in float16 what is read no finer: the factors of every adapter, and what fine-tuning
    changed in the members `shipped.HALVED`; what it left alone stays the base's, bit for bit.

    After all training, since a member of a chain starts from the float32 factors. Rounding to 11
    bits moves a factor's entries by less than 2^-11 of themselves and adds no direction to BA.
    """
    out = Path(out)
    kept = load_file(out / "base" / "model.safetensors")
    files = [*out.glob("**/adapter_model.safetensors")]
    files += [out / name / "model.safetensors" for name in shipped.HALVED if (out / name).is_dir()]
    for file in files:
        stored = load_file(file)
        moved = [
            name
            for name, tensor in stored.items()
            if tensor.dtype == torch.float32
            and (name not in kept or not torch.equal(tensor, kept[name]))
        ]
        if not moved:  # as it was left by an earlier call
            continue
        with writing(file, OWN) as fresh:
            halves = {name: stored[name].half() for name in moved}
            save_file(stored | halves, fresh, metadata={"format": "pt"})


def base(out: str | Path, steps: float = 1.0) -> Path:
    """Make the base by `shipped.STAGES`, one after the other, in `out`/base; returns that folder.

    base/stages keeps the training.json and log.jsonl of every stage.
    """
    folder = Path(out) / "base"
    if (folder / "training.json").is_file():
        return folder
    work = Path(out) / ".stages"
    made: dict[str, Path] = {}
    start: Any = shipped.untrained()
    for name, stage in shipped.STAGES.items():
        stage = stage._replace(recipe=scaled(stage.recipe, steps))
        start = made[name] = train(
            start,
            stage.recipe,
            stage.texts,
            work / name,
            tokenizer=shipped.tokenizer(),
            evaluate=shipped.Evaluation(LOGGED, "validation"),
            # Compiling takes minutes, which only some thousand steps pay back.
            compiled=stage.recipe.steps > 2000,
        )
    assemble(made, folder)
    shutil.rmtree(work)
    return folder


def assemble(stages: Mapping[str, Path], folder: str | Path) -> Path:
    """The base as it ships: the last stage's model, with the records of all of them in stages/."""
    folder = Path(folder)
    with replacing(folder, BASE) as temporary:
        *_, last = stages.values()
        shutil.copytree(last, temporary, dirs_exist_ok=True)
        for name, place in stages.items():
            kept = temporary / "stages" / name
            kept.mkdir(parents=True)
            for record in ("training.json", "log.jsonl"):
                shutil.copy2(place / record, kept / record)
    return folder


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

    It holds the recipes, those of the base's stages included, package versions, each member's seed
    and scores (mean, 95% interval and n per task, on the test split, which no recipe was chosen
    by), the precision its weights are stored in, the sha256 of every file, and `sweep`, the trials
    listed in sweep.json.
    """
    out = Path(out)
    evaluate = shipped.Evaluation(SCORED, "test")
    folders = sorted(f.parent for f in out.glob("[!.]*/training.json"))
    members = {
        f.name: _run(f) | {"stored": _stored(f), "scores": _scores(f, evaluate)} for f in folders
    }
    members["base"]["stages"] = {
        name: _run(out / "base" / "stages" / name) for name in shipped.STAGES
    }
    trials = out / "sweep.json"
    made = {
        "task": shipped.TASK,
        "mixture": shipped.MIXTURE,
        "forgotten": shipped.FORGOTTEN,
        "model": shipped.SHAPE,
        "texts": {"pretraining": shipped.PRETRAINING_TEXTS, "task": shipped.TASK_TEXTS},
        "versions": versions(),
        "base": members.pop("base"),
        "members": members,
        "sweep": json.loads(trials.read_text(encoding="utf-8")) if trials.is_file() else [],
        "sha256": _digests(out),
    }
    with writing(out / "manifest.json", OWN) as temporary:
        temporary.write_text(json.dumps(made, indent=1))
    return made


def _run(folder: Path) -> dict[str, Any]:
    """The recipe and seed that a folder's training.json names."""
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {"recipe": Recipe.from_dict(about["recipe"]).as_dict(), "seed": about["seed"]}


def _scores(folder: Path, evaluate: shipped.Evaluation) -> dict[str, dict[str, float]]:
    """Task -> value, low, high and n, rounded."""
    own = Checkpoint.parse(folder)
    found = evaluate.intervals(own.load(dtype=torch.float32), own.tokenizer())
    return {
        name: {k: v if k == "n" else round(v, 5) for k, v in interval._asdict().items()}
        for name, interval in found.items()
    }


def _stored(folder: Path) -> str:
    """The precisions of the weights in a folder, "float16+float32" where some are of each."""
    (file,) = folder.glob("*.safetensors")
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in load_file(file).values()}
    return "+".join(sorted(dtypes))


def _digests(out: Path) -> dict[str, str]:
    """sha256 of every file but the manifest and what is hidden, which is still in the making."""
    files = {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name != "manifest.json" and not any(part[0] == "." for part in Path(name).parts)
    }
