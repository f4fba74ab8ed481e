"""Circuits that fine-tuning keeps, arXiv 2402.14811, and parameters that carry knowledge, arXiv
2410.06606: what is read of their claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from workbench.findings.readings.reading import (
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference


class _Seen(NamedTuple):
    """One member's best place: its row, and those of what it has beyond its two controls."""

    result: Result
    member: str
    at: str
    ours: Any
    beyond_random: Any
    beyond_shuffled: Any


def circuit(results: Sequence[Result]) -> Iterator[Reading]:
    """The base's circuit in the member, against random heads; of heads kept at all tokens it says
    nothing."""
    for result in of(results, "patching.circuit"):
        if result.provenance.parameters.get("keep") != "position":
            continue
        table = result.table
        rows = table[(table["metric"] == "faithfulness:score") & (table["side"] == "tuned")]
        for member, own in rows[rows["circuit"] == "base"].groupby("member", sort=False):
            yield from _beyond(str(member), own)


def _beyond(member: str, rows: pd.DataFrame) -> Iterator[Reading]:
    """A patch against its random control, where both are known: holds where it is above."""
    arms = rows.dropna(subset="value").set_index("arm")
    if {"patch", "random"} <= set(arms.index):
        ours, null = arms.loc["patch"], arms.loc["random"]
        more = difference(Interval.of(ours), Interval.of(null))
        yield reading(member, ours, null["value"], above(more.low, more.high, 0))


def _groups(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(member, arms) of the gain that patching the whole circuit recovers."""
    for result in of(results, "patching.cross_model"):
        table = result.table
        if "group" not in table:
            continue
        rows = table[(table["metric"] == "recovered:logit_difference")]
        rows = rows[(rows["group"] == "whole circuit") & (rows["direction"] == "tuned->base")]
        yield from ((str(member), own) for member, own in rows.groupby("member", sort=False))


def carries(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _groups(results):
        yield from _beyond(member, rows)


def carries_all(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _groups(results):
        for ours in rows[rows["arm"] == "patch"].to_dict("records"):
            yield reading(member, ours, math.nan, above(ours["low"], ours["high"], 0.9))


def _best(
    results: Sequence[Result], direction: str, component: str, metric: str
) -> Iterator[_Seen]:
    """What the place that one half of the prompts chose gives on the other half. Without rows of
    arm "best", as of places that were chosen and reported on the same prompts, there is none."""
    for result in of(results, "patching.cross_model"):
        table = result.table
        if not {"layer", "direction"} <= set(table.columns):
            continue
        rows = table[table["component"].eq(component) & table["direction"].eq(direction)]
        for member, own in rows.groupby("member", sort=False):
            found = own[own["arm"] == "best"].set_index("metric")
            names = [metric, f"beyond_random:{metric}", f"beyond_shuffled:{metric}"]
            if not set(names) <= set(found.index) or math.isnan(found.loc[metric, "value"]):
                continue
            tried = ((own["arm"] == "patch") & (own["metric"] == metric)).sum()
            at = f"layer {found.loc[metric, 'layer']} of {tried}"
            yield _Seen(result, str(member), at, *(found.loc[name] for name in names))


def crossed(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members that gained: the layer whose attention recovers most of the gain, against the mean
    over layers, prompt by prompt."""
    for seen in _best(results, "tuned->base", "attn_out", "recovered:logit_difference"):
        sides = [above(row["low"], row["high"], 0) for row in (seen.ours, seen.beyond_random)]
        holds = False if False in sides else True if all(sides) else None
        yield reading(seen.member, seen.ours, seen.ours["baseline"], holds, seen.at)


def _krs(results: Sequence[Result]) -> Iterator[_Seen]:
    """Of members that unlearned: that answer less than half as often as the base."""
    for seen in _best(results, "base->tuned", "mlp_hidden", "krs"):
        table = seen.result.table
        own = table[(table["member"] == seen.member) & table["direction"].eq("base->tuned")]
        score = own[own["metric"] == "score"].set_index("arm")["value"]
        if score["destination"] < score["source"] / 2:
            yield seen


def restored(results: Sequence[Result]) -> Iterator[Reading]:
    for seen in _krs(results):
        other = seen.ours["value"] - seen.beyond_shuffled["value"]
        holds = above(seen.ours["low"], seen.ours["high"], 0.7)
        yield reading(seen.member, seen.ours, other, holds, seen.at)


def restored_knowledge(results: Sequence[Result]) -> Iterator[Reading]:
    for seen in _krs(results):
        more = seen.beyond_shuffled
        yield reading(seen.member, more, math.nan, above(more["low"], more["high"], 0.1), seen.at)
