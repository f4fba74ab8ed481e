"""The analyses of the catalogue that are asked of several models, or of further prompts than those
that a change is about: each only of the truths that have these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd

import workbench.behaviour as behaviour
import workbench.edits as edits
import workbench.forgetting as forgetting
import workbench.skills as skills
import workbench.spectral as spectral
from workbench.errors import WorkbenchError
from workbench.lab.known import Place
from workbench.loaders import CheckpointPair, Family, load_family, load_pair
from workbench.results.result import Result, concatenate
from workbench.scoreboard.entry import Entry
from workbench.scoreboard.reading import returns, scored
from workbench.skills import rankings
from workbench.skills.compose import Skill
from workbench.skills.graft import Graft, count, graft_of, inside, top
from workbench.tasks.prompts import PromptSet

SHARE = 0.02  # of all entries, that a graft takes
STEPS = (0.0, 1 / 3, 2 / 3, 1.0)
Siblings = Mapping[str, Path]
Tasks = Mapping[str, PromptSet]


def family(pair: CheckpointPair, siblings: Siblings) -> Family:
    """The siblings, and the tuned model last."""
    members = {name: str(folder) for name, folder in siblings.items()}
    return load_family(str(pair.base.folder), {**members, "tuned": str(pair.tuned.folder)})


def _require_own(models: Iterable[str], tasks: Tasks) -> None:
    """Raises where a model has no prompts of its own."""
    missing = sorted({*models} - {*tasks})
    if missing:
        raise WorkbenchError(
            f"Expected prompts of every model, found none of {missing[0]!r}; give them as tasks."
        )


def alphabetical(table: pd.DataFrame, rows: str) -> dict[Place, float]:
    """Two models, in alphabetical order -> the mean value of these rows."""
    own = table.query(rows, engine="python")
    values: dict[Place, list[float]] = {}
    for first, second, value in zip(own["first"], own["second"], own["value"], strict=True):
        values.setdefault(tuple(sorted((first, second))), []).append(float(value))
    return {place: sum(each) / len(each) for place, each in values.items()}


def _subspaces(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """The overlap of both sides beyond that of random subspaces, its mean over matrices."""
    table = found.table.query("metric == 'overlap'")
    table = table.assign(value=table["value"] - table["baseline"])
    return alphabetical(table, "second != 'start'")


def _graft(pair: CheckpointPair, name: str) -> Graft:
    most = int(SHARE * count(pair))
    return graft_of(name, top(rankings.movement(pair), inside(pair), most))


def _composed(pair: CheckpointPair, siblings: Siblings, tasks: Tasks) -> Result:
    """Every two of the models that have prompts of their own."""
    models = family(pair, siblings)
    _require_own(models.members, tasks)
    grafts = {name: _graft(models[name], name) for name in models.members}
    found = {}
    for both in combinations(sorted(models.members), 2):
        own = [Skill(name, tasks[name], grafts[name]) for name in both]
        found[both] = skills.compose(models, own)
    tables = [one.table.assign(first=a, second=b) for (a, b), one in found.items()]
    provenance = next(iter(found.values())).provenance
    return Result("skills.compose", pd.concat(tables, ignore_index=True), provenance)


def _overlapping(pair: CheckpointPair, prompts: PromptSet, siblings: Siblings) -> Result:
    """Grafts of the largest entries, which no prompt has a part in."""
    models = family(pair, siblings)
    found = [
        skills.localize(one, prompts, sparsity=SHARE, arms=("movement",), random=1, epochs=1)
        for one in models
    ]
    return skills.overlap(found, arm="movement")


def _overlaps(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """The share of entries that two grafts have in common."""
    names = {name: name.split(", ")[0] for name in {*found.table["first"]}}
    table = found.table.replace({"first": names, "second": names})
    return alphabetical(table, "metric == 'overlap'")


def _conflicts(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """What a task loses when another is added."""
    lost = alphabetical(found.table, "metric == 'interference'")
    return {place: -value for place, value in lost.items()}


def _tasks(found: Result, prompts: PromptSet) -> dict[Place, float]:
    return scored(found.table, "task", "metric == 'forgetting' and task != 'mean'")


def _known(pair: CheckpointPair, prompts: PromptSet) -> Result:
    """Solved questions are shown before each, ended by a space."""
    return forgetting.knowledge(pair, prompts, sets=2, shots=2, between=" ")


def _levels(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how many categories less is known of every question."""
    (base,), (tuned,) = (
        [own for name, own in found.tensors.items() if name.endswith(f"/{arm}")]
        for arm in ("base", "tuned")
    )
    lost = zip(prompts, tuned - base, strict=True)
    return {(prompt.id,): float(levels) for prompt, levels in lost}


