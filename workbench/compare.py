"""LoRA against full fine-tuning: the catalogue over a family, and one report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import figures, units
from workbench.catalogue import ANALYSES, Analysis
from workbench.errors import WorkbenchError
from workbench.forgetting import sequential
from workbench.loaders import Family
from workbench.reports import report
from workbench.results import Result, concatenate
from workbench.skills import alike, compose, localize, overlap, reported
from workbench.tasks import PromptSet
from workbench.tasks.desiderata import Counterfactuals

# For `plan`: forward passes over every prompt and text, of about so many tokens each.
PASSES = {
    "forgetting.retention": 2,
    "forgetting.interpolate": 13,
    "forgetting.knowledge": 120,
    "forgetting.conjugate": 6,
    "forgetting.probe": 3,
    "forgetting.prune": 25,
    "forgetting.revive": 120,
    "forgetting.verdict": 1,
    "spectral.scale": 50,
    "tuco.contribution": 3,
    "tuco.scaling": 16,
    "patching.cross_model": 60,
    "patching.restore": 25,
    "patching.activation": 60,
    "patching.circuit": 80,
    "patching.lens": 3,
    "patching.patterns": 2,
    "patching.attribution": 30,
    "patching.groups": 30,
    "patching.mask": 20,
    "skills.localize": 250,
    "skills.blocks": 250,
    "skills.restore": 50,
    "skills.compression": 20,
    "skills.calibration": 2,
}
TOKENS = 100
KEEPS = "forgetting.retention"  # chains are read where retention is


@dataclass(frozen=True)
class Chain:
    """Members that were learned one after the other. stages: in that order; tasks: stage -> prompts
    of what it learned; others: prompts of tasks no stage learned."""

    stages: Family
    tasks: Mapping[str, PromptSet]
    others: Sequence[PromptSet] = ()


@dataclass(frozen=True)
class Study:
    """What to compare. task: prompts of the fine-tuned task; without it only the weights and the
    loss are compared. prompts: further prompt sets, e.g. of pre-training. texts: held-out
    pre-training-like text; None takes samples of the base. steps: checkpoints along a training
    run. groups: prompts to be told apart by TuCo, the fine-tuning-like ones first; None takes
    task and prompts. dtype: of every run of a model; decompositions are float32. options: analysis
    key -> arguments other than the defaults. only: keys of the analyses to run; None for all.
    corrupted: a corrupt partner of each prompt of the task, for patching within one model. pairs:
    counterfactual pairs, for masks. conjugates: name -> the task's prompts behind a conjugation;
    learned: prompts of what was fine-tuned, where the task is a capability that may be lost;
    lessons: prompts to learn it again with.
    chains: members learned one after the other, by the chain's name. also: further studies of the
    same base by name, reported with this one: other members, another behaviour."""

    family: Family
    task: PromptSet | None = None
    prompts: Sequence[PromptSet] = ()
    texts: Sequence[str] | None = None
    steps: Family | None = None
    groups: Mapping[str, PromptSet | Sequence[str]] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] | None = None
    corrupted: PromptSet | None = None
    pairs: Counterfactuals | None = None
    conjugates: Mapping[str, PromptSet] | None = None
    learned: PromptSet | None = None
    lessons: PromptSet | None = None
    chains: Mapping[str, Chain] = field(default_factory=dict)
    also: Mapping[str, Study] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [a.key for a in ANALYSES]
        unknown = [key for key in self.only or () if key not in known]
        if unknown:
            raise WorkbenchError(f"Unknown analysis {unknown[0]!r}; there are {', '.join(known)}.")

    @property
    def analyses(self) -> list[Analysis]:
        """The catalogue, or `only` these of it, less what this study has no data for."""
        here = {
            "task": self.task, "partners": self.corrupted, "pairs": self.pairs,
            "conjugates": self.conjugates, "learned": self.learned, "lessons": self.lessons,
            "capability": self.learned,
        }  # fmt: skip
        missing = {need for need, given in here.items() if given is None}
        found = [a for a in ANALYSES if self.only is None or a.key in self.only]
        return [a for a in found if not missing & set(a.needs)]

    def narrowed(self, only: Sequence[str]) -> Study:
        """This study and those beside it with these of their analyses alone; all where none is
        named. Raises WorkbenchError where a name is unknown, or there is no data for any."""
        if not only:
            return self
        found = self._narrowed(only)
        if not any(study.analyses for study in (found, *found.also.values())):
            raise WorkbenchError(
                f"There is no data for {', '.join(only)}; give prompts of the task (--task)."
            )
        return found

    def _narrowed(self, only: Sequence[str]) -> Study:
        replace(self, only=tuple(only))  # an unknown name is told in any case
        kept = tuple(key for key in only if self.only is None or key in self.only)
        also = {name: study._narrowed(only) for name, study in self.also.items()}
        return replace(self, only=kept, also=also)

    def arguments(self, analysis: Analysis) -> dict[str, Any]:
        """What one analysis is called with."""
        found: dict[str, Any] = {"device": self.device}
        if {"texts", "task"} & set(analysis.needs):
            found["dtype"] = self.dtype
        if "texts" in analysis.needs:
            found |= {"texts": self.texts, "seed": self.seed}
        if "task" in analysis.needs:
            found |= {"task": self.task, "seed": self.seed}
        if "groups" in analysis.needs:
            del found["task"]
            sets = {one.name: one for one in (self.task, *self.prompts) if one is not None}
            found["prompts"] = dict(self.groups or sets)
        if "prompts" in analysis.needs:
            found["prompts"] = found.pop("task")
        if "learned" in analysis.needs:
            found["task"] = self.learned
        if "conjugates" in analysis.needs:
            found["conjugates"] = self.conjugates
        if "lessons" in analysis.needs:
            found["lessons"] = self.lessons
        if "others" in analysis.needs:
            found["others"] = list(self.prompts)
        if "partners" in analysis.needs:
            found["corrupted"] = self.corrupted
        if "pairs" in analysis.needs:
            found |= {"pairs": self.pairs, "seed": self.seed, "dtype": self.dtype}
        if analysis.key == "forgetting.retention":
            found["prompts"] = [*([self.task] if self.task else []), *self.prompts]
            found["task"] = self.task.name if self.task else None
        return found | self.options.get(analysis.key, {})


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member and analysis the matrices, the peak of memory in MiB, whether the
    model is run, and minutes on this machine, to a factor of about three. Reads headers only."""
    tables = [_plan(one, *_speeds()) for one in (study, *study.also.values())]
    return pd.concat(tables, ignore_index=True)


