"""Do skills add up? Grafts of several tasks on one base, each task scored under every subset.

theta_0 + sum over members of gamma . delta: the sum of sparse changes (Ansell et al. 2022, arXiv
2110.07560), and, for grafts of one member that learned several tasks, the union of their masks
(Panigrahi et al. 2023, arXiv 2302.06600). Interference is what a task loses when the others'
grafts join its own. It misleads where a graft already does without the others' tasks what the
base did: compare with the base, and with random grafts of the same sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any, NamedTuple

import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Family
from workbench.models import Edit, edit
from workbench.progress import progress
from workbench.results.result import Provenance, Result, describe
from workbench.results.validity import finished
from workbench.skills import rankings
from workbench.skills.graft import KEPT, Graft, graft_of, inside, require_own, top
from workbench.skills.scoring import Reading, Readout
from workbench.stats import ratios
from workbench.tasks import PromptSet

KEY = "skills.compose"


class Skill(NamedTuple):
    """What one member learned: its prompts, none of them used to learn the graft, and the graft."""

    member: str
    task: PromptSet
    graft: Graft


def alike(found: Sequence[tuple[PromptSet, Result]]) -> dict[str, list[Skill]]:
    """Skills that can be compared when put together, by what their members have in common: one
    member that learned several tasks, or members of several tasks trained alike (full fine-tunes,
    LoRA of one rank), the first of each task.

    found: the Results of `localize`, each with prompts of its task on which no graft was learned.
    """
    skills: dict[tuple[str, str], Skill] = {}
    labels: dict[str, str] = {}
    for task, result in found:
        arms = result.provenance.parameters["arms"]
        arm = next((one for one in KEPT if one in arms), "")
        if not arm:
            continue
        for member, about in result.provenance.members.items():
            skills[member, task.name] = Skill(member, task, Graft.of(result, member, arm=arm))
            labels[member] = f"lora-r{about['rank']}" if about.get("rank") else "full"
    groups: dict[str, dict[str, Skill]] = {}
    for (member, task), skill in skills.items():
        several = sum(name == member for name, _ in skills) > 1
        groups.setdefault(member if several else labels[member], {}).setdefault(task, skill)
    return {label: list(own.values()) for label, own in groups.items() if len(own) > 1}


@analysis(
    "Do the skills of several fine-tuned models add up when their grafts are combined?",
    paper="arXiv 2302.06600",
    example="--member a=A --member b=B --prompts a=a.jsonl --graft a=a.safetensors ...",
)
def compose(
    family: Family,
    skills: Sequence[Skill],
    *,
    others: Sequence[PromptSet] = (),
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Score every task under every subset of the grafts.

    skills: at least two, of models of the family, each with a task of another name. others: further
    prompt sets that are scored, such as tasks of pre-training, against the first model. dtype:
    "float32" or "bfloat16"; None means as stored.

    Returns a Result with columns arm, skills (task names joined by " + "), x (entries of the grafts
    over N), task, own (whether the task is among those skills), metric: "score", "gain" (each task
    against its own model), "agreement", "log_probability", "ece", "ece_mass", "brier", with 95%
    intervals over prompts. Arms: "graft"; "random", as many random entries of the same models;
    "whole", the models' whole changes summed (task arithmetic); "base". "interference": score of
    all grafts together less that of the task's own graft alone, paired over prompts. Raises
    WorkbenchError for fewer than two skills, or two with the same name.
    """
    names = [skill.task.name for skill in skills]
    if len(skills) < 2 or len(set(names)) < len(names):
        raise WorkbenchError(f"Expected two or more skills of different tasks, found {names}.")
    for skill in skills:
        require_own(family[skill.member], skill.graft)
    held = {skill.member: family[skill.member].held(device) for skill in skills}
    sizes = {"batch_size": batch_size, "seed": seed}
    first = held[skills[0].member]
    readouts = [
        Readout.of(first, (skills[0].task, *others), **sizes, device=device, dtype=dtype)
    ]  # fmt: skip
    # The others share its model; each task is measured against the member that learned it.
    model = readouts[0].model
    readouts += [Readout(held[s.member], (s.task,), model, **sizes) for s in skills[1:]]
    randoms = [_random(held[s.member], s, seed) for s in skills]
    subsets = [c for k in range(1, len(skills) + 1) for c in combinations(range(len(skills)), k)]
    rows = _rows(readouts, None, {"arm": "base", "skills": "", "x": 0.0}, ())
    alone: dict[int, Reading] = {}
    for subset in progress(subsets, desc="compose"):
        chosen = [names[i] for i in subset]
        made = _joined([skills[i] for i in subset])
        about: dict[str, Any] = {"skills": " + ".join(chosen)}
        share = sum(map(len, made.values())) / skills[0].graft.total
        arms = {
            "graft": _sum(made, held),
            "random": _sum(_joined([randoms[i] for i in subset]), held),
            "whole": reduce(add, (edit(held[member]) for member in made)),
        }
        for arm, change in arms.items():
            x = 1.0 if arm == "whole" else share
            rows += _rows(readouts, change, about | {"arm": arm, "x": x}, chosen)
        if len(subset) == 1:
            alone[subset[0]] = readouts[subset[0]].read(arms["graft"])
        if len(subset) > 1:
            rows += _interference(readouts, alone, subset, arms["graft"], about, seed)
    parameters = {
        "skills": [{"member": s.member, "task": describe(s.task), "graft": describe(s.graft),
                    "share": s.graft.share} for s in skills],
        "others": describe(list(others)), "batch_size": batch_size,
    }  # fmt: skip
    members = {name: pair.tuned.about for name, pair in held.items()}
    notes = tuple(note for pair in held.values() for note in pair.limits().notes)
    told: dict[str, Any] = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = Provenance(family.base.about, members, parameters, notes=notes, **told)
    table = pd.DataFrame(rows)
    table.insert(0, "member", " + ".join(held))
    return finished(KEY, table, provenance)


