"""Circuits that fine-tuning keeps, arXiv 2402.14811, and parameters that carry knowledge, arXiv
2410.06606: what is read of their claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workbench.findings.readings.reading import (
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference


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


def _beyond(member: str, rows: pd.DataFrame, at: str = "") -> Iterator[Reading]:
    """A patch against its random control, where both are known: holds where it is above."""
    arms = rows.dropna(subset="value").set_index("arm")
    if {"patch", "random"} <= set(arms.index):
        ours, null = arms.loc["patch"], arms.loc["random"]
        more = difference(Interval.of(ours), Interval.of(null))
        yield reading(member, ours, null["value"], above(more.low, more.high, 0), at)


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


def crossed(results: Sequence[Result]) -> Iterator[Reading]:
    """The layer whose attention recovers most of the gain, of members that gained there."""
    for result in of(results, "patching.cross_model"):
        table = result.table
        if "layer" not in table or "direction" not in table:
            continue
        rows = table[table["component"].eq("attn_out") & table["direction"].eq("tuned->base")]
        rows = rows[rows["metric"] == "recovered:logit_difference"].dropna(subset=["value", "low"])
        for member, own in rows.groupby("member", sort=False):
            ours, null = own[own["arm"] == "patch"], own[own["arm"] == "random"]
            if len(ours) and len(null):
                best = ours.loc[[ours["value"].idxmax()]]
                layers = f"layer {best['layer'].iloc[0]} of {len(ours)}"
                yield from _beyond(str(member), pd.concat([best, null.head(1)]), layers)


def _krs(results: Sequence[Result]) -> Iterator[tuple[str, str, Any, Any]]:
    """(member, layer, its KRS with the base's activations, with another prompt's) of members that
    unlearned: that answer less than half as often as the base. The layer is the best of all."""
    for result in of(results, "patching.cross_model"):
        table = result.table
        back = table[table.get("direction", pd.Series("", table.index)).eq("base->tuned")]
        for member, own in back.groupby("member", sort=False):
            score = own[own["metric"] == "score"].set_index("arm")["value"]
            krs = own[(own["metric"] == "krs") & own["component"].eq("mlp_hidden")]
            ours = krs[krs["arm"] == "patch"].dropna(subset="value")
            if ours.empty or not score["destination"] < score["source"] / 2:
                continue
            best = ours.loc[ours["value"].idxmax()]
            other = krs[(krs["arm"] == "shuffled") & (krs["layer"] == best["layer"])]
            if len(other):
                yield str(member), f"layer {best['layer']} of {len(ours)}", best, other.iloc[0]


def restored(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, ours, other in _krs(results):
        yield reading(member, ours, other["value"], above(ours["low"], ours["high"], 0.7), at)


def restored_knowledge(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, ours, other in _krs(results):
        found = difference(Interval.of(ours), Interval.of(other))
        yield reading(member, found._asdict(), math.nan, above(found.low, found.high, 0.1), at)
