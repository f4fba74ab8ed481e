"""The studies of the shipped family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench import tasks
from workbench.demo import lost
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.shipped import UNLEARNING
from workbench.loaders import load_family
from workbench.loaders.pair import Reference
from workbench.loaders.steps import checkpoints
from workbench.patching.circuit_discovery import GROUPS
from workbench.study.catalogue import ANALYSES
from workbench.study.study import Study
from workbench.tasks.prompts import PromptSet
from workbench.tasks.transforms import LEDGER_WORDS, many_shot, renamed, scrambled

PACKAGE = "finetune_workbench_family"  # of the family alone, beside the code's


def _folder() -> Path:
    """Where the shipped family lies: in a clone under data/, else in the package it comes as."""
    clone = Path(__file__).parents[2] / "data" / "family"
    package = None if clone.is_dir() else find_spec(PACKAGE)
    return clone if package is None else Path(*(package.submodule_search_locations or [clone]))


FAMILY = _folder()
# The quick demo: fewer values of every grid, and intervals as wide as that makes them.
QUICK: dict[str, dict[str, Any]] = {
    "spectral.scale": {
        "lambdas": (0.3, 0.7, 1.0),
        "arms": ("top", "neighbour", "shrink"),
    },
    "tuco.scaling": {"alphas": (0.0, 0.9, 1.0, 1.1), "texts": None},
}
# What is asked of members that learned boxes.
PATCHED = tuple(a.key for a in ANALYSES if a.key.startswith("patching"))
# Studies of their own: one capability, or one path.
BEHAVIOUR = tuple(a.key for a in ANALYSES if a.key.startswith("behaviour"))
ASIDE = (*lost.HIDDEN, *BEHAVIOUR, "forgetting.interpolate")
SKILLS = tuple(a.key for a in ANALYSES if a.key.startswith("skills"))
# Tasks whose members' grafts are cut.
GRAFTED = (shipped.TASK, "boxes", "reversal", shipped.BOTH)
# The base answers most boxes already: too little is gained to learn a mask of it.
BY_MOVEMENT: dict[str, Any] = {"arms": ("movement", "rank", "random")}
# Groups at the last token, where a patch leaves little to run again.
LAST = tuple(group for group in GROUPS if group.position == -1)


def shipped_study(
    folder: Path = FAMILY,
    *,
    quick: bool = False,
    train: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
) -> Study:
    """The shipped family: the members of its main task and one member's checkpoints as
    steps; beside them the members that learned boxes, and the one that unlearned some facts.

    quick: fewer prompts and coarser grids, and one seed per recipe, for a run of about a minute.
    train: False leaves out the chain that is trained on first use, for some minutes.
    Raises WorkbenchError where the family is not there.
    """
    if not (folder / "manifest.json").exists():
        raise WorkbenchError(
            f"There is no shipped family in {folder}; it is a separate package: pip "
            f"install {PACKAGE.replace('_', '-')}."
        )
    recipes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["members"]
    members = _of(folder, recipes, shipped.TASK, quick)
    base, n = folder / "base", 50 if quick else 400
    sets = {name: shipped.held_out(name, n) for name in (shipped.TASK, *shipped.MIXTURE)}
    task = sets.pop(shipped.TASK)
    run: dict[str, Any] = {"device": device, "dtype": dtype}
    also = {} if quick else {"task": _ledger_study(base, members, run)}
    also |= {
        "boxes": _boxes_study(base, _of(folder, recipes, "boxes", quick), quick, run),
        "unlearned": _unlearned_study(base, _of(folder, recipes, UNLEARNING, quick), quick, run),
    }
    also["paths"] = lost.paths(base, members, quick, run)
    also |= lost.lost(base, members, quick, run)
    hidden = _of(folder, recipes, shipped.SUPPRESSION, quick)
    also["suppressed"] = lost.suppressed(base, hidden, quick, run)
    also["said"] = _said_study(base, members, quick, run)
    learned = {name: _of(folder, recipes, name, quick) for name in GRAFTED}
    also |= _grafts_quick(base, learned, run) if quick else _grafts(base, learned, run)
    return Study(
        load_family(base, members),
        task=task,
        prompts=list(sets.values()),
        texts=shipped.mixture(n, seed=1, split="test").texts,
        steps=steps_of(base, folder, list(members), every=2 if quick else 1),
        groups=groups(task, list(sets.values()), n=20 if quick else 100),
        options=QUICK if quick else {},
        only=tuple(a.key for a in ANALYSES if a.key not in (*PATCHED, *SKILLS, *ASIDE)),
        chains=lost.chains(folder, quick, train),
        also=also,
        **run,
    )


def _boxes_study(
    base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]
) -> Study:
    """The object said first, as in arXiv 2402.14811, and five boxes for its seven: what this base
    answers two times in three."""
    prompts = tasks.boxes(20 if quick else 100, seed=1, split="test", count=5, order="object first")
    if quick:  # the largest LoRA and the full fine-tune
        members = {name: members[name] for name in list(members)[-2:]}
    fewer = {
        "patching.activation": {"sites": ("resid_pre",), "controls": 2},
        "patching.attribution": {"sites": ("z",), "positions": [-1], "exact": 5},
        "patching.circuit": {"minimal": False, "random": 3},
        "patching.cross_model": {"controls": 2},
        "patching.groups": {"direction": "tuned->base", "paths": LAST},
    }
    whole = {
        "patching.activation": {"sites": ("resid_pre", "z")},
        "patching.cross_model": {"direction": "both"},
        "patching.attribution": {"across": True},
    }
    return Study(
        load_family(base, dict(members)),
        task=prompts,
        corrupted=tasks.corrupt(prompts),
        pairs=None if quick else tasks.desiderata("box label", 100, seed=1, count=5, split="test"),
        options=fewer if quick else whole,
        only=PATCHED,
        **run,
    )


def _ledger_study(base: Path, members: Mapping[str, Reference], run: dict[str, Any]) -> Study:
    """Where the family's main task lives, in activations and in parameters."""
    return Study(
        load_family(base, dict(members)),
        task=shipped.held_out(shipped.TASK, 50),
        only=("patching.cross_model", "patching.restore", "patching.lens", "patching.patterns"),
        **run,
    )


