"""TuCo, arXiv 2506.23423: what is read of its claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from workbench.findings.readings.reading import (
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference


def _aucs(results: Sequence[Result]) -> Iterator[tuple[str, str, Any, Any, Interval | None]]:
    """(member, group, AUC of TuCo, AUC of OutputCo, their difference over the same prompts, None in
    a result that is too old for it) of the first group over pre-training-like ones."""
    for result in of(results, "tuco.contribution"):
        groups = list(result.provenance.parameters["prompts"])
        plain = [g for g in groups if g.startswith(("pre-training", "plain"))] or groups[1:2]
        for group in plain:
            rows = result.table[result.table["group"] == f"{groups[0]} > {group}"]
            for member, own in rows.groupby("member", sort=False):
                found = own.set_index("metric")
                if {"auc:tuco", "auc:output_co"} <= set(found.index):
                    more = None
                    if "auc_difference" in found.index:
                        more = Interval.of(found.loc["auc_difference"])
                    pair = found.loc["auc:tuco"], found.loc["auc:output_co"]
                    yield str(member), group, *pair, more


def tuco_groups(results: Sequence[Result]) -> Iterator[Reading]:
    for member, group, ours, plain, _ in _aucs(results):
        holds = above(ours["low"], ours["high"], 0.5)
        yield reading(member, ours, plain["value"], holds, f"over {group}")


def tuco_separates(results: Sequence[Result]) -> Iterator[Reading]:
    for member, group, ours, plain, paired in _aucs(results):
        more = difference(Interval.of(ours), Interval.of(plain)) if paired is None else paired
        holds = above(more.low, more.high, 0)
        yield reading(member, ours, plain["value"], holds, f"over {group}")


def alpha(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose score as tuned leaves room for a gain."""
    for result in of(results, "tuco.scaling"):
        table = result.table
        tuned = table[(table["metric"] == "score") & (table["x"] == 1)].set_index("member")["value"]
        for row in table[table["metric"] == "gain_score"].to_dict("records"):
            if tuned.get(row["member"], 0.0) >= 1:
                continue
            certain = row["low"] < row["high"]
            holds = above(row["low"], row["high"], 0) if certain else None
            holds = False if row["x"] == 1 else holds
            yield reading(row["member"], row, 0.0, holds, f"alpha {row['x']:g}")