def _plan(study: Study, svd: float, matmul: float) -> pd.DataFrame:
    """`plan` of one study. svd, matmul: as `_speeds` gives them."""
    texts = len(study.texts or ()) or 64
    sets = [*([study.task] if study.task else []), *study.prompts]
    prompts = sum(len(one) for one in sets)
    rows = []
    for pair in study.family:
        info = pair.base.weights().info
        shapes = [info[site.name].shape for site in pair.sites() if site.name in pair.comparable]
        weights = sum(math.prod(i.shape) for i in info.values())
        cubic = sum(math.prod(shape) * min(shape) for shape in shapes)
        for analysis in study.analyses:
            runs = bool({"texts", "task", "pairs"} & set(analysis.needs))
            # A decomposition holds W, U, V and the tuned matrix; a run one model in float32 and
            # about as much again for activations and the edited copies.
            largest = max(map(math.prod, shapes), default=0)
            peak = 2 * 4 * weights if runs else 6 * 4 * largest
            passes = PASSES.get(analysis.key, 0) * 2 * weights * TOKENS * (prompts + texts)
            seconds = passes / matmul if runs else 2 * cubic / svd
            row = (pair.name, analysis.key, len(shapes), round(peak / 2**20), runs)
            rows.append((*row, round(seconds / 60, 1)))
    columns = ["member", "analysis", "matrices", "peak_MiB", "runs_model", "minutes"]
    return pd.DataFrame(rows, columns=columns)


def _speeds() -> tuple[float, float]:
    """(m n min(m, n) of an SVD, floating-point operations of a product) per second, just measured
    on the CPU: half a second."""
    import torch

    size = 512
    matrix = torch.randn(size, size)
    found = []
    for work, call in (
        (size**3, lambda: torch.linalg.svd(matrix)),
        (2 * size**3, lambda: matrix @ matrix),
    ):
        call()
        start = time.perf_counter()
        call()
        found.append(work / (time.perf_counter() - start))
    return found[0], found[1]


