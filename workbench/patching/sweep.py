"""One model's activations put into another run, patch by patch: what every patching method shares.

The destination is run once on each batch of prompts, the source once, and after every patch only
what follows it is run again (`models.rerun`). All measures are teacher-forced on the answer and
taken at the tokens that predict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.large import unknown
from workbench.models import Layout, Site
from workbench.models.rerun import Plus, Rerun
from workbench.patching import places as meant
from workbench.patching.metrics import Metric, measured
from workbench.patching.patches import Patch, require_one_width
from workbench.patching.replacements import Replacement, Standing
from workbench.patching.sweep_plan import plan
from workbench.progress import progress
from workbench.tasks.batching import Batch, Row, batch, in_batches, pad_id

Values = dict[str, np.ndarray]  # metric -> (prompts,) or (patches, prompts)
Scores = dict[str, Tensor]  # metric -> (patches, batch)


class Side(NamedTuple):
    """A model and the prompts it is run on, with their answers."""

    model: Any
    rows: Sequence[Row]


class Sweep(NamedTuple):
    """What every prompt scored. destination, source: metric -> (prompts,), the two plain runs.
    patched: metric -> (patches, prompts). forwards: plain forward passes over all prompts that the
    sweep has cost, the two plain runs included."""

    destination: Values
    source: Values
    patched: Values
    forwards: float

    def of(self, prompts: Sequence[int], patches: Sequence[int] | None = None) -> Sweep:
        """These prompts alone, and of the patches these, or all."""
        here = {metric: values[prompts] for metric, values in self.destination.items()}
        there = {metric: values[prompts] for metric, values in self.source.items()}
        kept = slice(None) if patches is None else patches
        made = {metric: values[kept][:, prompts] for metric, values in self.patched.items()}
        return Sweep(here, there, made, self.forwards)


def sweep(
    destination: Side,
    source: Side,
    patches: Sequence[Patch],
    tokenizer: Any,
    *,
    shuffled: bool = False,
    metric: Metric | None = None,
    replaced: Replacement | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    label: str = "patches",
    large: bool | None = False,
) -> Sweep:
    """Every patch of the source's activations into the destination's run of every prompt.

    shuffled: take each prompt's activations from another prompt of its length and another answer
    (the control; NaN where there is none), see `shuffle`. metric: one more measure; its reference
    is the source's run. replaced: what is put into the destination's run in place of the source's
    activations (but for `shuffled`), the source being the other end of the scale alone. batch_size:
    prompts, and rows where several patches of few prompts share a forward pass. large: run it
    however long its plan says that it takes (`patching.plan`, told before); None for a part of
    another job, without a plan. Raises where places of prompts and partners do not fit, and
    RuntimeError where a patch of a run's own values changed anything.
    """
    require_aligned(destination.rows, source.rows, patches)
    require_batches(batch_size)
    if any(patch.added for patch in patches):
        Layout(destination.model).require_additive('patch z instead of "head"')
    size = len(destination.rows)
    fill = pad_id(tokenizer)
    kinds = {site.whole for patch in patches for site in patch.sites}
    if patches and not shuffled and large is not None:
        entries = [_planned(patch) for patch in patches]
        known = (destination.model, destination.rows, entries, kinds)
        ahead = plan(*known, tokenizer, batch_size, device)
        ahead.require(label, device, large)
    made = Sweep({}, {}, {}, 0.0)
    spent = 0.0
    bar = progress(total=len(patches) * size, desc=label)

    turn = shuffle(source.rows) if shuffled else None

    def run(places: list[int]) -> tuple[float, Scores, Scores, list[tuple[list[int], Scores]]]:
        there = Rerun(source.model, batch(source.rows, places, device, fill), kinds)
        own = kinds if replaced is not None and turn is None else ()
        here = Rerun(destination.model, batch(destination.rows, places, device, fill), own)
        runs: list[Rerun | Standing] = [here, there]
        alone = torch.zeros(len(places), dtype=torch.bool)
        if turn is not None:
            others, alone = turned(turn, places)
            runs.append(Rerun(source.model, batch(source.rows, others, device, fill), kinds))
        elif replaced is not None:
            runs.append(replaced.beside(here, places))
        alone = alone.to(there.logits.device)
        reference, found = there.logits[0], []
        idle = [i for i, patch in enumerate(patches) if _idle(runs[-1], here, patch)]
        if idle:
            same = measured(here.logits, here.inputs, reference, metric)
            same = {m: v.masked_fill(alone, torch.nan) for m, v in same.items()}
            found.append((idle, {m: v.expand(len(idle), -1) for m, v in same.items()}))
            bar.update(len(idle) * len(places))
        order = sorted({*range(len(patches))} - {*idle}, key=lambda i: _entry(patches[i], here))
        for chunk in _chunks(order, max(1, batch_size // len(places))):
            values = [_values(runs[-1], here, patches[i]) for i in chunk]
            logits = here.again(values)
            scores = measured(logits, here.inputs, reference, metric)
            scores = {m: v.masked_fill(alone, torch.nan) for m, v in scores.items()}
            found.append((chunk, scores))
            bar.update(len(chunk) * len(places))
        _require_null(here, patches, fill, device)
        # Scores alone: the plain runs of a batch go before those of the next are made.
        plain = measured(here.logits, here.inputs, reference, metric)
        ends = measured(there.logits, there.inputs, reference, metric)
        return sum(one.forwards for one in runs), plain, ends, found

    with bar:
        for places, (forwards, plain, ends, found) in in_batches(
            [len(row.fed) for row in destination.rows], batch_size, run, bar
        ):
            for values, scores in ((made.destination, plain), (made.source, ends)):
                for name, value in scores.items():
                    kept = values.setdefault(name, np.full(size, np.nan))
                    kept[places] = value[0].cpu().numpy()
            for chunk, scores in found:
                for name, value in scores.items():
                    if name not in made.patched:
                        made.patched[name] = unknown((len(patches), size))
                    made.patched[name][np.ix_(chunk, places)] = value.cpu().numpy()
            spent += forwards * len(places) / size
    require_metric(made.destination, metric)
    return made._replace(forwards=spent)


def require_metric(values: Values, metric: Metric | None) -> None:
    """Raises where a metric was asked for that no prompt has, such as a foil that none has. values:
    measure -> (..., prompts)."""
    if metric is not None and np.isnan(values[metric.name]).all():
        raise WorkbenchError(
            f"No prompt has the metric {metric.name!r}; give prompts with such a foil, or another "
            "metric."
        )


def shuffle(rows: Sequence[Row]) -> list[int]:
    """For each row the number of the next one of its length and of another answer among all rows,
    or -1 where there is none: what it is does not depend on the batches."""
    turn = [-1] * len(rows)
    lengths = [len(row.fed) for row in rows]
    for length in set(lengths):
        same = [i for i, own in enumerate(lengths) if own == length]
        for place, own in enumerate(same):
            others = [*same[place + 1 :], *same[:place]]
            turn[own] = next((i for i in others if rows[i].answer != rows[own].answer), -1)
    return turn


def turned(turn: Sequence[int], places: Sequence[int]) -> tuple[list[int], Tensor]:
    """The rows that stand for these ones, themselves where there is no other, and which of them
    (batch,) have no other."""
    others = [turn[place] if turn[place] >= 0 else place for place in places]
    return others, torch.tensor([turn[place] < 0 for place in places])


def _values(there: Rerun | Standing, here: Rerun, patch: Patch) -> dict[Site, Tensor | Plus]:
    """What the source has at the patch's sites."""
    if not patch.added:
        return {site: meant.taken(site, there.read(site)) for site in patch.sites}
    # The source's z through the source's projection: z is replaced, and what the two projections
    # make of it otherwise is added to what the run has there, once for each head and token.
    found: dict[Site, Tensor | Plus] = {}
    counted: dict[Site, list[Site]] = {}
    for site in sorted(set(patch.sites), key=lambda site: site.position is not None):
        found[site] = value = meant.taken(site, there.read(site))
        before = counted.setdefault(replace(site, position=None), [])
        more = there.added(site, value) - here.added(site, value)
        more = more * _fresh(here.inputs, site, before).to(more)[..., None]
        before.append(site)
        sum_there = found.get(whole := _sum(site))
        found[whole] = Plus(sum_there.delta + more if isinstance(sum_there, Plus) else more)
    return found


