"""Intruder dimensions and forgetting, arXiv 2410.21228: what is read of its claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.findings.equivalence import ALIKE, equivalence
from workbench.findings.measures import BEYOND_CHANCE, MEASURES, Measure
from workbench.findings.pareto import pareto
from workbench.findings.readings.reading import (
    COST,
    FEW,
    LOW_RANK,
    Reading,
    above,
    nearest_scale,
    of,
    ranked,
    reading,
)
from workbench.findings.sides import Side, compared, sides_of
from workbench.results.recipes import recipes, swept
from workbench.results.result import Result
from workbench.stats import Interval, difference

BEYOND = "loss_change_of_top_beyond"
SCALED = ("loss_change", "score_change", BEYOND)


def intruders(results: Sequence[Result]) -> Iterator[Reading]:
    """A LoRA's share beyond that of changes of its spectrum in random directions, where full
    fine-tuning's is known to be below FEW."""
    beyond = {}
    for result in of(results, "spectral.intruders"):
        beyond |= {side.name: side for side in sides_of(BEYOND_CHANCE, result)}
    for row, own, full in _low_ranks(results, "intruders"):
        # A Result without a null says nothing of chance.
        side = beyond.get(row["member"])
        more = (
            Interval(math.nan, math.nan, math.nan, 0) if side is None else side.whole(BEYOND_CHANCE)
        )
        holds = True if row["low"] > 0 and more.low > 0 and full["high"] < FEW else None
        none = row["high"] < 0 or more.high < 0 or own["high"] < FEW or full["low"] > FEW
        holds = False if none else holds
        yield reading(row["member"], own, float(own["baseline"]), holds, runs=row["runs"])


def forgets_more(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _forgets(results, 1)


def forgets_less(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _forgets(results, -1)


def _forgets(results: Sequence[Result], sign: int) -> Iterator[Reading]:
    """The difference, where the scores are known to be alike: others learned something else."""
    scores = {row["member"]: row["says"] for row, _, _ in _low_ranks(results, "score")}
    for row, _, _ in _low_ranks(results, "forgetting"):
        low, high = sorted((sign * row["low"], sign * row["high"]))
        holds = above(low, high, 0) if scores.get(row["member"]) == ALIKE else None
        yield reading(row["member"], row, math.nan, holds, runs=row["runs"])
    for row in _along_rates(results):
        low, high = sorted((sign * row["low"], sign * row["high"]))
        at = f"at a score of {row['x']:.2f}"
        what = f"{row['member']}, over learning rates"
        yield reading(what, row, math.nan, above(low, high, 0), at, runs=row["runs"])


def _along_rates(results: Sequence[Result]) -> Iterator[Any]:
    """The difference of the curves of low-rank LoRAs, at the score where curves are read."""
    made = pareto(results)
    if made is None or not made.has("difference"):
        return
    low = {n for n, a in ranked([made]) if a["rank"] <= LOW_RANK}
    rows = made.metric("difference")
    for _, row in rows[rows["member"].isin(low) & rows["read"].eq(True)].iterrows():
        yield row


def _low_ranks(results: Sequence[Result], measure: str) -> Iterator[tuple[Any, Any, Any]]:
    """(difference, own row, the full fine-tune's row) of LoRAs of low rank. Results of one recipe
    at several learning rates are left out: they compare along their curves."""
    (analysis,) = {one.analysis for one in MEASURES if one.name == measure}
    made = equivalence([r for r in of(results, analysis) if not swept(r.provenance.members)])
    if made is None:
        return
    table, low = made.table, {n for n, a in ranked([made]) if a["rank"] <= LOW_RANK}
    own = table[(table["metric"] == "measure") & (table["measure"] == measure)].set_index("member")
    rows = table[(table["metric"] == "difference") & (table["measure"] == measure)]
    for row in rows[rows["member"].isin(low)].to_dict("records"):
        yield row, own.loc[row["member"]], own.loc[row["versus"]]


def by_rank(results: Sequence[Result]) -> Iterator[Reading]:
    """The loss of the lowest rank less that of the highest, in each Result, of the recipes that
    have several runs where any have."""
    measure = _measure("forgetting")
    for result in of(results, "forgetting.retention"):
        sides = _ladder(measure, result)
        if len(sides) > 1 and not swept(result.provenance.members):
            row = compared(measure, sides[0], sides[-1])
            what = f"{sides[0].name} less {sides[-1].name}"
            holds = above(row["low"], row["high"], 0)
            yield reading(what, row, math.nan, holds, runs=row["runs"])


def _measure(name: str) -> Measure:
    return next(one for one in MEASURES if one.name == name)


def _ladder(measure: Measure, result: Result) -> list[Side]:
    """LoRAs by rising rank, one recipe a rank."""
    about = result.provenance.members
    runs = recipes(about)
    sides = [s for s in sides_of(measure, result) if about[runs[s.name][0]].get("rank")]
    several = [side for side in sides if len(side.rows) > 1] or sides
    by = {about[runs[side.name][0]]["rank"]: side for side in reversed(several)}
    return [by[rank] for rank in sorted(by)]


def _scaled(results: Sequence[Result]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(member, scale, "arm metric" -> row) at the scale nearest to the paper's 0.7."""
    for result in of(results, "spectral.scale"):
        table = result.table
        at = nearest_scale(table["x"].dropna().unique())
        if at is None:
            continue
        rows = table[(table["x"] == at) & table["metric"].isin(SCALED)]
        rows = rows[rows["arm"].isin(("top", "neighbour"))]
        for member, own in rows.groupby("member", sort=False):
            found = {
                f"{row['arm']} {row['metric']}": row
                for row in own.to_dict("records")
                if row["metric"].startswith("loss") == (row["task"] == "pretraining")
            }
            if {"top loss_change", "neighbour loss_change"} <= set(found):
                yield str(member), at, found


def scaling_loss(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, rows in _scaled(results):
        top, beside = rows["top loss_change"], rows["neighbour loss_change"]
        yield reading(member, top, beside["value"], _takes_back(rows), f"scale {at:g}")


def _takes_back(rows: dict[str, Any]) -> bool | None:
    """Whether the loss falls, and falls by more than with the neighbour: text by text, in Results
    that lack this by the difference of the two intervals."""
    top, beside = rows["top loss_change"], rows["neighbour loss_change"]
    paired = rows.get(f"neighbour {BEYOND}")
    more = Interval.of(paired) if paired else difference(Interval.of(top), Interval.of(beside))
    if top["high"] < 0 and more.high < 0:
        return True
    return False if top["low"] > 0 or more.low > 0 else None


def scaling_score(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose forgetting was taken back."""
    for member, at, rows in _scaled(results):
        top, beside = rows.get("top score_change"), rows.get("neighbour score_change")
        if _takes_back(rows) and top and beside:
            holds = above(top["low"], top["high"], -COST)
            yield reading(member, top, beside["value"], holds, f"scale {at:g}")
