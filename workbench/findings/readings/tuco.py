"""TuCo, arXiv 2506.23423: what is read of its claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.findings.readings.reading import (
    MARGIN,
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import LEAST, Interval, proportion


def _matched(results: Sequence[Result]) -> Iterator[tuple[str, str, Any]]:
    """(member, group, rows by metric) of the first group over pre-training-like ones. What is read
    are pairs of prompts that agree in length and in the base's loss, both of which shift TuCo by
    themselves; where fewer than LEAST agree, the groups are confounded and nothing is decided."""
    for result in of(results, "tuco.contribution"):
        groups = list(result.provenance.parameters["prompts"])
        plain = [g for g in groups if g.startswith(("pre-training", "plain"))] or groups[1:2]
        for group in plain:
            rows = result.table[result.table["group"] == f"{groups[0]} > {group}"]
            for member, own in rows.groupby("member", sort=False):
                yield str(member), group, own.set_index("metric")


def _read(member: str, group: str, row: Any, control: float, holds: bool | None) -> Reading:
    """A reading of matched pairs, if there are enough of them."""
    if row["n"] >= LEAST:
        return reading(member, row, control, holds, f"over {group}")
    few = f"over {group}, confounded: {row['n']:.0f} pairs match"
    return reading(member, row, control, None, few)


def tuco_groups(results: Sequence[Result]) -> Iterator[Reading]:
    for member, group, rows in _matched(results):
        if {"auc_matched:tuco", "auc_matched:output_co"} <= set(rows.index):
            ours = rows.loc["auc_matched:tuco"]
            found = proportion(Interval.of(ours))
            holds = above(found.low, found.high, 0.5)
            control = rows.loc["auc_matched:output_co", "value"]
            yield _read(member, group, ours.to_dict() | found._asdict(), control, holds)


def tuco_separates(results: Sequence[Result]) -> Iterator[Reading]:
    name = "auc_difference_matched:tuco-output_co"
    for member, group, rows in _matched(results):
        if name in rows.index:
            more = rows.loc[name]
            holds = above(more["low"], more["high"], 0)
            yield _read(member, group, more, math.nan, holds)


def alpha(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose score as tuned leaves room for a gain. Where the prompts chose alpha = 1,
    that contradicts only if there is room for MARGIN and no other scale can be better by as much:
    the choice of a half alone, in which several scales may do as well, is no evidence."""
    for result in of(results, "tuco.scaling"):
        table = result.table
        tuned = table[(table["metric"] == "score") & (table["x"] == 1)].set_index("member")["value"]
        for row in table[table["metric"] == "gain_score"].to_dict("records"):
            room = 1 - tuned.get(row["member"], 0.0)
            if room <= 0:
                continue
            certain = row["low"] < row["high"]
            holds = above(row["low"], row["high"], 0) if certain else None
            if row["x"] == 1:
                others = table[(table["metric"] == "score_change") & (table["x"] != 1)]
                others = others[others["member"] == row["member"]].to_dict("records")
                most = [proportion(Interval.of(other)).high for other in others]
                holds = False if most and max(most) < MARGIN <= room else None
            yield reading(row["member"], row, 0.0, holds, f"alpha {row['x']:g}")
