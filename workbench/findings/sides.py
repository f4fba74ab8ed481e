"""A recipe as a Result measured it: the mean of its runs, how far they lie apart, and how it
differs from another recipe.

Items that both sides have are compared one by one, after the mean over each side's runs; what the
runs of a recipe differ by is then added to the interval (`stats.over_runs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from workbench.findings.measures import Measure, Row
from workbench.results.recipes import recipes
from workbench.results.result import Result
from workbench.stats import (
    Interval,
    between_runs,
    bootstrap,
    change,
    difference,
    over_runs,
    ratios,
    share,
)


@dataclass(frozen=True)
class Side:
    """One recipe as a Result measured it. rows: of its runs; items: (run, item) -> value and
    weight, None where the measure has none of every run; same: the fingerprints of its runs."""

    name: str
    kind: str | None
    rows: list[Row]
    items: pd.DataFrame | None
    same: frozenset[Any]

    @property
    def n(self) -> int:
        """The items of the run that has fewest; 0 where they are not known."""
        return min(0 if pd.isna(row["n"]) else int(row["n"]) for row in self.rows)

    @property
    def values(self) -> list[float]:
        """(runs,)"""
        return [row["value"] for row in self.rows]

    @property
    def mean(self) -> pd.DataFrame:
        """(item) -> value, the mean over the runs, and weight."""
        assert self.items is not None
        return self.items.groupby("item", sort=False)[["value", "weight"]].mean()

    def whole(self, measure: Measure) -> Interval:
        """The mean of the runs with its interval over items and runs."""
        own = self.own(measure)
        if measure.share:
            found = over_runs(own, self.values)
            low, high = (min(max(edge, 0.0), 1.0) for edge in (found.low, found.high))
            return found if math.isnan(found.low) else found._replace(low=low, high=high)
        if not measure.ratio:
            return over_runs(own, self.values)
        with np.errstate(invalid="ignore", divide="ignore"):
            return _power(over_runs(_logarithm(own), np.log(self.values)))

    def own(self, measure: Measure) -> Interval:
        """The mean of the runs with its interval over items alone."""
        if len(self.rows) == 1:
            return Interval.of(self.rows[0])
        if self.items is None or measure.ratio:
            value, low, high = (
                fmean(row[k] for row in self.rows) for k in ("value", "low", "high")
            )
            return Interval(value, low, high, self.n)
        mean = self.mean
        return share(mean["value"]) if measure.score else bootstrap(mean["value"], mean["weight"])


def sides_of(measure: Measure, result: Result) -> list[Side]:
    """The recipes of a Result, in its order."""
    about = result.provenance.members
    rows = {str(row["member"]): row for row in measure.read(result)}
    items = measure.items(result) if measure.items else pd.DataFrame(columns=["member"])
    # Items that are drawn in clusters do not stand alone, so nothing is compared one by one.
    alone = not result.provenance.parameters.get("cluster")
    made = []
    for name, runs in recipes(about).items():
        kept = [run for run in runs if run in rows]
        if not kept:
            continue
        own = items[items["member"].isin(kept)]
        whole = alone and len(own) > 0 and _crossed(own, len(kept))
        same = frozenset(about[run].get("fingerprint") for run in kept)
        called = name if len(kept) > 1 or len(runs) > 1 else kept[0]
        made.append(
            Side(
                called,
                about[kept[0]].get("kind"),
                [rows[run] for run in kept],
                own if whole else None,
                same,
            )
        )
    return made


def _crossed(items: pd.DataFrame, runs: int) -> bool:
    """Whether every run has every item."""
    return bool((items.groupby("item")["member"].nunique() == runs).all())


def measured(measure: Measure, side: Side) -> Iterator[Row]:
    """Rows "measure" and, of several runs, "spread" of a Result's table."""
    runs = len(side.rows)
    about = {"metric": "measure", "measure": measure.name, "member": side.name, "runs": runs}
    if runs == 1:
        yield about | side.rows[0] | {"member": side.name}
        return
    found = side.whole(measure)
    beside = [row["baseline"] for row in side.rows]
    yield about | found._asdict() | {"baseline": float(np.mean(beside))}
    spread = between_runs(side.values)
    yield about | spread._asdict() | {"metric": "spread"}


def compared(measure: Measure, side: Side, other: Side) -> Row:
    """A row "difference" of a Result's table: side less other, or of sizes their ratio."""
    ours, theirs = (np.asarray(one.values, dtype=float) for one in (side, other))
    if measure.ratio:
        with np.errstate(invalid="ignore", divide="ignore"):
            ours, theirs = np.log(ours), np.log(theirs)
    found = over_runs(_between(measure, side, other), ours, theirs)
    return {
        "metric": "difference", "measure": measure.name, "member": side.name,
        "runs": min(len(side.rows), len(other.rows)), "versus": other.name,
        "arm": "ratio" if measure.ratio else "difference",
        "baseline": 1.0 if measure.ratio else 0.0,
    } | (_power(found) if measure.ratio else found)._asdict()  # fmt: skip


def _between(measure: Measure, side: Side, other: Side) -> Interval:
    """side - other over items alone, of ratios their logarithm."""
    n = min(side.n, other.n)
    if side.same == other.same and None not in side.same:  # a model against itself
        return Interval(0.0, 0.0, 0.0, n)
    if side.items is None or other.items is None:
        return _independent(measure, side, other)
    ours, theirs = side.mean, other.mean
    if set(ours.index) != set(theirs.index):
        return _independent(measure, side, other)
    theirs = theirs.reindex(ours.index)
    if measure.ratio:
        return _logarithm(ratios([ours["value"]], [theirs["value"]]).first)
    if measure.score:
        return change(theirs["value"], ours["value"])
    weight = (ours["weight"] + theirs["weight"]) / 2
    return bootstrap(ours["value"] - theirs["value"], weight)


def _independent(measure: Measure, side: Side, other: Side) -> Interval:
    ours, theirs = side.own(measure), other.own(measure)
    if measure.ratio:
        ours, theirs = _logarithm(ours), _logarithm(theirs)
    return difference(ours, theirs)


def _logarithm(side: Interval) -> Interval:
    value, low, high = (math.log(edge) if edge > 0 else math.nan for edge in side[:3])
    return Interval(value, low, high, side.n)


def _power(side: Interval) -> Interval:
    with np.errstate(over="ignore"):  # two runs that lie far apart say nothing of their ratio
        value, low, high = (float(np.exp(edge)) for edge in side[:3])
    return Interval(value, low, high, side.n)
