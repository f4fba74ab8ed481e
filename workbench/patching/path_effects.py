"""What do senders do to the answer through receivers alone? The runs of `path`, in one model.

Everything that a receiver gets of a sender is at the sender's own token, as all heads between them
are frozen and MLPs work token by token. A receiving head may look at a changed key or value from
any later token: where it does so is a place of that head's (`path_ends`), and at all other tokens
its output is written as it was in the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.files.large import unknown
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sites import Kind
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.edges import EMBEDDING
from workbench.patching.metrics import Metric
from workbench.patching.patches import Patch, Position
from workbench.patching.path_ends import End, Part, Receivers, about
from workbench.patching.places import taken
from workbench.patching.replacements import Replacement, Standing
from workbench.patching.sweep import Side
from workbench.patching.sweep_plan import counted, share
from workbench.progress import progress
from workbench.stats import ratios
from workbench.tasks.batching import batch, in_batches, pad_id

MIXING: tuple[Kind, ...] = ("z", "mixer_out")  # what moves anything between tokens
LEAST = -20.0  # nats; a smaller p_clean is nothing that a relative change could be of


class Effects(NamedTuple):
    """One model's path effects. values: (arm, metric) -> (senders, prompts), those that are known.
    forwards: their cost in plain forward passes over all prompts."""

    table: pd.DataFrame
    values: dict[tuple[str, str], np.ndarray]
    forwards: float


def effects(
    clean: Side,
    dirty: Side,
    words: Any,
    *,
    receivers: Sequence[End] | str = "logits",
    part: Part = "v",
    position: Position = -1,
    receiver_position: Position = None,
    senders: Sequence[End] | None = None,
    metric: Metric | None = None,
    replaced: Replacement | None = None,
    shuffled: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    large: bool | None = None,
) -> Effects:
    """Every sender's effect in one model. receivers, senders: as `path_ends` names them. metric:
    one more measure, whose reference is the clean run. receiver_position: the tokens from which the
    receiving heads look, None for all. replaced: what stands for what the senders send, None for
    the corrupt run's. large: as in `sweep`."""
    layout = Layout(clean.model)
    acting = Receivers.of(layout, receivers, part, position, receiver_position)
    sending = acting.senders(layout, senders)
    at = [replace(site, position=position) for site in sending]
    shared.require_aligned(clean.rows, dirty.rows, [Patch((Site("z", 0, position=position),))])
    for looks in dict.fromkeys(acting.looks.values()):
        shared.require_aligned(clean.rows, clean.rows, [Patch((Site("z", 0, position=looks),))])
    size, fill = len(clean.rows), pad_id(words)
    kinds = {Site(kind, layer) for kind in MIXING for layer in layout.where(kind)}
    kinds |= {site.whole for site in sending}
    arms = {"patch": False} | ({"shuffled": True} if shuffled else {})
    found = {
        (arm, name): unknown((len(sending), size))
        for arm in arms
        for name in ("effect", *changes_of(metric))
    }
    spent = 0.0
    total = len(sending) * size * len(arms)
    if large is not None:
        # Where heads are held at other tokens, all of them are run again.
        first = sorted(acting.into, key=lambda site: site.layer)[:1]
        entered = at + [site.whole if acting.looks else site for site in first] * len(at)
        each = sum(share(layout, clean.rows, site.layer, site) for site in entered)
        forwards = 1 + len(arms) * (1 + each)  # the clean run, and every arm's corrupt one
        known = (len(sending), forwards, kinds, words, batch_size, device)
        ahead = counted(clean.model, clean.rows, *known, at_once=batch_size)
        ahead.require("path patching", device, large)
    bar = progress(total=total, desc="path patching")

    turn = shared.shuffle(dirty.rows)

    def run(places: list[int]) -> tuple[float, dict[str, dict[str, Tensor]]]:
        own = Rerun(clean.model, batch(clean.rows, places, device, fill), kinds)
        before = shared.measured(own.logits, own.inputs, own.logits[0], metric)
        scores: dict[str, dict[str, Tensor]] = {}
        runs: list[Rerun | Standing] = [own]
        for arm, turned in arms.items():
            others, alone = shared.turned(turn if turned else range(size), places)
            if replaced is not None and not turned:
                runs.append(replaced.beside(own, places))
            else:
                runs.append(Rerun(dirty.model, batch(dirty.rows, others, device, fill), kinds))
            after, many = [], max(1, batch_size // len(places))
            for i in range(0, len(at), many):
                after.append(_patched(own, runs[-1], at[i : i + many], acting))
                bar.update(len(after[-1]) * len(places))
            scores[arm] = _changes(before, after, own, alone, metric)
        return sum(one.forwards for one in runs), scores

    with bar:
        for places, (forwards, scores) in in_batches(
            [len(row.fed) for row in clean.rows], batch_size, run, bar
        ):
            spent += forwards * len(places) / size
            for arm, changes in scores.items():
                for name, value in changes.items():
                    found[arm, name][:, places] = value.cpu().numpy()
    known = {
        (arm, name): value for (arm, name), value in found.items()
        # Where nothing at all is known one arm says so, by NaN.
        if not np.isnan(value).all() or (arm, name) == ("patch", "effect")
    }  # fmt: skip
    return Effects(_table(known, sending, position, seed), known, spent)


def changes_of(metric: Metric | None) -> dict[str, str]:
    """The name of each change in a table -> the measure that changes."""
    own = {} if metric is None or metric.name == "logit_difference" else {metric.name}
    return {"logit_change": "logit_difference"} | {f"change:{name}": name for name in own}


def _patched(
    own: Rerun, other: Rerun | Standing, senders: Sequence[Site], acting: Receivers
) -> Tensor:
    """Logits (senders, batch, answer, vocabulary) of step 3, or of step 2 for the logits."""
    position = senders[0].position
    # Where tokens behind the sender's reach the logits, their heads must be frozen too.
    behind = position != -1 or any(len(row.answer) > 1 for row in own.inputs.rows)
    held = None if not acting.into and behind else position
    patches = []
    for sender in senders:
        frozen = [
            Site(kind, layer, position=held)
            for kind in MIXING
            for layer in own.layout.where(kind)
            if layer > sender.layer or sender.whole == EMBEDDING
        ]
        patch = {sender: taken(sender, other.read(sender))}
        patches.append(patch | {one: own.read(one) for one in frozen})
    # A receiver that its sender does not come before is as it was.
    reached = [acting.reached(own.layout, [sender]) for sender in senders]
    into = list(dict.fromkeys(site for sites in reached for site in sites))
    logits, seen = own.observed(patches, into if acting.into else [])
    if not acting.into:
        return logits
    return own.again(
        [
            {site: seen[site][i] for site in sites} | acting.held(own, sites)
            for i, sites in enumerate(reached)
        ]
    )


def _changes(
    before: dict[str, Tensor],
    after: Sequence[Tensor],
    own: Rerun,
    alone: Tensor,
    metric: Metric | None,
) -> dict[str, Tensor]:
    """metric -> (senders, batch), NaN where a prompt is `alone`, (batch,)."""
    scores = [shared.measured(logits, own.inputs, own.logits[0], metric) for logits in after]

    def change(measure: str) -> Tensor:
        return torch.cat([score[measure] - before[measure] for score in scores])

    effect = (
        change("log_probability").expm1().masked_fill(before["log_probability"] < LEAST, torch.nan)
    )
    found = {"effect": effect} | {name: change(of) for name, of in changes_of(metric).items()}
    alone = alone.to(effect.device)
    return {metric: value.masked_fill(alone, torch.nan) for metric, value in found.items()}


def _table(
    found: dict[tuple[str, str], np.ndarray],
    senders: Sequence[Site],
    position: Position,
    seed: int,
) -> pd.DataFrame:
    columns = pd.DataFrame([about(site) for site in senders])
    columns = columns.astype({"layer": "Int64", "head": "Int64"})
    columns["position"] = "all" if position is None else str(position)
    tables = [
        columns.assign(arm=arm, metric=metric, baseline=0.0, **ratios(value, seed=seed)._asdict())
        for (arm, metric), value in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    random = sweep_rows.random_site(table[table["arm"] == "patch"], by=("component", "position"))
    return pd.concat([table, random], ignore_index=True)
