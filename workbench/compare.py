"""LoRA against full fine-tuning: the catalogue over a family, and one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import figures, units
from workbench.catalogue import ANALYSES, Analysis
from workbench.loaders import Family
from workbench.reports import report
from workbench.results import Result
from workbench.tasks import PromptSet


@dataclass(frozen=True)
class Study:
    """What to compare. task: prompts of the fine-tuned task; without it only the weights and the
    loss are compared. prompts: further prompt sets, e.g. of pre-training. texts: held-out
    pre-training-like text; None takes samples of the base. steps: checkpoints along a training
    run. options: analysis key -> arguments other than the defaults."""

    family: Family
    task: PromptSet | None = None
    prompts: Sequence[PromptSet] = ()
    texts: Sequence[str] | None = None
    steps: Family | None = None
    device: str = "cpu"
    seed: int = 0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def analyses(self) -> list[Analysis]:
        """The catalogue, less what this study has no data for."""
        return [a for a in ANALYSES if self.task is not None or "task" not in a.needs]

    def arguments(self, analysis: Analysis) -> dict[str, Any]:
        """What one analysis is called with."""
        found: dict[str, Any] = {"device": self.device}
        if "texts" in analysis.needs:
            found |= {"texts": self.texts, "seed": self.seed}
        if "task" in analysis.needs:
            found["task"] = self.task
        if analysis.key == "forgetting.retention":
            found["prompts"] = [*([self.task] if self.task else []), *self.prompts]
            found["task"] = self.task.name if self.task else None
        return found | self.options.get(analysis.key, {})


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member and analysis the matrices, the peak of memory in MiB, and whether
    the model is run. Nothing but headers is read."""
    rows = []
    for pair in study.family:
        info = pair.base.weights().info
        sizes = [
            _count(info[site.name].shape) for site in pair.sites() if site.name in pair.comparable
        ]
        model = sum(_count(i.shape) for i in info.values()) * 4
        for analysis in study.analyses:
            runs = "texts" in analysis.needs
            # A decomposition holds W, U, V and the tuned matrix; a run one model in float32 and
            # about as much again for activations and the edited copies.
            peak = 2 * model if runs else 6 * 4 * max(sizes, default=0)
            rows.append((pair.name, analysis.key, len(sizes), round(peak / 2**20), runs))
    columns = ["member", "analysis", "matrices", "peak_MiB", "runs_model"]
    return pd.DataFrame(rows, columns=columns)


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
        results += [
            _over(study.steps, a, study, out, f"{a.key}.steps")
            for a in study.analyses
            if a.key in wanted
        ]
    figures.save_all(results, out / "figures")
    name = title or "What did fine-tuning do to this model?"
    return report(results, out / "report.html", title=name, preflight=preflight)


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


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
