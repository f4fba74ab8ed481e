"""Intruder dimensions and forgetting, arXiv 2410.21228: what is read of its claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.findings.equivalence import DIFFERENT, MEASURES, equivalence
from workbench.findings.readings.reading import (
    FEW,
    LOW_RANK,
    Reading,
    above,
    of,
    ranked,
    reading,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference


def intruders(results: Sequence[Result]) -> Iterator[Reading]:
    """A LoRA's share where full fine-tuning's is known to be below FEW."""
    for row, own, full in _low_ranks(results, "intruders"):
        holds = True if row["low"] > 0 and full["high"] < FEW else None
        none = row["high"] < FEW or full["low"] > FEW
        yield reading(row["member"], own, float(own["baseline"]), False if none else holds)


def forgets_more(results: Sequence[Result]) -> Iterator[Reading]:
    """The difference, unless the scores are known to differ: those learned something else."""
    scores = {row["member"]: row["says"] for row, _, _ in _low_ranks(results, "score")}
    for row, _, _ in _low_ranks(results, "forgetting"):
        same = scores.get(row["member"]) != DIFFERENT
        yield reading(
            row["member"], row, math.nan, above(row["low"], row["high"], 0) if same else None
        )


def _low_ranks(results: Sequence[Result], measure: str) -> Iterator[tuple[Any, Any, Any]]:
    """(difference, own row, the full fine-tune's row) of LoRAs of low rank."""
    (analysis,) = {one.analysis for one in MEASURES if one.name == measure}
    made = equivalence(of(results, analysis))
    if made is None:
        return
    table, low = made.table, {n for n, a in ranked(results) if a["rank"] <= LOW_RANK}
    own = table[(table["metric"] == "measure") & (table["measure"] == measure)].set_index("member")
    rows = table[(table["metric"] == "difference") & (table["measure"] == measure)]
    for row in rows[rows["member"].isin(low)].to_dict("records"):
        yield row, own.loc[row["member"]], own.loc[row["versus"]]


def by_rank(results: Sequence[Result]) -> Iterator[Reading]:
    """The loss of the lowest rank less that of the highest, in each Result."""
    for result in of(results, "forgetting.retention"):
        rows = result.table[result.table["metric"] == "loss_change"].set_index("member")
        ladder = [(name, about["rank"]) for name, about in ranked([result]) if name in rows.index]
        if not ladder or ladder[0][1] == ladder[-1][1]:
            continue
        first, last = (Interval.of(rows.loc[name]) for name, _ in (ladder[0], ladder[-1]))
        found = difference(first, last)
        what = f"{ladder[0][0]} less {ladder[-1][0]}"
        yield reading(what, found._asdict(), math.nan, above(found.low, found.high, 0))


def _scaled(results: Sequence[Result]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(member, scale, "arm metric" -> row) at the scale nearest to the paper's 0.7."""
    for result in of(results, "spectral.scale"):
        table = result.table
        tried = [x for x in table["x"].dropna().unique() if abs(x - 0.7) < 0.21]
        if not tried:
            continue
        at = min(tried, key=lambda x: abs(x - 0.7))
        rows = table[(table["x"] == at) & table["metric"].isin(("loss_change", "score_change"))]
        rows = rows[rows["arm"].isin(("top", "neighbour"))]
        for member, own in rows.groupby("member", sort=False):
            found = {
                f"{row['arm']} {row['metric']}": row
                for row in own.to_dict("records")
                if (row["metric"] == "loss_change") == (row["task"] == "pretraining")
            }
            if {"top loss_change", "neighbour loss_change"} <= set(found):
                yield str(member), float(at), found


def scaling_loss(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, rows in _scaled(results):
        top, beside = rows["top loss_change"], rows["neighbour loss_change"]
        yield reading(member, top, beside["value"], _takes_back(top, beside), f"scale {at:g}")


def _takes_back(top: Any, beside: Any) -> bool | None:
    """Whether the loss falls, and falls by more than with the neighbour."""
    more = difference(Interval.of(top), Interval.of(beside))
    if top["high"] < 0 and more.high < 0:
        return True
    return False if top["low"] > 0 or more.low > 0 else None


def scaling_score(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose forgetting was taken back."""
    for member, at, rows in _scaled(results):
        taken = _takes_back(rows["top loss_change"], rows["neighbour loss_change"])
        top, beside = rows.get("top score_change"), rows.get("neighbour score_change")
        if taken and top and beside:
            holds = above(top["low"], top["high"], -5)
            yield reading(member, top, beside["value"], holds, f"scale {at:g}")
