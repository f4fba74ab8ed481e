"""How right is one answer? Its scores of places against the true ones, and its verdict.

    auroc              the chance that a true place has a higher score than another, ties half
    average_precision  the mean precision at the true places, from the highest score down
    rank               of the true place that is found last, so how many places must be looked at
                       (ties count half)

Both of the first are undefined where no place, or every place, is true. A place that a method says
nothing of ranks below all that it scores: silence is an answer. Misleading: among few places an
AUROC is 1 by luck as often as one in their number, which the intervals show.

`top` is the highest score, in the method's own unit: only its comparison with that of a phantom of
the same pair says anything. A method that gives verdicts alone has a false positive where it claims
what is not there: something still known where it was erased, a change where the answers are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.lab.known import Known, Place
from workbench.scoreboard.method import Answer
from workbench.stats import auc

Row = dict[str, Any]
NOTHING = ("erased", "kept")  # verdicts beside which any other claims what is not there


def rows(known: Known, answer: Answer) -> Iterator[Row]:
    """A row for every number that this answer has against this truth: place, metric, value, low,
    high, n (places) and baseline (what a coin gives)."""
    for kind, scores in answer.places.items():
        if kind in known.places:
            values, true = against(known, kind, scores)
            if 0 < true.sum() < len(true):
                yield from _of_places(kind, values, true)
    for kind, scores in answer.places.items():
        # Of a phantom nothing is true; elsewhere a high score says something where something is.
        if not known.places.get(kind) and known.kind != "phantom":
            continue
        if told := [value for value in scores.values() if np.isfinite(value)]:
            yield {"place": kind, "metric": "top", "value": max(told), "n": len(told)}
    if answer.verdict and known.verdict:
        right = float(answer.verdict == known.verdict)
        yield {"metric": "verdict_right", "value": right, "n": 1, "says": answer.verdict}
        if answer.finds is None and known.verdict in NOTHING:
            claimed = float(not right and answer.verdict != "undecided")
            yield {"metric": "false_positive", "value": claimed, "n": 1, "says": answer.verdict}
    if answer.finds is not None:
        name = "found" if known.learned else "false_positive"
        yield {"metric": name, "value": float(answer.finds), "n": 1}


def against(
    known: Known, kind: str, scores: Mapping[Place, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(places,) scores and whether each is true; places with no score, or NaN, are below all."""
    true = known.places[kind]
    every = known.universe.get(kind, {*scores} | {*true})
    places = sorted(every, key=str)
    values = np.array([scores.get(place, np.nan) for place in places], dtype=float)
    told = values[np.isfinite(values)]
    floor = told.min() - 1 if len(told) else 0.0
    return np.where(np.isnan(values), floor, values), np.array([p in true for p in places])


def _of_places(kind: str, values: NDArray[np.float64], true: NDArray[np.bool_]) -> Iterator[Row]:
    from sklearn.metrics import average_precision_score

    n, share = len(true), float(true.mean())
    found = auc(values[true], values[~true])
    yield {
        "place": kind, "metric": "auroc", "value": found.value, "low": found.low,
        "high": found.high, "n": n, "baseline": 0.5,
    }  # fmt: skip
    precision = float(average_precision_score(true, values))
    about = {"place": kind, "n": n}
    yield about | {"metric": "average_precision", "value": precision, "baseline": share}
    last = values[true].min()
    above, beside = int((values > last).sum()), int((values == last).sum())
    # By luck the last of t among n places is at t (n + 1) / (t + 1).
    chance = true.sum() * (n + 1) / (true.sum() + 1)
    rank = above + (beside + 1) / 2
    yield about | {"metric": "rank", "value": rank, "baseline": float(chance)}
