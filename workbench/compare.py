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
from workbench.loaders import Family
from workbench.reports import report
from workbench.results import Result
from workbench.tasks import PromptSet

# For `plan`: forward passes over every prompt and text, of about so many tokens each.
PASSES = {
    "forgetting.retention": 2,
    "spectral.scale": 50,
    "tuco.contribution": 3,
    "tuco.scaling": 16,
}
TOKENS = 100


@dataclass(frozen=True)
class Study:
    """What to compare. task: prompts of the fine-tuned task; without it only the weights and the
    loss are compared. prompts: further prompt sets, e.g. of pre-training. texts: held-out
    pre-training-like text; None takes samples of the base. steps: checkpoints along a training
    run. groups: prompts to be told apart by TuCo, the fine-tuning-like ones first; None takes
    task and prompts. dtype: of every run of a model; decompositions are float32. options: analysis
    key -> arguments other than the defaults. only: keys of the analyses to run; none for all."""

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
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [a.key for a in ANALYSES]
        unknown = [key for key in self.only if key not in known]
        if unknown:
            raise WorkbenchError(f"Unknown analysis {unknown[0]!r}; there are {', '.join(known)}.")

    @property
    def analyses(self) -> list[Analysis]:
        """The catalogue, or `only` these of it, less what this study has no data for."""
        found = [a for a in ANALYSES if not self.only or a.key in self.only]
        found = [a for a in found if self.task is not None or "task" not in a.needs]
        if not found:
            raise WorkbenchError(f"{', '.join(self.only)} needs prompts of the task; give --task.")
        return found

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
        if analysis.key == "forgetting.retention":
            found["prompts"] = [*([self.task] if self.task else []), *self.prompts]
            found["task"] = self.task.name if self.task else None
        return found | self.options.get(analysis.key, {})


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member and analysis the matrices, the peak of memory in MiB, whether the
    model is run, and minutes on this machine, to a factor of about three. Reads headers only."""
    svd, matmul = _speeds()
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
            runs = bool({"texts", "task"} & set(analysis.needs))
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
    preflight = preflights(study.family)
    results = [
        _over(study.family, analysis, study, out, analysis.key) for analysis in study.analyses
    ]
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


def _over(family: Family, analysis: Analysis, study: Study, out: Path, name: str) -> Result:
    arguments = study.arguments(analysis)
    result = units.over(family, analysis.function, store=out / "units", **arguments)
    result.save(out / "results" / name)
    return result
