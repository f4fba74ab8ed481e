"""Which edit gives back more of what was forgotten than a smaller change does, at an equal score?

The strength of every edit is chosen on one half of the prompts and texts, and it is read on the
other half (`edits.repair`): how much lower the loss on pre-training-like text is than at the
alpha that was chosen there, theta_0 + alpha (theta_1 - theta_0), which any repair has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from workbench.findings.readings.reading import MARGIN, Reading, above, of, reading
from workbench.results.result import Result

Read = Callable[[Sequence[Result]], Iterator[Reading]]


def smaller(results: Sequence[Result]) -> Iterator[Reading]:
    """The share of the forgetting that the chosen alpha gives back; decides nothing unless the
    score is known to stay."""
    for member, rows in _repaired(results):
        own = rows["alpha"]
        low, high = own["regained"]["low"], own["regained"]["high"]
        holds = above(low, high, 0) if _kept(own) else None
        yield reading(member, own["regained"], 0.0, holds, _at(own["regained"]))


def beyond(arm: str) -> Read:
    """By how much more an edit of this kind lowers the loss than the chosen alpha, nats a token;
    decides nothing unless its score is known to stay. An edit that changes nothing, where none that
    keeps the score helps, gives back less than alpha by what alpha gives."""

    def read(results: Sequence[Result]) -> Iterator[Reading]:
        for member, rows in _repaired(results):
            if arm not in rows:
                continue
            own, alpha = rows[arm], rows["alpha"]
            more = own["loss_beyond"]
            # 0 less, since no reading is a -0.
            turned = {"value": 0 - more["value"], "low": 0 - more["high"], "high": 0 - more["low"]}
            found = turned | {"n": more["n"]}
            holds = above(found["low"], found["high"], 0) if _kept(own) else None
            yield reading(member, found, 0 - alpha["loss_change"]["value"], holds, _at(more))

    return read


def _repaired(
    results: Sequence[Result],
) -> Iterator[tuple[str, dict[str, dict[str, pd.Series]]]]:
    """(member, arm -> what was found at its chosen strength), where something was forgotten."""
    for result in of(results, "edits.repair"):
        table = result.table[result.table["metric"].str.startswith("chosen_")]
        own = table["task"].eq("pretraining") | table["own"].eq(True)
        table = table[own].assign(metric=table["metric"].str.removeprefix("chosen_"))
        for member, rows in table.groupby("member", sort=False):
            found = {
                str(arm): {str(row["metric"]): row for _, row in some.iterrows()}
                for arm, some in rows.groupby("arm", sort=False)
            }
            if math.isfinite(found["alpha"]["regained"]["value"]):
                yield str(member), found


def _kept(own: dict[str, pd.Series]) -> bool:
    return bool(own["score_change"]["low"] > -MARGIN)


def _at(row: pd.Series) -> str:
    return f"strength {row['x']:g}" if math.isfinite(row["x"]) else "the whole change"
