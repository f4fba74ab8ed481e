"""What would a patch change, to first order: one run forwards and one back for all of them.

The effect of a patch is the difference of the two runs' activations there times the slope of the
metric in the run that is patched, or the mean slope on the way between both inputs; the same slopes
tell every edge. `attribution` says what is read of it, and when it misleads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace as replace_site
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.files.large import unknown
from workbench.models import Layout, Site, replace
from workbench.models.rerun import answers_only, predictors
from workbench.models.sites import pick
from workbench.patching import edges as graph
from workbench.patching import places as meant
from workbench.patching import sweep as shared
from workbench.patching.edges import EMBEDDING
from workbench.patching.metrics import Metric
from workbench.patching.patches import Patch
from workbench.patching.per_prompt import stored
from workbench.patching.sweep import Side
from workbench.patching.sweep_plan import Plan, counted
from workbench.tasks.batching import Batch, batch, in_batches, pad_id


class Observed(NamedTuple):
    """One run. logits: (batch, answer, vocabulary). metric: (batch,). values, slopes: whole site ->
    activation, and the gradient of its prompt's metric there (empty unless asked for), shapes as in
    Site."""

    logits: Tensor
    metric: Tensor
    values: dict[Site, Tensor]
    slopes: dict[Site, Tensor]


class Attributed(NamedTuple):
    """First-order effects on the metric itself. effects, shuffled: (patches, prompts); edges:
    (edges, prompts). zero, one: (prompts,), the metric in the destination's and source's runs."""

    effects: np.ndarray
    shuffled: np.ndarray
    edges: np.ndarray
    zero: np.ndarray
    one: np.ndarray

    def kept(self, side: str, measure: str) -> dict[str, np.ndarray]:
        """The tensors of single prompts: effects under "attribution", the metric in the two runs
        under its own name."""
        runs = stored(side, "destination", {measure: self.zero})
        runs |= stored(side, "source", {measure: self.one})
        edges = {"edge_attribution": self.edges} if len(self.edges) else {}
        return runs | stored(side, "patch", {"attribution": self.effects} | edges)


def observe(
    model: Any,
    inputs: Batch,
    sites: Collection[Site],
    measure: str,
    *,
    slopes: bool = True,
    stream: Tensor | None = None,
    metric: Metric | None = None,
    reference: Tensor | None = None,
) -> Observed:
    """Run `inputs` once and, for the slopes, backwards once, for all whole sites together.

    measure: of `metrics.measured`, or of `metric` by its name, with the `reference`'s logits; the
    run's own where there is no reference. stream: (batch, token, width), instead of the embedding.
    """
    values: dict[Site, Tensor] = {}
    zeros: dict[Site, Tensor] = {}

    def keep(site: Site, full: Tensor) -> Tensor:
        full = stream if stream is not None and site == EMBEDDING else full
        values[site] = full.detach()
        if not slopes:
            return full
        # Adding zero changes no value, and the gradient of what is added is the activation's.
        zeros[site] = torch.zeros_like(full, requires_grad=True)
        return full + zeros[site]

    wanted = {*sites, *([] if stream is None else [EMBEDDING])}
    with (
        torch.set_grad_enabled(slopes),
        replace(model, {site: partial(keep, site) for site in wanted}),
        answers_only(Layout(model), predictors(inputs)),
    ):
        logits = model(**inputs.inputs, use_cache=False).logits
        goal = logits.detach() if reference is None else reference
        scored = shared.measured(logits[None], inputs, goal, metric)[measure][0]
        found: Sequence[Tensor] = ()
        if slopes:
            # Rows do not see each other, so that the sum's gradient is every row's own.
            found = torch.autograd.grad(
                scored.nansum(), list(zeros.values()), allow_unused=True, materialize_grads=True
            )
    return Observed(logits.detach(), scored.detach(), values, dict(zip(zeros, found, strict=False)))


def first_order(
    patches: Sequence[Patch],
    source: tuple[Batch, Mapping[Site, Tensor]],
    destination: tuple[Batch, Mapping[Site, Tensor]],
    slopes: Mapping[Site, Tensor],
) -> Tensor:
    """sum (source - destination) . slope over each patch's tokens and features, (patches, batch).

    source, destination: a batch and its activations by whole site.
    """
    products: dict[Site, Tensor] = {}

    def product(place: Site) -> Tensor:
        def at(inputs: Batch, kept: Mapping[Site, Tensor]) -> Tensor:
            index = None if place.position is None else inputs.index(place.position)
            return pick(place, kept[place.whole], index).float()

        return (meant.taken(place, at(*source)) - at(*destination)) * at(destination[0], slopes)

    found = []
    for patch in patches:
        total = torch.zeros(len(destination[0].rows), device=destination[0].ids.device)
        for site in patch.sites:
            place = replace_site(site, head=None, neuron=None)
            if place not in products:
                products[place] = product(place)
            own = pick(replace_site(site, position=None), products[place], None)
            total = total + own.flatten(1).sum(1)
        found.append(total)
    return torch.stack(found)


class Job(NamedTuple):
    """One destination and source, ready to be attributed and checked."""

    destination: Side
    source: Side
    patches: Sequence[Patch]
    words: Any
    measure: str
    metric: Metric | None
    steps: int
    edges: bool
    batch_size: int
    device: str

    def plan(self, exact: int) -> Plan:
        """The plain and the shuffled runs, a run back for every step, and the exact patches."""
        model, given = self.destination.model, self.destination.rows
        kinds = {site.whole for patch in self.patches for site in patch.sites}
        forwards = 3.0 + 3 * self.steps + exact * (2 + 2 * self.edges)
        known = (kinds, self.words, self.batch_size, self.device)
        return counted(model, given, len(self.patches), forwards, *known, gradients=True)

    def attributed(self) -> Attributed:
        """Every patch's first-order effect on every prompt."""
        # Edges are summed over all tokens, and all tokens' embeddings are interpolated.
        whole = [Patch((EMBEDDING,))] if self.edges or self.steps > 1 else []
        shared.require_aligned(self.destination.rows, self.source.rows, [*self.patches, *whole])
        links = graph.links(Layout(self.destination.model)) if self.edges else []
        size = len(self.destination.rows)
        shape = (len(self.patches), size)
        made = Attributed(
            *(unknown(shape), unknown(shape), unknown((len(links), size))),
            *(np.full(size, np.nan), np.full(size, np.nan)),
        )
        lengths = [len(row.fed) for row in self.destination.rows]
        for at, found in in_batches(lengths, self.batch_size, self._batch):
            for kept, value in zip(made, found, strict=True):
                kept[..., at] = value.cpu().numpy()
        return made

    def _batch(self, at: list[int]) -> tuple[Tensor, ...]:
        """As Attributed, for the prompts at these numbers."""
        fill = pad_id(self.words)
        there = batch(self.source.rows, at, self.device, fill)
        here = batch(self.destination.rows, at, self.device, fill)
        layout = Layout(self.destination.model)
        kinds = {site.whole for patch in self.patches for site in patch.sites}
        kinds |= {EMBEDDING, *(graph.needed(layout) if self.edges else ())}
        goal = self._observe(self.source.model, there, kinds, None, slopes=False)
        start = self._observe(
            self.destination.model, here, kinds, goal.logits, slopes=self.steps == 1
        )
        others, alone = shared.turned(shared.shuffle(self.source.rows), at)
        turned = batch(self.source.rows, others, self.device, fill)
        away = self._observe(self.source.model, turned, kinds, None, slopes=False)
        ends = (there, goal.values), (here, start.values)
        effects = shuffled = links = torch.zeros(())
        for step in self._path(start, goal, here, kinds):
            effects = effects + first_order(self.patches, *ends, step.slopes)
            shuffled = shuffled + first_order(
                self.patches, (turned, away.values), ends[1], step.slopes
            )
            if self.edges:
                links = links + graph.scores(
                    self.destination.model, goal.values, start.values, step.values, step.slopes
                )
        shuffled = shuffled.masked_fill(alone.to(shuffled.device), torch.nan)
        unknown = start.metric.isnan()
        effects, shuffled, links = (
            (part / self.steps).masked_fill(unknown, torch.nan)
            for part in (effects, shuffled, links)
        )
        return effects, shuffled, links, start.metric, goal.metric

    def _observe(
        self,
        model: Any,
        inputs: Batch,
        kinds: Collection[Site],
        reference: Tensor | None,
        **how: Any,
    ) -> Observed:
        """One run, judged by this job's metric; without a reference it is its own."""
        known = {"metric": self.metric, "reference": reference}
        return observe(model, inputs, kinds, self.measure, **known, **how)

    def _path(
        self, start: Observed, goal: Observed, here: Batch, kinds: Collection[Site]
    ) -> Iterator[Observed]:
        """The runs whose gradients are averaged: the destination's own, or those on the way."""
        if self.steps == 1:
            yield start
            return
        ends = start.values[EMBEDDING], goal.values[EMBEDDING]
        for step in range(self.steps):
            stream = torch.lerp(*ends, (step + 0.5) / self.steps)
            yield self._observe(self.destination.model, here, kinds, goal.logits, stream=stream)