def compare(study: Study, out: str | Path, *, title: str | None = None) -> Path:
    """Run the catalogue on a family; write results/, figures/ and report.html under `out`.

    Every analysis of every member is a unit of work kept under out/units: a second run computes
    nothing, an interrupted one goes on. Returns the report's path.
    """
    out = Path(out)
    families = (study.family, *(other.family for other in study.also.values()))
    preflight = pd.concat([preflights(family) for family in families], ignore_index=True)
    results: list[Result] = []
    localized: list[tuple[Study, Result]] = []
    for name, one in {"": study, **study.also}.items():
        before = len(results)
        for analysis in one.analyses:
            kept = f"{analysis.key}.{name}" if name else analysis.key
            known = {"results": results[before:]} if "results" in analysis.needs else {}
            results.append(_over(one.family, analysis, one, out, kept, **known))
            if analysis.function is localize:
                localized.append((one, results[-1]))
    results += _together(localized, out)
    results += _chained(study, out)
    if study.steps is not None:
        wanted = ("spectral.intruders", "forgetting.retention")
        # Along a run only the fine-tuned task's score is drawn.
        along = replace(study, prompts=())
        results += [
            _over(study.steps, a, along, out, f"{a.key}.steps")
            for a in study.analyses
            if a.key in wanted
        ]
    figures.save_all(results, out / "figures")
    return report(
        results,
        out / "report.html",
        title=title or "What did fine-tuning do to this model?",
        preflight=preflight,
        pictures=out / "figures",
    )


def preflights(family: Family) -> pd.DataFrame:
    """Every member's preflight, each parameter read once; raises at the first that must stop."""
    tables = []
    for pair in family:
        found = pair.check()
        found.require()
        tables.append(found.table.assign(member=pair.name))
    return pd.concat(tables, ignore_index=True)


def _over(
    family: Family, analysis: Analysis, study: Study, out: Path, name: str, **known: Any
) -> Result:
    arguments = study.arguments(analysis) | known
    result = units.over(family, analysis.function, store=out / "units", **arguments)
    result.save(out / "results" / name)
    return result


def _chained(study: Study, out: Path) -> list[Result]:
    """The matrices of all chains, joined."""
    if not study.chains or KEEPS not in (study.only or (KEEPS,)):
        return []
    run: dict[str, Any] = {"seed": study.seed, "device": study.device, "dtype": study.dtype}
    made = concatenate([
        units.across(
            *(chain.stages, sequential), store=out / "units", name=name, tasks=chain.tasks,
            others=list(chain.others), **run,
        )
        for name, chain in study.chains.items()
    ])  # fmt: skip
    made.save(out / "results" / made.analysis)
    return [made]


def _together(localized: Sequence[tuple[Study, Result]], out: Path) -> list[Result]:
    """What the grafts of several members and tasks have in common, and whether they add up."""
    arms = [set(result.provenance.parameters["arms"]) for _, result in localized]
    arm = next((one for one in ("learned", "movement") if all(one in own for own in arms)), "")
    results = [result for _, result in localized]
    bases = {result.provenance.base["fingerprint"] for result in results}
    if not arm or len(bases) > 1 or sum(len(result.members) for result in results) < 2:
        return []
    made = [overlap(results, arm=arm)]
    made[0].save(out / "results" / made[0].analysis)
    found = [
        (reported(one.task, one.seed), result) for one, result in localized if one.task is not None
    ]
    members = {name: m for one, _ in localized for name, m in one.family.members.items()}
    study = localized[0][0]
    for label, skills in alike(found).items():
        own = Family(study.family.base, {s.member: members[s.member] for s in skills})
        run: dict[str, Any] = {"seed": study.seed, "device": study.device, "dtype": study.dtype}
        made.append(units.across(own, compose, store=out / "units", skills=skills, **run))
        # A label may be a member's name, which is anyone's text.
        name = f"{made[-1].analysis}.{label}".replace("/", "-")
        made[-1].save(out / "results" / name)
    return made
