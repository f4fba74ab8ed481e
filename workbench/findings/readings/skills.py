"""Sparse grafts, arXiv 2302.06600: what is read of its claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workbench.findings.measures import ARMS
from workbench.findings.readings.reading import (
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference


def _gains(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(member, gains of grafts by arm and share) of each Result, of its own task."""
    for result in of(results, "skills.localize"):
        table = result.table
        rows = table[table["metric"].isin(("gain", "ece")) & table["own"].eq(True)]
        for member, own in rows.groupby("member", sort=False):
            yield str(member), own


def _at(rows: pd.DataFrame, metric: str, arm: str, share: float) -> Any:
    own = rows[(rows["metric"] == metric) & (rows["arm"] == arm)]
    own = own[(own["sparsity"] - share).abs() < 1e-12]
    return own.iloc[0] if len(own) else None


def sparse(results: Sequence[Result]) -> Iterator[Reading]:
    """The largest graft of at most a hundredth, learned where one was."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "gain") & (rows["sparsity"] <= 0.01)].dropna(subset="value")
        arm = next((a for a in ARMS if (own["arm"] == a).any()), None)
        if arm is None:
            continue
        own = own[own["arm"] == arm]
        best = own.loc[own["sparsity"].idxmax()]
        null = _at(rows, "gain", "random", best["sparsity"])
        control = math.nan if null is None else null["value"]
        holds = above(best["low"], best["high"], 0.95)
        yield reading(member, best, control, holds, f"{best['sparsity']:.2%}")


def learned(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _gains(results):
        ours, theirs = (_at(rows, "gain", arm, 0.1) for arm in ARMS)
        if ours is not None and theirs is not None:
            found = difference(Interval.of(ours), Interval.of(theirs))
            yield reading(member, found._asdict(), math.nan, above(found.low, found.high, 0))


def calibration(results: Sequence[Result]) -> Iterator[Reading]:
    """The largest learned graft's error less the tuned model's, each beyond what perfect
    calibration would give with so few prompts."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "ece") & (rows["arm"] == "learned")]
        tuned = rows[(rows["metric"] == "ece") & (rows["arm"] == "tuned")]
        if own.empty or tuned.empty:
            continue
        graft = own.loc[own["sparsity"].idxmax()]
        found = difference(_excess(graft), _excess(tuned.iloc[0]))
        below = above(-found.high, -found.low, 0)
        yield reading(member, found._asdict(), math.nan, below, f"{graft['sparsity']:.2%}")


def _excess(row: Any) -> Interval:
    found = Interval.of(row)
    value, low, high = (edge - row["baseline"] for edge in found[:3])
    return Interval(value, low, high, found.n)
