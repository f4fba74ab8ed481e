"""Edge attribution patching: what does every head and MLP send to every later one?

Senders u add to the residual stream: the embedding (the stream before layer 0), each head through
its output projection, each MLP. Receivers v read it: each head's query, each key-value head's key
and value, each MLP, and the logits. Their first-order effect on the metric m (Syed, Rager & Conmy
2023, arXiv 2310.10348) is

    score(u -> v) = sum over tokens (out_clean(u) - out_corrupt(u)) . dm/d(in v)

where in v is the stream before v's norm, and the gradient goes through that norm and v's own
projection alone. The scores of all edges that leave u add up to u's own attribution, exactly: the
stream is a sum. `exact_logits` makes an edge in earnest: v reads the corrupt stream with u's
difference added, everything else follows. It misleads where attribution does (saturated softmaxes),
and a query edge and a key edge that matter only together look like nothing each.

Where a norm stands behind a sublayer (OLMo 2, Gemma 2 and 3) what is added is what the norm gives:
all of it for an MLP, and for a head its part at the scale that the norm of all heads' sum has in
the run (`frozen_norm`). These parts add up to what attention adds in either run, so that all edges
together still lead from one run to the other; but a head's part changes with the other heads too,
through the scale, so its edges add up to the attribution of what attention adds only over all
heads of a layer, and none of them to the attribution of its own z.

What every head adds to the stream is formed for a few prompts at a time, so that memory is bounded
and an edge costs one product over tokens and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sites import Kind
from workbench.patching.edge_ends import (
    READ,
    as_run,
    heads_add,
    matrix,
    norm_behind,
    norm_of,
    reader,
    source,
    stream_of,
)

Values = Mapping[Site, Tensor]  # whole site -> (batch, token, ...)
EMBEDDING = Site("resid_pre", 0)
ROOM = 1 << 26  # numbers of all senders' differences that are in memory at once (256 MiB)


class Link(NamedTuple):
    """sender: resid_pre of layer 0 (the embedding), a head's z, or mlp_out. receiver: a head's q, k
    or v; mlp_out, which stands for that MLP's input; the last resid_post for the logits'."""

    sender: Site
    receiver: Site

    @property
    def named(self) -> dict[str, str]:
        """The table's columns: "embedding" or "1.mlp_out" -> "3.q.h1", "4.mlp" or "logits"."""
        ends = {"resid_post": "logits", "mlp_out": f"{self.receiver.layer}.mlp"}
        return {
            "sender": "embedding" if self.sender == EMBEDDING else str(self.sender),
            "receiver": ends.get(self.receiver.kind, str(self.receiver)),
        }


class Group(NamedTuple):
    """Receivers that the same senders precede, and how many layers' heads and MLPs those are."""

    receivers: list[Site]
    heads: int
    mlps: int


def groups(layout: Layout) -> list[Group]:
    """All receivers, in the order of the model and of `scores`."""
    made = []
    for layer in range(layout.layers):
        for kind in READ:
            heads = layout.heads if kind == "q" else layout.kv_heads
            own = [Site(kind, layer, head) for head in range(heads)]
            made.append(Group(own, layer, layer))
        before = layer if layout.parallel else layer + 1
        made.append(Group([Site("mlp_out", layer)], before, layer))
    last = Site("resid_post", layout.layers - 1)
    return [*made, Group([last], layout.layers, layout.layers)]


def senders(layout: Layout, group: Group) -> list[Site]:
    """What precedes a group: the embedding, heads, MLPs."""
    heads = [Site("z", layer, h) for layer in range(group.heads) for h in range(layout.heads)]
    return [EMBEDDING, *heads, *(Site("mlp_out", layer) for layer in range(group.mlps))]


def links(layout: Layout) -> list[Link]:
    """Every edge, in the order of `scores`. Raises WorkbenchError where attention adds something
    else than its heads, where a receiver's input is not the stream or a norm of it (an MLP that is
    no module by itself, latent attention), or where blocks are not of one shape."""
    layout.require_heads("leave edges out")
    for kind in ("z", *READ):
        layout.require_even(kind, "leave edges out")
    for number, part in enumerate(layout.structure.blocks):
        read = part.norm1 is not None and part.norm2 is not None
        plain = part.whole and part.mixer is None and part.other is None
        if not read or not plain or not all((part.q, part.k, part.v)):
            raise WorkbenchError(
                f"The input of block {number} of this model is not just the stream "
                "after a norm; leave edges out."
            )
    return [
        Link(sender, receiver)
        for group in groups(layout)
        for sender in senders(layout, group)
        for receiver in group.receivers
    ]


def needed(layout: Layout) -> set[Site]:
    """The whole sites whose activations and gradients `scores` reads."""
    kinds: tuple[Kind, ...] = ("resid_pre", *READ, "z", "mlp_out")
    kinds = kinds if layout.parallel else (*kinds, "resid_mid")
    found = {Site(kind, layer) for kind in kinds for layer in range(layout.layers)}
    return found | {Site("resid_post", layout.layers - 1)}