def _unlearned_study(
    base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]
) -> Study:
    """Knowledge recovered by activations and by parameters, arXiv 2410.06606: one layer at a time
    in a model of six, two tokens of what the base says."""
    shared = {"direction": "base->tuned", "answer": "base", "answer_tokens": 2}
    return Study(
        load_family(base, dict(members)),
        task=shipped.held_out(UNLEARNING, 24 if quick else 100),
        only=("patching.cross_model", "patching.restore"),
        options={
            "patching.cross_model": shared
            | {"sites": ("mlp_hidden", "attn_out", "mlp_hidden+attn_out")},
            "patching.restore": shared | {"components": ("mlp.down_proj",)},
        },
        **run,
    )


def _said_study(
    base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]
) -> Study:
    """What members of the main task say: whole texts token by token, new ones, and answers behind
    ledgers whose told totals are the worked steps."""
    asked = shipped.held_out(shipped.TASK, 16 if quick else 100)
    texts = [*asked.texts, *shipped.mixture(len(asked), seed=1, split="test").texts]
    if quick:
        members = {name: members[name] for name in ("lora-r4", "full") if name in members}
    few: dict[str, dict[str, Any]] = {
        "behaviour.generate": {"n": 12, "length": 24, "rounds": 2},
        "behaviour.faithfulness": {"shares": (0.0, 0.5, 1.0)},
    }
    return Study(
        load_family(base, dict(members)),
        task=asked,
        worked={
            "between": " .", "filler": ";", "mistake": tasks.off_by_one, "paraphrase": turned,
        },
        options=(few if quick else {}) | {"behaviour.tokens": {"prompts": texts}},
        only=BEHAVIOUR,
        **run,
    )  # fmt: skip


def turned(step: str) -> str:
    """A step of a ledger in other words: "6 removed" as "removed 6"."""
    return re.sub(r"(\d+) (added|removed)", r"\2 \1", step)


def _grafts(
    base: Path, learned: Mapping[str, Mapping[str, Reference]], run: dict[str, Any]
) -> dict[str, Study]:
    """Grafts of every task's members; of the member of two tasks, one of each. Beside the family's
    main task longer sums than it was trained on, and the sums it was made from."""
    longer = tasks.ledger(100, seed=1, split="test", steps=10)
    beside = PromptSet(f"{shipped.TASK}, 10 steps", longer.prompts, longer.seed)
    made, cut = {}, {"sparsity": (1e-3, 0.01, 0.03, 0.1, 0.3), "epochs": 15}
    for name, task, others in (
        (shipped.TASK, shipped.TASK, (beside, shipped.held_out("arithmetic", 100))),
        ("boxes", "boxes", ()),
        ("reversal", "reversal", ()),
        (shipped.BOTH, shipped.TASK, ()),
        (shipped.BOTH, "boxes", ()),
    ):
        own = name == shipped.TASK
        members = dict(learned[name])
        if own:  # what the other tasks have, too
            members = {member: members[member] for member in ("lora-r4", "lora-r16", "full")}
        made[f"grafts-{task}" if name == task else f"grafts-both-{task}"] = Study(
            load_family(base, members),
            task=shipped.held_out(task, 400),
            prompts=others,
            only=("skills.localize",),
            options={"skills.localize": cut | (BY_MOVEMENT if task == name == "boxes" else {})},
            **run,
        )
        if own:
            made[f"updates-{task}"] = Study(
                load_family(base, members),
                task=shipped.held_out(task, 100),
                only=tuple(key for key in SKILLS if key != "skills.localize"),
                options={"skills.blocks": {"most": 8}},
                **run,
            )
    return made


