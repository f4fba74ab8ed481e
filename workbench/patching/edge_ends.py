"""The two ends of an edge in the modules of a model: what a head adds to the stream, and what a
receiver makes of it.

Between head and stream stands the output projection and, in some models, a norm of all heads' sum;
between stream and receiver a norm, the receiver's projection and, in some models, a norm of what
that gives. `edges` says what is scored of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.loaders.devices import offloaded
from workbench.models import Layout, Site
from workbench.models.sites import Kind
from workbench.patching.frozen_norm import parts_behind

READ: tuple[Kind, ...] = ("q", "k", "v")


def heads_add(layout: Layout, layer: int, z: Tensor) -> Tensor:
    """What each head adds to the stream, (heads, batch, token, width), for z (batch, token, heads,
    d_head); what the projection adds by itself is left out. Behind a norm each head's part of what
    that gives, with an equal part of what the projection adds by itself."""
    project: Any = layout.module(Site("z", layer))
    heads = z.shape[2]
    alone = torch.eye(heads, device=z.device, dtype=z.dtype)[:, None, None, :, None]
    flat = (z * alone).flatten(-2)
    norm = norm_behind(layout, layer)
    with torch.no_grad():
        nothing = project(torch.zeros_like(flat[0]))
        made = project(flat.flatten(0, 1)).unflatten(0, (heads, -1)) - nothing
        made = made if norm is None else parts_behind(norm, made + nothing / heads).to(made)
    return made * layout.scale(Site("attn_out", layer))


def norm_behind(layout: Layout, layer: int) -> torch.nn.Module | None:
    """The norm between attention and the stream."""
    added = layout.parts(layer).attn
    if added is None or added.path == added.within:
        return None
    return layout.block(layer).get_submodule(added.path)


def matrix(layout: Layout, site: Site, like: Tensor) -> Tensor:
    """The matrix (in, out) by which a projection multiplies, whatever it is made of, its output as
    the site shows it. like: what it is given, (batch, token, ...)."""
    module: Any = layout.module(site)
    width = like[0, 0].numel()
    with torch.no_grad():
        # Known without asking; an adapter's layer is of another class.
        if type(module) is torch.nn.Linear and not offloaded(module):
            made = module.weight.detach().T[:, None]
            made = layout.view(site, made, width) if site.kind in READ else made
            return made.flatten(1).float()
        given = torch.eye(width, device=like.device, dtype=like.dtype)[:, None]
        made = module(torch.cat([given, torch.zeros_like(given[:1])]))
        made = layout.view(site, made, width + 1) if site.kind in READ else made
    flat = made.flatten(1).float()
    return flat[:-1] - flat[-1]


def stream_of(layout: Layout, receiver: Site) -> Site:
    """Where a receiver reads the stream."""
    if receiver.kind == "resid_post":
        return receiver
    mid = receiver.kind == "mlp_out" and not layout.parallel
    return Site("resid_mid" if mid else "resid_pre", receiver.layer)


def reader(layout: Layout, receiver: Site) -> Callable[[Tensor], Tensor]:
    """What a receiver makes of the stream, (batch, token, width) -> the site's tensor."""
    if receiver.kind == "resid_post":
        return lambda stream: stream
    own, block = layout.module(receiver), layout.block(receiver.layer)
    before = source(layout, receiver)
    inner = [block.get_submodule(before)] if before else []
    chain: list[Any] = [norm_of(layout, receiver), *inner, own]

    def read(stream: Tensor) -> Tensor:
        made = stream
        for module in chain:
            made = module(made)
            made = made[0] if isinstance(made, tuple) else made
        return layout.view(receiver, made, len(stream))

    return read


def source(layout: Layout, receiver: Site) -> str:
    """The module of the block that gives what a receiver's own is given, where that is a norm: the
    MLP before the norm of what it adds, the projection before a norm over all heads."""
    part = layout.parts(receiver.layer)
    if receiver.kind == "mlp_out":
        assert part.mlp is not None
        return part.mlp.within if part.mlp.within != part.mlp.path else ""
    projection = {"q": part.q, "k": part.k, "v": part.v}[receiver.kind]
    assert projection is not None
    return projection.source


def norm_of(layout: Layout, receiver: Site) -> torch.nn.Module:
    """The norm between the stream and a receiver."""
    part, block = layout.parts(receiver.layer), layout.block(receiver.layer)
    own = part.norm2 if receiver.kind == "mlp_out" else part.norm1
    return block.get_submodule(own) if own else torch.nn.Identity()


def as_run(model: Any) -> contextlib.AbstractContextManager[None]:
    """The model's modules called on their own run as inside it."""
    return getattr(model, "as_run", contextlib.nullcontext)()
