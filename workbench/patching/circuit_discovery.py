"""Which heads make up the circuit of a boxes task? Path patching, group by group, backwards.

After Prakash et al. 2024 (arXiv 2402.14811): value fetchers act on the logits at the last token;
position transmitters on the fetchers' queries there; position detectors on the transmitters' values
at the label that is asked for; structure readers on the detectors' values where that label was
stated. Two groups more, on what the fetchers find: object readers act on their values, order
markers on their keys, where the right object was stated. Other circuits are other GROUPS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.models import Site
from workbench.patching import sweep as shared
from workbench.patching.metrics import Metric
from workbench.patching.patches import Patch, Position
from workbench.patching.path_effects import changes_of, effects
from workbench.patching.path_ends import Head, Part
from workbench.patching.sweep import Side
from workbench.tasks.batching import Row

Circuit = Mapping[str, Sequence[Head]]  # group -> heads


@dataclass(frozen=True)
class Group:
    """Heads found by what they do to `receivers`: the logits, or the `part` of an earlier group.
    receiver_position: the tokens from which these receivers look, as in `path`."""

    name: str
    receivers: str
    part: Part = "v"
    position: Position = -1
    receiver_position: Position = None


GROUPS = (
    Group("value fetcher", "logits"),
    Group("position transmitter", "value fetcher", "q"),
    Group("position detector", "position transmitter", "v", "query box"),
    Group("structure reader", "position detector", "v", "correct label"),
    Group("object reader", "value fetcher", "v", "correct object"),
    Group("order marker", "value fetcher", "k", "correct object"),
)


def nearest(groups: Sequence[Group], depth: int | None) -> Sequence[Group]:
    """So many of the groups, from the logits back; None for all of them."""
    if depth is not None and depth < 1:
        raise WorkbenchError(f"Expected a depth of 1 group or more, found {depth}.")
    return groups if depth is None else groups[:depth]


def discover(
    clean: Side,
    dirty: Side,
    words: Any,
    *,
    groups: Sequence[Group] = GROUPS,
    most: int = 8,
    least: float = 0.02,
    metric: Metric | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, list[Head]], pd.DataFrame, float]:
    """One model's circuit, the path effects it was chosen by (columns as in `path`, and group), and
    the cost in plain forward passes.

    A head belongs to a group where patching it lowers the logit difference by at least `least` of
    the clean mean, its 95% interval lies below 0, and it is among the `most` strongest. (The mean
    relative change of the probability, which the paper sorts by, is carried by the few prompts the
    model is least sure of.) metric: what stands for the logit difference; one of which less is
    better must rise, and of another than the logit difference `least` is a part of what separates
    the clean from the corrupt runs. options: batch_size, device. A group whose receivers were not
    found, or whose named place the prompts do not have, is empty, and so are those behind it.
    """
    places = [*clean.rows, *dirty.rows]
    named = [group for group in groups if _placed(group, places)]
    wanted = [Patch((Site("z", 0, position=group.position),)) for group in named]
    shared.require_aligned(clean.rows, dirty.rows, wanted)
    name = "logit_difference" if metric is None else metric.name
    plain = shared.sweep(clean, dirty, [], words, metric=metric, **options)
    if name == "logit_difference" and not all(row.foils for row in places):
        raise WorkbenchError(
            "A circuit is found by the logit difference, which needs foils; give every prompt some "
            "wrong answers, or another metric."
        )
    scale = float(np.nanmean(plain.destination[name]))
    if name != "logit_difference":
        scale -= float(np.nanmean(plain.source[name]))
    change = next(one for one, of in changes_of(metric).items() if of == name)
    worse = -1 if metric is not None and metric.lower else 1
    circuit: dict[str, list[Head]] = {}
    tables, cost = [], plain.forwards
    for group in groups:
        receivers: Any = circuit.get(group.receivers, group.receivers)
        circuit[group.name] = []
        # Nothing found, nothing before it in the model, or no such place in these prompts.
        if not receivers or (receivers != "logits" and max(receivers)[0] == 0):
            continue
        if group not in named:
            continue
        made = effects(
            *(clean, dirty, words),
            receivers=receivers,
            part=group.part,
            position=group.position,
            receiver_position=group.receiver_position,
            metric=metric,
            shuffled=False,
            seed=seed,
            **options,
        )
        cost += made.forwards
        table = made.table
        tables.append(table.assign(group=group.name))
        own = table[(table["metric"] == change) & (table["arm"] == "patch")]
        loss, certain = worse * own["value"], (worse * own[["low", "high"]]).max(axis=1)
        strong = own.assign(loss=loss)[(loss <= -least * abs(scale)) & (certain < 0)]
        for row in strong.sort_values("loss").head(most).itertuples():
            circuit[group.name].append((int(row.layer), int(row.head)))  # pyright: ignore
    return circuit, pd.concat(tables, ignore_index=True), cost


def _placed(group: Group, rows: Sequence[Row]) -> bool:
    """Whether all these prompts have the group's places."""
    named = [p for p in (group.position, group.receiver_position) if isinstance(p, str)]
    return all(place in row.spans for place in named for row in rows)


def heads(circuit: Circuit) -> list[Head]:
    """Every head of a circuit once, in the order of the model."""
    return sorted({head for own in circuit.values() for head in own})


def sites(circuit: Circuit, groups: Sequence[Group] = GROUPS) -> dict[str, list[Site]]:
    """Its groups as sites at their own positions, for `cross_model(groups=...)`; empty ones are
    left out."""
    at = {group.name: group.position for group in groups}
    return {
        name: [Site("z", layer, head, at.get(name)) for layer, head in own]
        for name, own in circuit.items()
        if own
    }