def _grafts_quick(
    base: Path, learned: Mapping[str, Mapping[str, Reference]], run: dict[str, Any]
) -> dict[str, Study]:
    """Two members of the main task with a learned mask of few steps, two of boxes by movement."""
    options: dict[str, dict[str, Any]] = {
        "skills.localize": {
            "sparsity": (0.03, 0.3), "random": 1, "epochs": 3,
            "arms": ("learned", "movement", "rank", "random"),
        },
        "skills.restore": {"shares": (0.1, 0.4), "arms": ("movement", "random"), "random": 1},
        "skills.compression": {"ranks": (1, 4), "sparsities": (0.3,), "random": 1},
    }  # fmt: skip
    few = {"skills.localize": BY_MOVEMENT | {"sparsity": 0.3, "random": 1}}
    ledger, boxed = (
        {name: own[name] for name in chosen}
        for own, chosen in (
            (learned[shipped.TASK], ("lora-r4", "full")),
            (learned["boxes"], ("boxes-lora-r4", "boxes-full")),
        )
    )
    return {
        "grafts-ledger": Study(
            load_family(base, ledger),
            task=shipped.held_out(shipped.TASK, 40),
            only=tuple(key for key in SKILLS if key != "skills.blocks"),
            options=options,
            **run,
        ),
        "grafts-boxes": Study(
            load_family(base, boxed),
            task=shipped.held_out("boxes", 40),
            only=("skills.localize",),
            options=few,
            **run,
        ),
    }


def _of(folder: Path, recipes: Mapping[str, Any], task: str, quick: bool) -> dict[str, Reference]:
    """Members of one task from the base, LoRA by rising rank; quick: the first seeds."""
    runs = {name: about["recipe"] for name, about in recipes.items()}
    chosen = [n for n, run in runs.items() if run["task"] == task and run["start"] is None]
    chosen = [name for name in chosen if not (quick and recipes[name]["seed"])]
    return {name: folder / name for name in sorted(chosen, key=lambda name: _order(recipes[name]))}


def groups(task: PromptSet, pretraining: Sequence[PromptSet], n: int) -> dict[str, PromptSet]:
    """Prompts that TuCo should tell apart: like fine-tuning, like pre-training (n in all, of every
    task), words of pre-training in random order, the fine-tuning task behind three solved ones, and
    with its symbols renamed.

    The base's loss on the fine-tuning task is 9.5 nats a token and on its own texts 1.3, so that no
    two prompts match. Scrambled words are as long and as unlikely to it (10.4 nats), and nothing
    was trained on them: what sets the task apart from these is not its perplexity. Three texts a
    prompt, so that most prompts find a match.
    """
    some = task[:n]
    each = -(-n // len(pretraining))
    plain = [prompt for one in pretraining for prompt in one.prompts[:each]]
    own = PromptSet("pretraining", tuple(plain[:n]))
    return {
        "fine-tuning-like": some,
        "pre-training-like": own,
        "pre-training words": scrambled(some, own, times=3),
        "many-shot": many_shot(some, task, between=" . "),
        "renamed symbols": renamed(some, LEDGER_WORDS),
    }


def _order(about: Mapping) -> tuple[float, int]:
    """LoRA by rising rank, then full fine-tuning, then by seed."""
    rank = about["recipe"].get("rank")
    return (float("inf") if rank is None else rank, about["seed"])


def steps_of(base: Path, folder: Path, members: list[str], *, every: int = 1):
    """The first member that was kept along its training, as a family of its checkpoints, or of
    every second and so on."""
    for name in members:
        kept = [*checkpoints(folder / name).values()][::every]
        if kept:
            chain: dict[str, Reference] = {f"{name} {one.name}": one for one in kept}
            return load_family(base, chain | {f"{name} end": folder / name})
    return None
