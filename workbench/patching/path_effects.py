"""What do sender heads do to the answer through receivers alone? The runs of `path`, in one model.

Everything that a receiver gets of a sender is at the sender's own token, as all heads between them
are frozen and MLPs work token by token. A receiving head may look at a changed key or value from
any later token: where it does so is `receiver_position`, and at all other tokens its output is
written as it was in the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models import Layout, Site
from workbench.models.rerun import Outside, Rerun, Write
from workbench.models.sites import Kind
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.metrics import Metric
from workbench.patching.patches import Patch, Position
from workbench.patching.places import taken, within
from workbench.patching.replacements import Replacement, Standing
from workbench.patching.sweep import Side
from workbench.patching.sweep_plan import counted, share
from workbench.progress import progress
from workbench.stats import ratios
from workbench.tasks.batching import batch, in_batches, pad_id

Head = tuple[int, int]  # layer, head
Part = Literal["q", "k", "v"]
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
    receivers: Sequence[Head] | Literal["logits"] = "logits",
    part: Part = "v",
    position: Position = -1,
    receiver_position: Position = None,
    senders: Sequence[Head] | None = None,
    metric: Metric | None = None,
    replaced: Replacement | None = None,
    shuffled: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    large: bool | None = None,
) -> Effects:
    """Every sender's effect in one model. metric: one more measure, whose reference is the clean
    run. receiver_position: the tokens from which the receiving heads look, None for all. replaced:
    what the senders' z is replaced by, None for the corrupt run's. large: as in `sweep`."""
    layout = Layout(clean.model)
    into = _received(layout, receivers, part, position)
    acting = Acting.of(layout, into, receiver_position)
    reachable = _before(layout, into)
    senders = reachable if senders is None else list(senders)
    if not senders or not set(senders) <= set(reachable):
        beyond = sorted(set(senders) - set(reachable))
        raise WorkbenchError(
            f"Head {beyond[0]} is not before these receivers, or not in the model; "
            "give other senders."
            if beyond
            else "No head is before these receivers; choose receivers in a later layer."
        )
    shared.require_aligned(clean.rows, dirty.rows, [Patch((Site("z", 0, position=position),))])
    acts = Patch((Site("z", 0, position=receiver_position),))
    shared.require_aligned(clean.rows, clean.rows, [acts])
    size, fill = len(clean.rows), pad_id(words)
    kinds = {Site(kind, layer) for kind in MIXING for layer in layout.where(kind)}
    found = {
        (arm, name): np.full((len(senders), size), np.nan)
        for arm in ("patch", "shuffled")
        for name in ("effect", *changes_of(metric))
    }
    spent = 0.0
    arms = {"patch": False} | ({"shuffled": True} if shuffled else {})
    total = len(senders) * size * len(arms)
    if large is not None:
        entered = [Site("z", *sender, position) for sender in senders]
        # Where heads are held at other tokens, all of them are run again.
        received = into[:1] if receiver_position is None else [into[0].whole]
        entered += received * len(entered)
        each = sum(share(layout, clean.rows, site.layer, site) for site in entered)
        forwards = 1 + len(arms) * (1 + each)  # the clean run, and every arm's corrupt one
        known = (len(senders), forwards, kinds, words, batch_size, device)
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
            after = [
                _patched(own, runs[-1], senders[i : i + many], acting, position)
                for many in [max(1, batch_size // len(places))]
                for i in range(0, len(senders), many)
            ]
            scores[arm] = _changes(before, after, own, alone, metric)
        return sum(one.forwards for one in runs), scores

    with bar:
        for places, (forwards, scores) in in_batches(
            [len(row.fed) for row in clean.rows], batch_size, run
        ):
            spent += forwards * len(places) / size
            for arm, changes in scores.items():
                for name, value in changes.items():
                    found[arm, name][:, places] = value.cpu().numpy()
            bar.update(len(places) * len(senders) * len(arms))
    known = {
        (arm, name): value for (arm, name), value in found.items()
        # Where nothing at all is known one arm says so, by NaN.
        if arm in arms and (not np.isnan(value).all() or (arm, name) == ("patch", "effect"))
    }  # fmt: skip
    return Effects(_table(known, senders, position, seed), known, spent)


class Acting(NamedTuple):
    """The sites that receive, none where the logits do, and the heads that read each of them: their
    z, which only counts at `position`."""

    into: list[Site]
    heads: dict[Site, list[Site]]
    position: Position

    @classmethod
    def of(cls, layout: Layout, into: list[Site], position: Position) -> Acting:
        if position is not None and not into:
            raise WorkbenchError(
                "receiver_position is the token from which receiving heads look; the logits are "
                "those of the answer. Give receivers, or leave it out."
            )
        heads = {}
        for site in into:
            assert site.head is not None
            size = layout.count(Site("z", site.layer)) // layout.count(site.whole)
            own = range(site.head * size, (site.head + 1) * size)
            heads[site] = [Site("z", site.layer, head) for head in own]
        return cls(into, heads, position)

    def held(self, own: Rerun, reached: Sequence[Site]) -> dict[Site, Write]:
        """The clean z of the heads that read these sites, at all tokens but where they act."""
        if self.position is None:
            return {}
        kept = within(own.inputs, [self.position])
        return {z: Outside(own.read(z), kept) for site in reached for z in self.heads[site]}


def changes_of(metric: Metric | None) -> dict[str, str]:
    """The name of each change in a table -> the measure that changes."""
    own = {} if metric is None or metric.name == "logit_difference" else {metric.name}
    return {"logit_change": "logit_difference"} | {f"change:{name}": name for name in own}


def _patched(
    own: Rerun,
    other: Rerun | Standing,
    senders: Sequence[Head],
    acting: Acting,
    position: Position,
) -> Tensor:
    """Logits (senders, batch, answer, vocabulary) of step 3, or of step 2 for the logits."""
    into = acting.into
    # Where tokens behind the sender's reach the logits, their heads must be frozen too.
    behind = position != -1 or any(len(row.answer) > 1 for row in own.inputs.rows)
    held = None if not into and behind else position
    patches = []
    for layer, head in senders:
        site = Site("z", layer, head, position)
        frozen = [
            Site(kind, one, position=held)
            for kind in MIXING
            for one in own.layout.where(kind)
            if one > layer
        ]
        patch = {site: taken(site, other.read(site))}
        patches.append(patch | {one: own.read(one) for one in frozen})
    # Receivers that no sender of these comes before are as they were.
    reached = [site for site in into if site.layer > min(senders)[0]]
    logits, seen = own.observed(patches, reached)
    if not into:
        return logits
    held = acting.held(own, reached)
    return own.again(
        [{site: seen[site][i] for site in reached} | held for i in range(len(senders))]
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
    senders: Sequence[Head],
    position: Position,
    seed: int,
) -> pd.DataFrame:
    columns = pd.DataFrame(senders, columns=pd.Index(["layer", "head"])).astype("Int64")
    columns["position"] = "all" if position is None else str(position)
    tables = [
        columns.assign(arm=arm, metric=metric, baseline=0.0, **ratios(value, seed=seed)._asdict())
        for (arm, metric), value in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    random = sweep_rows.random_site(table[table["arm"] == "patch"], by=("position",))
    return pd.concat([table, random], ignore_index=True)


def _received(
    layout: Layout, receivers: Sequence[Head] | str, part: Part, position: Position
) -> list[Site]:
    """The sites that receive; none where the logits do."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise WorkbenchError(f'Expected receivers "logits" or heads, found {receivers!r}.')
        return []
    if part not in ("q", "k", "v"):
        raise WorkbenchError(f"Expected part q, k or v of the receivers, found {part!r}.")
    if not receivers:
        raise WorkbenchError('Expected receiver heads (layer, head), or "logits"; found none.')
    sites = []
    for layer, head in receivers:
        whole, own = layout.check(Site("q", layer)), layout.check(Site(part, layer))
        shares = layout.count(whole) // layout.count(own)
        sites.append(Site(part, layer, head // shares, position))
    return [layout.check(site) for site in dict.fromkeys(sites)]


def _before(layout: Layout, into: Sequence[Site]) -> list[Head]:
    """Every head whose output a receiver can still read."""
    end = max([site.layer for site in into], default=layout.layers)
    known = [layout.check(Site("z", layer)) for layer in layout.where("z") or [0]]
    return [(z.layer, head) for z in known if z.layer < end for head in range(layout.count(z))]