def _fresh(inputs: Batch, site: Site, counted: Sequence[Site]) -> Tensor:
    """Which tokens of a site none of these sites of the same head has, (batch, p)."""
    every = torch.arange(inputs.ids.shape[1], device=inputs.ids.device).expand_as(inputs.ids)

    def tokens(one: Site) -> Tensor:
        return every if one.position is None else inputs.index(one.position)

    own = tokens(site)
    fresh = torch.ones_like(own, dtype=torch.bool)
    for one in counted:
        fresh &= ~(own[:, :, None] == tokens(one)[:, None]).any(-1)
    return fresh


def _sum(site: Site) -> Site:
    """Where what a head adds becomes part of the stream."""
    return Site("attn_out", site.layer, position=site.position)


def _planned(patch: Patch) -> tuple[int, Site | None]:
    """The first layer that is run again, and the one site whose tokens are the first, if one is."""
    positions = {site.position for site in patch.sites}
    one = patch.sites[0] if len(positions) == 1 and None not in positions else None
    return min(site.layer for site in patch.sites), one


def _chunks(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def _entry(patch: Patch, here: Rerun) -> tuple[int, int]:
    """First layer and token a patch changes: those that enter together share a forward pass."""
    where = {site.position for site in patch.sites}
    index = here.inputs.index
    first = 0 if None in where else min(int(index(p).min()) for p in where if p is not None)
    return min(here.joined(site).layer for site in patch.sites), first


def _idle(there: Rerun | Standing, here: Rerun, patch: Patch) -> bool:
    """Whether a patch of the stream writes what the run has there, bit for bit: tokens before the
    first that differs, layers before the first that does. Nothing need run again."""
    if patch.added:
        return False
    for site in patch.sites:
        own = here.joined(site)
        if own.kind != "resid_pre" or meant.is_mean(site):
            return False
        if not torch.equal(there.read(site), here.read(own)):
            return False
    return True


def require_some(patches: Sequence[Patch]) -> None:
    """Raises where nothing is to be patched."""
    if not patches:
        raise WorkbenchError("Nothing to patch: give at least one site, position or group.")


def require_batches(batch_size: int) -> None:
    if batch_size < 1:
        raise WorkbenchError(f"batch_size must be at least 1, not {batch_size}.")


def require_aligned(ours: Sequence[Row], theirs: Sequence[Row], patches: Sequence[Patch]) -> None:
    """Raises unless every patch means the same tokens in each prompt and its partner, whatever the
    batches: all of them in rows of one length, a count within the prompt (from its first token only
    where both have one length), a named place of one number of tokens throughout."""
    whole = any(s.position is None or s.kind == "pattern" for p in patches for s in p.sites)
    unequal = [a for a, b in zip(ours, theirs, strict=True) if len(a.fed) != len(b.fed)]
    if whole and unequal:
        raise WorkbenchError(
            f"Prompt {unequal[0].name!r} and its partner have different lengths, so "
            "not all tokens can be patched; give places (-1, or a named one), or "
            "partners of one length."
        )
    for position in dict.fromkeys(site.position for patch in patches for site in patch.sites):
        if isinstance(position, int):
            _require_counted(ours, theirs, position)
        elif position is not None and position.endswith(meant.MEAN):
            require_one_width(ours, position)
            require_one_width(theirs, position)
        elif position is not None:
            require_one_width([*ours, *theirs], position)


def _require_counted(ours: Sequence[Row], theirs: Sequence[Row], position: int) -> None:
    shortest = min(len(row.ids) for row in (*ours, *theirs))
    if not -shortest <= position < shortest:
        raise WorkbenchError(f"Position {position} lies outside a prompt of {shortest} tokens.")
    for one, other in zip(ours, theirs, strict=True) if position > 0 else ():
        few, many = sorted((len(one.ids), len(other.ids)))
        if few < many:
            raise WorkbenchError(
                f"Prompt {one.name!r} and its partner have {few} and {many} tokens, so "
                f"token {position} is not the same place in both; give named places, "
                "counts from the end (-1), or partners of one length."
            )


def _require_null(here: Rerun, patches: Sequence[Patch], fill: int, device: str) -> None:
    """A patch of a run's own values must change nothing, bit for bit: one patch of each component,
    on the batch's first prompt. (The mean over a place is none of its own values.)"""
    first = batch(here.inputs.rows, [0], device, fill)
    plain = [patch for patch in patches if not any(map(meant.is_mean, patch.sites))]
    for patch in {patch.about["component"]: patch for patch in plain}.values():
        own = Rerun(here.model, first, {site.whole for site in patch.sites})
        same = own.again([_values(own, own, patch)], whole=True)
        if not torch.equal(same, own.logits):
            raise RuntimeError(f"A patch of {patch.sites[0]} with its own values changed the run.")
