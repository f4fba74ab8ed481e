"""The shipped family's studies of forgetting: every task of the base, asked of every member."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workbench import lab, tasks
from workbench.lab import shipped
from workbench.loaders import load_family
from workbench.loaders.pair import Reference
from workbench.results import cache
from workbench.study.catalogue import ANALYSES
from workbench.study.study import Chain, Study
from workbench.tasks import world
from workbench.tasks.prompts import PromptSet

# What is asked of one capability of the base; retention and paths of weights are of the members.
HIDDEN = tuple(
    f"forgetting.{name}"
    for name in ("conjugate", "knowledge", "probe", "prune", "revive", "verdict")
    if f"forgetting.{name}" in {a.key for a in ANALYSES}
)
# Coarser grids for the demo: one run of few steps, two sizes of what is pruned.
QUICK: dict[str, dict[str, Any]] = {
    "forgetting.knowledge": {"between": " . ", "sets": 2},
    "forgetting.probe": {"folds": 2},
    "forgetting.prune": {"shares": (0.003, 0.03), "random": 1},
    "forgetting.revive": {"steps": (1, 3, 8), "runs": 1},
}
WHOLE: dict[str, dict[str, Any]] = {
    "forgetting.knowledge": {"between": " . "},
    "forgetting.prune": {"random": 2},
    "forgetting.revive": {"runs": 2},
}
FACT = ("person", "attribute")  # what a fact is asked by, in whatever words
# Where the family's tasks end a solved example.
BETWEEN = {"arithmetic": " ; "}
CHAIN = ("ledger", "reversal", "boxes")
CHAINS = {
    "chain lora-r4": ("lora-r4", "chain-2-lora-r4", "chain-3-lora-r4"),
    "chain full": ("full", "chain-2-full", "chain-3-full"),
}


def conjugates(prompts: PromptSet) -> dict[str, PromptSet]:
    """The prompts of a task of the family behind what its words allow: other wordings, permuted
    words, solved examples of its own or a fact in front, far from any text of the fine-tuning."""
    name = prompts.name
    made: dict[str, PromptSet] = {}
    if name == "facts":
        last = {old: forms[2] for forms in world.FACT_TEMPLATES.values() for old in forms[:2]}
        made["reworded"] = tasks.rewording(last)(prompts)
    if name in ("boxes", "copying", "narration"):
        made["permuted objects"] = tasks.permutation(world.OBJECTS)(prompts)
    if name == "boxes":
        made["permuted labels"] = tasks.permutation(world.LABELS)(prompts)
    between = BETWEEN.get(name, " . ")
    group = FACT if name == "facts" else ()
    made["2-shot"] = tasks.many_shot(prompts, prompts, count=2, between=between, group=group)
    if name != "facts":
        front = tasks.facts(50, seed=3, split="test")
        made["behind a fact"] = tasks.many_shot(prompts, front, count=1, between=" . ")
    return made


def lost(
    base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]
) -> dict[str, Study]:
    """A study for every task of the base's pre-training: was it kept, suppressed or erased?"""
    n = 40 if quick else 200
    found = {}
    for name in ("arithmetic",) if quick else tuple(shipped.MIXTURE):
        asked = dict(list(members.items())[-2:]) if quick else dict(members)
        found[f"lost-{name}"] = _study(name, base, asked, shipped.TASK, n, run)
    return found


def suppressed(
    base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]
) -> Study:
    """Facts in the two wordings that one member was trained to answer with one word."""
    return _study("facts", base, members, shipped.SUPPRESSION, 40 if quick else 200, run)


def _study(
    name: str, base: Path, members: Mapping[str, Reference], learned: str, n: int,
    run: dict[str, Any],
) -> Study:  # fmt: skip
    prompts = shipped.held_out(name, 2 * n)
    if learned == shipped.SUPPRESSION:
        asked = [p for p in prompts if p.template not in shipped.UNSEEN_WORDINGS]
        prompts = PromptSet(name, tuple(asked), prompts.seed)
    prompts = PromptSet(name, prompts.prompts[:n], prompts.seed)
    keys = HIDDEN if name == "facts" else tuple(k for k in HIDDEN if k != "forgetting.knowledge")
    return Study(
        load_family(base, dict(members)),
        task=prompts,
        learned=shipped.held_out(learned, n),
        lessons=shipped.lesson(name, 600).texts,
        conjugates=conjugates(prompts),
        options=_options(name, QUICK if n < 100 else WHOLE),
        only=keys,
        **run,
    )


def _options(name: str, shared: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Facts are asked in several wordings: neither a probe nor a shown example may have the same
    one in another."""
    if name != "facts":
        return dict(shared)
    own = {"folds": 3} | shared.get("forgetting.probe", {})  # few people share a city
    known = shared.get("forgetting.knowledge", {}) | {"group": FACT}
    return {**shared, "forgetting.probe": own | {"group": FACT}, "forgetting.knowledge": known}


def paths(base: Path, members: Mapping[str, Reference], quick: bool, run: dict[str, Any]) -> Study:
    """The straight way from the base to each member, on its task and on all of pre-training."""
    n = 30 if quick else 200
    chosen = {name: members[name] for name in ("lora-r4", "full") if name in members}
    options = {"alphas": (0.0, 0.25, 0.5, 0.75, 1.0)} if quick else {}
    others = ("arithmetic", "boxes") if quick else tuple(shipped.MIXTURE)
    return Study(
        load_family(base, chosen if quick else dict(members)),
        task=shipped.held_out(shipped.TASK, n),
        prompts=[shipped.held_out(name, n) for name in others],
        only=("forgetting.interpolate",),
        options={"forgetting.interpolate": options},
        **run,
    )


def chains(folder: Path, quick: bool, train: bool = True) -> dict[str, Chain]:
    """Three tasks learned one after the other. The chain by full fine-tuning is trained here, once,
    and kept in the cache folder: some minutes. train: False leaves it out."""
    n = 30 if quick else 400
    others = [shipped.held_out(name, n) for name in shipped.MIXTURE if name not in CHAIN]
    made = {}
    for name, stages in CHAINS.items():
        if (quick or not train) and name != "chain lora-r4":
            continue
        members = {stage: _stage(folder, stage) for stage in stages}
        asked = {
            stage: shipped.held_out(task, n) for stage, task in zip(stages, CHAIN, strict=True)
        }
        made[name] = Chain(load_family(folder / "base", members), asked, others)
    return made


def _stage(folder: Path, name: str) -> Path:
    """A member's folder, trained first where the family does not ship it."""
    if name not in shipped.CHAIN:
        return folder / name
    recipe = shipped.CHAIN[name]
    assert recipe.start is not None
    texts = shipped.lesson(recipe.task).texts
    out, start = cache.folder("chain") / name, _stage(folder, recipe.start)
    train = partial(lab.train, folder / "base", recipe, texts, out, start=start)
    return cache.made_in(out, train)
