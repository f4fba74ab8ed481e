"""What to compare: a family with the data its analyses need, what each is called with, and the time
it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pandas as pd

from workbench.catalogue import ANALYSES, Analysis
from workbench.errors import WorkbenchError
from workbench.loaders import Family
from workbench.tasks import PromptSet
from workbench.tasks.batching import read_as
from workbench.tasks.desiderata import Counterfactuals
from workbench.units import Unit

# For `plan`: forward passes over the prompts and texts that an analysis takes.
PASSES = {
    "forgetting.retention": 2,
    "forgetting.interpolate": 13,
    "forgetting.knowledge": 120,
    "forgetting.conjugate": 6,
    "forgetting.probe": 3,
    "forgetting.prune": 25,
    "forgetting.revive": 120,
    "forgetting.verdict": 1,
    "behaviour.tokens": 8,
    "behaviour.generate": 12,
    "behaviour.faithfulness": 30,
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
TOKENS, CHARACTERS = 100, 4  # of a text that is sampled; of a token
STEPS = ".steps"  # how results along a training run are called
PLANNED = tuple(  # ask when long
    f"patching.{name}"
    for name in ("activation", "cross_model", "restore", "circuit", "attribution", "mask")
)
FOLLOWED = ("spectral.intruders", "forgetting.retention")


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
    lessons: prompts to learn it again with. worked: how `faithfulness` takes the task's prompts
    apart, its arguments by name; None where they hold no worked steps.
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
    worked: Mapping[str, Any] | None = None
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
            "capability": self.learned, "worked": self.worked,
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
                f"There is no data for {', '.join(only)}; give prompts of the task (--prompts)."
            )
        return found

    def _narrowed(self, only: Sequence[str]) -> Study:
        replace(self, only=tuple(only))  # an unknown name is told in any case
        kept = tuple(key for key in only if self.only is None or key in self.only)
        also = {name: study._narrowed(only) for name, study in self.also.items()}
        return replace(self, only=kept, also=also)

    def without(self, names: Collection[str]) -> Study:
        """This study and those beside it without these members; chains of any of them go too.
        Raises WorkbenchError where this one has no other."""
        if not names:
            return self
        left = {n: m for n, m in self.family.members.items() if n not in names}
        if not left:
            raise WorkbenchError(f"No member is left without {', '.join(names)}.")
        also = {
            name: study.without(names) for name, study in self.also.items()
            if not set(study.family.members) <= {*names}
        }  # fmt: skip
        chains = {
            name: chain for name, chain in self.chains.items()
            if not set(chain.stages.members) & {*names}
        }  # fmt: skip
        return replace(self, family=Family(self.family.base, left), also=also, chains=chains)

    def first_prompts(self) -> list[str]:
        """The first prompt of every set as the base's tokenizer cuts it."""
        sets = [one for one in (self.task, *self.prompts) if one is not None and len(one)]
        if not sets:
            return []
        words = self.family.base.tokenizer()
        return [f"{one.name}: {read_as(words, one[0])}" for one in sets]

    def arguments(self, analysis: Analysis) -> dict[str, Any]:
        """What one analysis is called with."""
        found: dict[str, Any] = {"device": self.device}
        if {"texts", "task", "model"} & set(analysis.needs):
            found |= {"dtype": self.dtype, "seed": self.seed}
        if "texts" in analysis.needs:
            found["texts"] = self.texts
        if "task" in analysis.needs:
            found["task"] = self.task
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
        if "worked" in analysis.needs:
            found |= self.worked or {}
        if "others" in analysis.needs:
            found["others"] = list(self.prompts)
        if "partners" in analysis.needs:
            found["corrupted"] = self.corrupted
        if "pairs" in analysis.needs:
            found |= {"pairs": self.pairs, "seed": self.seed, "dtype": self.dtype}
        if analysis.key == "forgetting.retention":
            found["prompts"] = [*([self.task] if self.task else []), *self.prompts]
            found["task"] = self.task.name if self.task else None
        if analysis.key in PLANNED:
            found["large"] = True  # a study has a plan of its own
        return found | self.options.get(analysis.key, {})

    def parts(self) -> list[Part]:
        """The analyses of this study and of those beside it."""
        return [
            Part(f"{analysis.key}.{name}" if name else analysis.key, analysis, one, one.family)
            for name, one in {"": self, **self.also}.items()
            for analysis in one.analyses
        ]

    def followed(self) -> list[Part]:
        """What is followed along a training run; of the scores, the fine-tuned task's alone."""
        if self.steps is None:
            return []
        along = replace(self, prompts=())
        return [
            Part(f"{analysis.key}{STEPS}", analysis, along, self.steps)
            for analysis in self.analyses
            if analysis.key in FOLLOWED
        ]


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member and analysis the matrices, the peak of memory in MiB, whether the
    model is run, and minutes on this machine, to a factor of about three. Reads headers only."""
    tables = [_planned(one, *_speeds()) for one in (study, *study.also.values())]
    return pd.concat(tables, ignore_index=True)


def _planned(study: Study, svd: float, matmul: float) -> pd.DataFrame:
    """`plan` of one study. svd, matmul: as `_speeds` gives them."""
    rows = []
    for pair in study.family:
        info = pair.base.weights().info
        shapes = [info[site.name].shape for site in pair.sites() if site.name in pair.comparable]
        weights = sum(math.prod(i.shape) for i in info.values())
        cubic = sum(math.prod(shape) * min(shape) for shape in shapes)
        for analysis in study.analyses:
            runs = bool({"texts", "task", "pairs", "model"} & set(analysis.needs))
            # A decomposition holds W, U, V and the tuned matrix; a run one model in float32 and
            # about as much again for activations and the edited copies.
            largest = max(map(math.prod, shapes), default=0)
            peak = 2 * 4 * weights if runs else 6 * 4 * largest
            passes = PASSES.get(analysis.key, 0) * 2 * weights * _tokens(study, analysis)
            seconds = passes / matmul if runs else 2 * cubic / svd
            row = (pair.name, analysis.key, len(shapes), round(peak / 2**20), runs)
            rows.append((*row, round(seconds / 60, 1)))
    columns = ["member", "analysis", "matrices", "peak_MiB", "runs_model", "minutes"]
    return pd.DataFrame(rows, columns=columns)


def _tokens(study: Study, analysis: Analysis) -> float:
    """About how many tokens of prompts and texts one pass of an analysis reads."""
    needs = set(analysis.needs)
    sets = [study.task] if study.task is not None else []
    if needs & {"others", "groups"} or analysis.key == "forgetting.retention":
        sets += study.prompts
    read = sum(len(text) for one in sets for text in one.texts) / CHARACTERS
    own = [len(text) / CHARACTERS for text in study.texts or ()] or [TOKENS] * 64
    return read + (sum(own) if needs & {"texts", "model"} else 0)


@cache
def _speeds() -> tuple[float, float]:
    """(m n min(m, n) of an SVD, floating-point operations of a product) per second of one thread,
    measured once on the CPU: a tenth of a second. Several threads beside other work would wait for
    each other far longer than they compute."""
    import torch

    size, threads = 256, torch.get_num_threads()
    matrix = torch.randn(size, size)
    found = []
    torch.set_num_threads(1)
    try:
        for work, call in (
            (size**3, lambda: torch.linalg.svd(matrix)),
            (2 * size**3, lambda: matrix @ matrix),
        ):
            call()
            start = time.perf_counter()
            call()
            found.append(work / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return found[0], found[1]


@dataclass(frozen=True)
class Part:
    """One analysis over one family of a study. name: the folder of its Result."""

    name: str
    analysis: Analysis
    study: Study
    family: Family

    def units(self, **known: Any) -> list[Unit]:
        arguments = self.study.arguments(self.analysis) | known
        return [Unit(pair, self.analysis.function, arguments) for pair in self.family]
