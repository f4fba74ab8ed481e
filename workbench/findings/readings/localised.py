"""Is a LoRA's forgetting localised to its intruders, arXiv 2410.21228v3? What is read of that.

Forgetting F is the rise of the loss on pre-training-like text. Scaling the top intruder of every
matrix by lambda takes some of it back, and so does scaling the whole change by as much in norm,
which is what any smaller step from the base would do (arm shrink of `spectral.scale`). Forgetting
lies in the intruders as far as they take back more than that at the same score on the task:

    (L_shrink - L_top) / F        share of the forgetting, L: loss on the same texts
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workbench.findings.readings.reading import COST, Reading, above, nearest_scale, of, reading
from workbench.results.result import Result
from workbench.stats import Interval, difference

Row = dict[str, Any]


def localised(results: Sequence[Result]) -> Iterator[Reading]:
    """The share that the top intruders at the scale nearest to 0.7 take back beyond the shrink at
    that scale. Of LoRAs whose forgetting is known to be above 0, on the same texts; decides nothing
    unless top's score is known to be no lower than shrink's by COST.

    The control is the shrink's own share. The interval is of the losses alone: F, known to be above
    0, moves it without moving its sign.
    """
    for result in of(results, "spectral.scale"):
        for member, about in result.provenance.members.items():
            forgotten = _forgotten(results, result, member)
            if about.get("kind") != "lora" or forgotten is None:
                continue
            table = result.table[result.table["member"] == member]
            top, shrink = (_arm(table, arm) for arm in ("top", "shrink"))
            at = nearest_scale(x for x in top if x in shrink)
            if at is not None:
                yield _read(member, f"scale {at:g}", forgotten, top[at], shrink[at])


def _read(member: str, where: str, forgotten: float, top: Row, shrink: Row) -> Reading:
    unit = top["loss"]["baseline"] / 100 / forgotten  # a loss change is in % of the loss at scale 1
    more, score = (_beyond(top[part], shrink[part]) for part in ("loss", "score"))
    low, value, high = sorted(-edge * unit for edge in more[:3])
    same = score.low > -COST
    found = Interval(value, low, high, more.n)._asdict()
    control = float(-shrink["loss"]["value"] * unit)
    return reading(member, found, control, above(low, high, 0) if same else None, where)


def _beyond(top: Any, shrink: Any) -> Interval:
    """What top changes more than shrink does, item by item where the Result has that."""
    found = shrink.get("beyond")
    return difference(Interval.of(top), Interval.of(shrink)) if found is None else found


def _arm(table: pd.DataFrame, arm: str) -> dict[float, Row]:
    """Scale below 1 -> its rows of the loss on texts and of the task's score, if it has both."""
    own = table[(table["arm"] == arm) & (table["x"] < 1)]
    texts = own["task"] == "pretraining"
    losses, scores = (_change(own[here], m) for here, m in ((texts, "loss"), (~texts, "score")))
    return {
        x: {"loss": losses[x], "score": scores[x]}
        for x in losses.keys() & scores.keys()
        if math.isfinite(scores[x]["value"])
    }


def _change(rows: pd.DataFrame, metric: str) -> dict[float, Row]:
    """Scale -> the change of a metric, and as `beyond` what top changes more."""
    beyond = rows[rows["metric"] == f"{metric}_change_of_top_beyond"].set_index("x")
    changes = rows[rows["metric"] == f"{metric}_change"].set_index("x")
    return {
        float(x): dict(row) | ({"beyond": Interval.of(beyond.loc[x])} if x in beyond.index else {})
        for x, row in changes.iterrows()
    }


def _forgotten(results: Sequence[Result], scaled: Result, member: str) -> float | None:
    """The rise of the loss of the same checkpoint on the same texts, nats a token; None where that
    was not measured or may be nothing."""
    own = _mark(scaled, member)
    for result in of(results, "forgetting.retention"):
        if _mark(result, member) != own:
            continue
        rows = result.table[result.table["metric"] == "loss_change"]
        rows = rows[(rows["member"] == member) & (rows["task"] == "pretraining")]
        if len(rows) and rows["low"].iloc[0] > 0:
            return float(rows["value"].iloc[0])
    return None


def _mark(result: Result, member: str) -> tuple[Any, Any]:
    about = result.provenance.members.get(member, {})
    return about.get("fingerprint"), result.provenance.parameters.get("texts")