def scores(
    model: Any, source: Values, destination: Values, values: Values, slopes: Values
) -> Tensor:
    """First-order effect of every edge, (edges, batch), in the order of `links`.

    source, destination: the activations of the clean and the corrupt run. values, slopes: those of
    the run whose gradient is taken, the corrupt one itself or one between the two.
    """
    layout, size = Layout(model), len(values[EMBEDDING])
    order = {site: place for place, site in enumerate(_in_order(layout))}
    rows = max(1, ROOM // (len(order) * values[EMBEDDING][0].numel()))
    parts = [slice(begin, begin + rows) for begin in range(0, size, rows)]
    with torch.enable_grad(), as_run(model):
        given = (source, destination, values, slopes)
        found = [
            _scored(layout, order, *({s: full[part] for s, full in own.items()} for own in given))
            for part in parts
        ]
    return torch.cat(found, dim=1)


def _in_order(layout: Layout) -> list[Site]:
    """Every sender, layer by layer, so that those that precede a receiver are the first so many."""
    made = [EMBEDDING]
    for layer in range(layout.layers):
        made += [Site("z", layer, head) for head in range(layout.heads)]
        made.append(Site("mlp_out", layer))
    return made


def _scored(
    layout: Layout,
    order: Mapping[Site, int],
    source: Values,
    destination: Values,
    values: Values,
    slopes: Values,
) -> Tensor:
    """`scores` of some prompts, whose senders' differences are all in memory."""
    sent = _sent(layout, order, source, destination)
    found = []
    # Receivers behind the same heads are scored at once: one reading of what is sent to them.
    for _, together in groupby(groups(layout), lambda group: group.heads):
        same, pulled = list(together), []
        for group in same:
            first = group.receivers[0]
            if first.kind == "resid_post":
                pulled.append(slopes[first])
            else:
                pulled += _pulled(layout, first.whole, values, slopes[first.whole])
        places = [[order[site] for site in senders(layout, group)] for group in same]
        read = torch.stack(pulled, dim=1).flatten(2).float()
        made = sent[:, : max(map(len, places))] @ read.mT  # (batch, senders, receivers)
        own = made.split([len(group.receivers) for group in same], dim=-1)
        found += [
            part[:, at].permute(1, 2, 0).flatten(0, 1) for part, at in zip(own, places, strict=True)
        ]
    return torch.cat(found)


def _pulled(layout: Layout, site: Site, values: Values, slope: Tensor) -> list[Tensor]:
    """The gradient at each receiver's input, (batch, token, width), through the norm and through
    each head's own rows of the projection."""
    given = values[stream_of(layout, site)].detach().requires_grad_()
    if site.kind == "mlp_out":
        return [*torch.autograd.grad(reader(layout, site)(given), given, slope)]
    if source(layout, site):
        # A norm over all heads joins them, so each head's own way back is taken whole.
        made = reader(layout, site)(given)
        ways = [(made[:, :, head], slope[:, :, head]) for head in range(slope.shape[2])]
    else:
        rows = matrix(layout, site, given).unflatten(-1, slope.shape[2:])
        inside = torch.einsum("bthd,whd->hbtw", slope.float(), rows)
        made = norm_of(layout, site)(given)
        ways = [(made, own.to(made.dtype)) for own in inside]
    return [torch.autograd.grad(made, given, own, retain_graph=True)[0] for made, own in ways]


def _sent(layout: Layout, order: Mapping[Site, int], source: Values, destination: Values) -> Tensor:
    """What every sender adds to the stream in one run, less what it adds in the other, (batch,
    senders, token x width)."""

    def change(site: Site) -> Tensor:
        return (source[site] - destination[site]).float()

    embedded = change(EMBEDDING)
    made = embedded.new_empty(len(embedded), len(order), *embedded.shape[1:])
    made[:, order[EMBEDDING]] = embedded
    for layer in range(layout.layers):
        site = Site("z", layer)
        begin = order[Site("z", layer, 0)]
        heads = made[:, begin : begin + layout.heads]
        if norm_behind(layout, layer) is not None:
            own = (heads_add(layout, layer, run[site]).float() for run in (source, destination))
            heads.copy_(torch.sub(*own).transpose(0, 1))
        else:
            own = change(site)
            rows = matrix(layout, site, source[site]).unflatten(0, own.shape[2:])
            rows = rows * layout.scale(Site("attn_out", layer))
            heads.copy_(own.transpose(1, 2) @ rows)
        made[:, order[Site("mlp_out", layer)]] = change(Site("mlp_out", layer))
    return made.flatten(2)


def exact_logits(there: Rerun, here: Rerun, chosen: Sequence[Link], size: int = 16) -> Tensor:
    """Logits (edges, batch, answer, vocabulary) of `here` with each edge alone carrying `there`'s
    value. Both runs have read `needed`; size: edges that share a forward pass."""
    found = []
    for begin in range(0, len(chosen), size):
        patches = []
        for link in chosen[begin : begin + size]:
            place = link.receiver
            stream = here.kept[stream_of(here.layout, place.whole)] + _difference(there, here, link)
            with torch.no_grad(), as_run(here.model):
                value = reader(here.layout, place.whole)(stream)
            patches.append({place: value if place.head is None else value[..., place.head, :]})
        found.append(here.again(patches))
    return torch.cat(found)


def _difference(there: Rerun, here: Rerun, link: Link) -> Tensor:
    """What the sender adds to the stream in one run, less what it adds in the other."""
    site = link.sender
    if site.kind == "z" and norm_behind(here.layout, site.layer) is not None:
        with as_run(here.model):
            one, other = (
                heads_add(r.layout, site.layer, r.kept[site.whole]) for r in (there, here)
            )
        return (one - other)[site.head]
    if site.kind == "z":
        return there.added(site, there.read(site)) - here.added(site, here.read(site))
    return there.kept[site] - here.kept[site]
