"""One thing seen of a claim, and what the files beside this one share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from workbench.findings.measures import MEASURES
from workbench.results.result import Result

LOW_RANK = 16  # up to which arXiv 2410.21228 finds intruders throughout
FEW = 0.01  # of the vectors: not worth being called many
# Of a score: a change that would not matter.
(MARGIN,) = (one.margin or 0.0 for one in MEASURES if one.name == "score")
SCALE, NEAR = 0.7, 0.21  # of the top intruders, arXiv 2410.21228v3, and how far one may lie from it
COST = 5  # % of the score that would not matter there
MISSING: dict[str, Any] = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}


class Reading(NamedTuple):
    """One thing seen of a claim. member: with the task where it matters; at: where in it; control:
    the null's value; holds: None where it decides nothing; runs: where it is of recipes, training
    runs of the one that has fewest."""

    member: str
    at: str
    value: float
    low: float
    high: float
    n: int
    control: float
    holds: bool | None
    runs: int = 1


def of(results: Sequence[Result], analysis: str) -> list[Result]:
    return [result for result in results if result.analysis == analysis]


def reading(
    member: str, row: Any, control: float, holds: bool | None, at: str = "", runs: int = 1
) -> Reading:
    seen = (row["value"], row["low"], row["high"], int(row["n"]))
    return Reading(member, at, *seen, control, holds, runs)


def above(low: float, high: float, line: float) -> bool | None:
    """Whether an interval lies above a line; None where it holds it."""
    return True if low > line else False if high < line else None


def nearest_scale(tried: Iterable[float]) -> float | None:
    """The scale nearest to the paper's; None where none is near."""
    near = [float(x) for x in tried if abs(x - SCALE) < NEAR]
    return min(near, key=lambda x: abs(x - SCALE), default=None)


def ranked(results: Sequence[Result]) -> list[tuple[str, Any]]:
    members = {n: a for r in results for n, a in r.provenance.members.items()}
    lora = [(n, a) for n, a in members.items() if a.get("kind") == "lora" and a.get("rank")]
    return sorted(lora, key=lambda one: one[1]["rank"])
