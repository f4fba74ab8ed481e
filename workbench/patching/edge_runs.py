"""A model run with some of its edges alone: everything else is as on the corrupt prompt.

Every receiver reads the corrupt stream and, of each sender whose edge to it is in the circuit, what
that sender adds in this run less what it adds in the corrupt one:

    in(v) = stream_corrupt(v) + sum over u with u -> v in C of (out(u) - out_corrupt(u))

in the order of the model, so that what a sender has read decides what it sends. With all edges this
is the clean run, with none the corrupt one (Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806). An
edge that no chain of edges joins to the embedding carries nothing, so circuits need no pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.models import Layout, Site, replace
from workbench.models.rerun import answers_only, predictors
from workbench.patching import edge_ends as ends
from workbench.patching import edges as graph
from workbench.patching.edges import EMBEDDING
from workbench.tasks.batching import Batch

Values = Mapping[Site, Tensor]  # whole site -> (batch, token, ...)


class EdgeRun:
    """One batch of a model, ready to be run with any of its edges.

    clean: the prompts. embedding: their stream before layer 0. corrupt: what the corrupt run of
    partners of equal length has at `edges.needed`.
    """

    def __init__(self, model: Any, clean: Batch, embedding: Tensor, corrupt: Values) -> None:
        self.model, self.clean, self.corrupt = model, clean, corrupt
        self.layout = Layout(model)
        self.groups = graph.groups(self.layout)
        self.senders = {s: i for i, s in enumerate(graph.senders(self.layout, self.groups[-1]))}
        self.change = torch.zeros(
            len(self.senders), *embedding.shape, device=embedding.device, dtype=embedding.dtype
        )
        self.change[0] = embedding - corrupt[EMBEDDING]
        self._inside = False
        self._added: dict[int, Tensor] = {}  # what heads before a norm add in the corrupt run

    def logits(self, circuit: Tensor) -> Tensor:
        """Logits (batch, answer, vocabulary). circuit: (edges,) bool, in the order of
        `edges.links`."""
        parts = self._parts(circuit.to(self.change.device))
        self.change[1:] = 0
        writes: dict[Site, Callable[[Tensor], Tensor]] = {}
        for group, own in zip(self.groups, parts, strict=True):
            site = group.receivers[0].whole
            writes[site] = self._once(lambda full, s=site, m=own: self._received(s, m).to(full))
        for layer in range(self.layout.layers):
            z = Site("z", layer)
            writes[z] = self._once(lambda full, s=z: self._sent(s, full))
        with (
            torch.no_grad(),
            replace(self.model, writes),
            answers_only(self.layout, predictors(self.clean)),
        ):
            return self.model(**self.clean.inputs, use_cache=False).logits

    def _parts(self, circuit: Tensor) -> list[Tensor]:
        """(senders, receivers) of each group of receivers, with all senders of the model."""
        found, begin = [], 0
        for group in self.groups:
            own = graph.senders(self.layout, group)
            shape = (len(own), len(group.receivers))
            size = shape[0] * shape[1]
            whole = torch.zeros(len(self.senders), shape[1], device=circuit.device)
            places = [self.senders[sender] for sender in own]
            whole[places] = circuit[begin : begin + size].view(shape).to(whole)
            found.append(whole)
            begin += size
        return found

    def _once(self, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A change that leaves alone the calls which it makes itself."""

        def changed(full: Tensor) -> Tensor:
            if self._inside:
                return full
            self._inside = True
            try:
                return change(full)
            finally:
                self._inside = False

        return changed

    def _received(self, site: Site, mask: Tensor) -> Tensor:
        """What the receivers of one kind and layer make of what reaches them."""
        stream = self.corrupt[ends.stream_of(self.layout, site)]
        read = torch.einsum("sr,sbtw->rbtw", mask.to(self.change.dtype), self.change)
        made = ends.reader(self.layout, site)((stream + read).flatten(0, 1))
        made = made.unflatten(0, (mask.shape[1], -1))
        if site.kind == "resid_post":
            return made[0]
        if site.kind == "mlp_out":
            self.change[self.senders[site]] = made[0] - self.corrupt[site]
            return made[0]
        return torch.stack([own[:, :, head] for head, own in enumerate(made)], dim=2)

    def _sent(self, site: Site, z: Tensor) -> Tensor:
        """Note what this layer's heads send."""
        layer, before = site.layer, self.corrupt[site]
        if ends.norm_behind(self.layout, layer) is None:
            made = ends.heads_add(self.layout, layer, z - before)
        else:
            if layer not in self._added:
                self._added[layer] = ends.heads_add(self.layout, layer, before)
            made = ends.heads_add(self.layout, layer, z) - self._added[layer]
        first = self.senders[Site("z", layer, 0)]
        self.change[first : first + len(made)] = made
        return z