def _mixed(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """The mean score of all tasks along the path."""
    own = found.table.query("arm == 'path' and metric == 'score'")
    return {(float(x),): float(v) for x, v in own.groupby("x")["value"].mean().items()}  # pyright: ignore


def _advantages(found: Result, prompts: PromptSet) -> dict[Place, float]:
    return scored(found.table, "step", "metric == 'advantage_change'")


def _changes(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how many more answers are what they are in the end once a step more is shown."""
    rows = found.table.query(
        "arm == 'truncated' and side == 'tuned' and metric == 'same_answer'"
    ).sort_values("x")
    steps = (rows["x"] * (len(rows) - 1)).round().astype(int)
    rises = rows["value"].diff()
    return {(int(at),): float(v) for at, v in zip(steps, rises, strict=True) if at}


def _alike(pair: CheckpointPair, siblings: Siblings, tasks: Tasks) -> Result:
    """Every two of the models, asked what the first and what the second learned."""
    models = family(pair, siblings)
    _require_own(models.members, tasks)
    folders = {name: str(models[name].tuned.folder) for name in models.members}
    found = []
    for both in combinations(sorted(models.members), 2):
        two = load_family(str(pair.base.folder), {name: folders[name] for name in both})
        for name in both:
            made = edits.siblings(two, tasks[name], random=1)
            own = made.table[made.table["member"] == name]
            found.append((own.assign(first=both[0], second=both[1]), made.provenance))
    return Result(
        "edits.siblings", pd.concat([own for own, _ in found], ignore_index=True), found[0][1]
    )


def _carried(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """What the part that both made does for either's answers, beyond a random one."""
    return alphabetical(found.table, "metric == 'beyond_random'")


def _repaired(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """The mean score of all tasks at every strength, and at both ends."""
    own = found.table.query("metric == 'score' and task != 'pretraining'")
    own = own.assign(x=own["x"].where(own["arm"] == "alpha", (own["arm"] == "tuned").astype(float)))
    return {(float(x),): float(v) for x, v in own.groupby("x")["value"].mean().items()}  # pyright: ignore


def _graded(pair: CheckpointPair, prompts: PromptSet, siblings: Siblings) -> Result:
    """What the models forgot of the prompts, which are the task and the texts, and the sizes of
    their changes."""
    models = [*family(pair, siblings)]
    return forgetting.association([
        concatenate([
            forgetting.retention(one, texts=prompts.texts, task=prompts)
            for one in models
        ]),
        concatenate([spectral.delta_spectrum(one) for one in models]),
    ])  # fmt: skip


def _gains(pair: CheckpointPair, prompts: PromptSet, siblings: Siblings) -> Result:
    """The base as what each of the siblings was made into."""
    whole = str(pair.base.folder)
    pairs = [load_pair(str(folder), whole, name="whole") for folder in siblings.values()]
    return forgetting.gains([forgetting.retention(one, [prompts]) for one in pairs])


def _gained(found: Result, prompts: PromptSet) -> dict[Place, float]:
    return scored(found.table, "base", "metric == 'gain'")


def _measures(found: Result, prompts: PromptSet) -> dict[Place, float]:
    return scored(found.table, "measure", "metric == 'spearman' and outcome == 'loss'")


def _premises(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much more the answer of the tuned model rests on each step."""
    rows = found.table.query("metric == 'reliance_change' and arm.str.startswith('without step')")
    steps = rows["arm"].str.removeprefix("without step ").astype(int)
    return {(int(at),): float(v) for at, v in zip(steps, rows["value"], strict=True)}


ENTRIES: dict[str, Entry] = {
    "spectral.subspaces": Entry(
        lambda p, a, c, s, t: spectral.subspaces(family(p, s)),
        {"shared": _subspaces},
        "metric == 'overlap' and second != 'start' and value > null_high",
        needs=("shared",),
    ),
    "skills.overlap": Entry(
        lambda p, a, c, s, t: _overlapping(p, a, s),
        {"shared": _overlaps},
        "metric == 'overlap' and value > null_high",
        needs=("shared",),
    ),
    "skills.compose": Entry(
        lambda p, a, c, s, t: _composed(p, s, t),
        {"conflict": _conflicts},
        "metric == 'interference' and high < 0",
        needs=("conflict",),
    ),
    "forgetting.sequential": Entry(
        lambda p, a, c, s, t: forgetting.sequential(
            family(p, s), {name: t[name] for name in (*s, "tuned")},
            [one for name, one in t.items() if name not in (*s, "tuned")],
        ),
        {"task": _tasks},
        "metric == 'forgetting' and task != 'mean' and low > 0",
        needs=("task",),
    ),
    "forgetting.interpolate": Entry(
        lambda p, a, c, s, t: forgetting.interpolate(
            p, a, [*t.values()], alphas=(0.0, 0.25, 0.5, 0.75, 1.0)
        ),
        {"alpha": _mixed},
        "arm == 'best other' and metric == 'score_change' and low > 0",
        needs=("alpha",),
    ),
    "forgetting.knowledge": Entry(
        lambda p, a, c, s, t: _known(p, a),
        {"item": _levels},
        "metric == 'transition' and arm == 'tuned' and category == 'HighlyKnown' "
        "and to_category == 'HighlyKnown' and high < baseline",
        needs=("other form",),
    ),
    "forgetting.conjugate": Entry(
        lambda p, a, c, s, t: forgetting.conjugate(
            p, a, {"other form": t["other form"]}, task=t["learned"]
        ),
        verdict=returns("recovery_net"),
        verdicts=("suppressed", "erased"),
        needs=("other form",),
    ),
    "forgetting.prune": Entry(
        lambda p, a, c, s, t: forgetting.prune(
            p, a, t["learned"], shares=(0.02, 0.05, 0.1), random=1
        ),
        verdict=returns("recovered"),
        verdicts=("suppressed", "erased"),
        needs=("learned",),
    ),
    "behaviour.advantage": Entry(
        lambda p, a, c, s, t: behaviour.advantage(p, a, between=" , "),
        {"step": _advantages},
        "metric == 'advantage_change' and low > 0",
        needs=("step",),
    ),
    "behaviour.faithfulness": Entry(
        lambda p, a, c, s, t: behaviour.faithfulness(p, a, between=" , ", shares=STEPS),
        {"step": _changes},
        "metric == 'auc' and side == 'tuned' and arm == 'truncated' and high < baseline",
        needs=("step",),
    ),
    "behaviour.reliance": Entry(
        lambda p, a, c, s, t: behaviour.reliance(p, a),
        {"step": _premises},
        "metric == 'reliance_change' and arm.str.startswith('without step') and low > 0",
        needs=("step",),
    ),
    "behaviour.critical": Entry(
        lambda p, a, c, s, t: behaviour.critical(p, t["written"], most=1),
        finds="metric == 'flip_beyond_random' and arm == 'moved' and side == 'tuned' and low > 0",
        needs=("written",),
    ),
    "forgetting.association": Entry(
        lambda p, a, c, s, t: _graded(p, a, s),
        {"measure": _measures},
        "metric == 'spearman' and outcome == 'loss' and p < 0.05",
        needs=("measure",),
    ),
    "forgetting.gains": Entry(
        lambda p, a, c, s, t: _gains(p, a, s),
        {"base": _gained},
        "metric == 'gain' and low > 0",
        needs=("base",),
    ),
    "edits.siblings": Entry(
        lambda p, a, c, s, t: _alike(p, s, t),
        {"shared": _carried},
        "metric == 'beyond_random' and low > 0",
        needs=("shared",),
    ),
    "edits.repair": Entry(
        lambda p, a, c, s, t: edits.repair(
            p, a, others=[*t.values()], texts=a.texts, arms=("alpha",), strengths=(0.25, 0.5, 0.75)
        ),
        {"alpha": _repaired},
        "metric == 'recommended' and value == 1",
        needs=("alpha",),
    ),
}  # fmt: skip
