"""What every method is like over all truths: means, shares, and what is beyond the norm of the
change and beyond the pair's own phantom. `board` says what each of them is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.scoreboard import outside
from workbench.scoreboard.scores import Row
from workbench.stats import bootstrap, share, wilson

ALL = "all"
PHANTOM = "phantom of "
MEANS = ("auroc", "average_precision")
TIED = 1e-3  # relative difference of two scores that count as equal
SHARES = ("verdict_right", "found", "false_positive")
TOTALS = ("seconds", "forwards", "refused")
COLUMNS = (
    "method", "source", "truth", "kind", "place", "metric", "value", "low", "high", "n",
    "baseline", "says",
)  # fmt: skip


def over_truths(found: Sequence[Row], seed: int) -> Iterator[Row]:
    """The rows of every method over all truths."""
    table = pd.DataFrame(found).reindex(columns=COLUMNS)
    trivial = _aurocs(table[table["method"] == outside.NORM])
    for (method, source), own in table.groupby(["method", "source"], sort=False):
        about = {"method": method, "source": source, "truth": ALL}
        yield from (about | row for row in _means(own, seed))
        if method != outside.NORM:
            yield from (about | row for row in _beyond(own, trivial, seed))
        yield from (about | row for row in _above_phantoms(own, seed))
        if len(each := own[own["metric"] == "coverage"]):
            said = wilson(float((each["value"] * each["n"]).sum()), float(each["n"].sum()))
            yield about | {"metric": "coverage", **said._asdict(), "baseline": 0.95}
        for metric in SHARES:
            values = own.loc[own["metric"] == metric, "value"]
            if len(values):
                yield about | {"metric": metric, **share(values.to_numpy(dtype=float))._asdict()}
        for metric in TOTALS:
            values = own.loc[own["metric"] == metric, "value"]
            if len(values):
                total = float(values.sum())
                yield about | {"metric": metric, "value": total, "n": len(values)}


def _means(own: pd.DataFrame, seed: int) -> Iterator[Row]:
    for metric in MEANS:
        for kind, each in own[own["metric"] == metric].groupby("place", sort=False):
            said = share(each["value"].to_numpy(dtype=float), seed=seed)._asdict()
            yield {"place": kind, "metric": metric, **said, "baseline": each["baseline"].mean()}


def _beyond(
    own: pd.DataFrame, trivial: Mapping[tuple[str, str], float], seed: int
) -> Iterator[Row]:
    """By how much its AUROC is above that of the norm, where both have one."""
    each = _aurocs(own)
    for kind in dict.fromkeys(kind for _, kind in each):
        apart = [
            value - trivial[at] for at, value in each.items() if at[1] == kind and at in trivial
        ]
        if apart:
            said = bootstrap(np.array(apart), seed=seed)._asdict()
            yield {"place": kind, "metric": "beyond_norm", **said, "baseline": 0.0}


def _above_phantoms(own: pd.DataFrame, seed: int) -> Iterator[Row]:
    """How often the highest score of a pair is above that of its phantoms, ties half."""
    tops = own[own["metric"] == "top"]
    for kind, each in tops.groupby("place", sort=False):
        shares = []
        values = dict(zip(each["truth"], each["value"].astype(float), strict=True))
        for name, value in values.items():
            own_phantom = re.compile(re.escape(PHANTOM + name) + r"( \d+)?")
            above = [
                0.5 if np.isclose(value, other, rtol=TIED, atol=0.0) else float(value > other)
                for phantom, other in values.items()
                if own_phantom.fullmatch(phantom)
            ]
            if above:  # a pair is an item, however many phantoms it has
                shares.append(float(np.mean(above)))
        if shares:
            said = share(np.array(shares), seed=seed)._asdict()
            yield {"place": kind, "metric": "beyond_phantom", **said, "baseline": 0.5}


def _aurocs(own: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(truth, place) -> AUROC of one method."""
    own = own[own["metric"] == "auroc"]
    keys = zip(own["truth"], own["place"], strict=True)
    return dict(zip(keys, own["value"].astype(float), strict=True))