def _joined(skills: Sequence[Skill]) -> dict[str, Graft]:
    """Member -> the union of its grafts: an entry that two skills share is taken once."""
    made: dict[str, Graft] = {}
    for skill in skills:
        before = made.get(skill.member)
        made[skill.member] = skill.graft if before is None else before | skill.graft
    return made


def _sum(grafts: Mapping[str, Graft], held: Mapping[str, CheckpointPair]) -> Edit:
    return reduce(add, (graft.edit(held[member]) for member, graft in grafts.items()))


def _random(pair: CheckpointPair, skill: Skill, seed: int) -> Skill:
    """As many entries of the same member, drawn at random; other ones for every task."""
    noise = rankings.random(pair, f"{skill.task.name}/{seed}")
    masks = top(noise, inside(pair), len(skill.graft))
    return skill._replace(graft=graft_of("random", masks))


def _rows(
    readouts: Sequence[Readout], change: Edit | None, about: dict[str, Any], chosen: Sequence[str]
) -> list[dict[str, Any]]:
    rows = [row for one in readouts for row in one.rows(one.read(change), **about)]
    return [row | {"own": row["task"] in chosen} for row in rows]


def _interference(
    readouts: Sequence[Readout],
    alone: Mapping[int, Reading],
    subset: Sequence[int],
    together: Edit,
    about: dict[str, Any],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What each task loses, or wins, by the others' grafts beside its own."""
    for i in subset:
        now = readouts[i].read(together)[0]["correct"].to_numpy(float)
        before = alone[i][0]["correct"].to_numpy(float)
        interval = ratios(now - before, seed=seed)
        named = interval.first._asdict()
        told = {"arm": "graft", "task": readouts[i].sets[0].name, "own": True}
        yield about | told | {"metric": "interference", "baseline": before.mean()} | named
