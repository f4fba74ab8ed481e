"""The parts of a decoder as data: which module is what, and how its numbers lie.

`parts` finds them in a model; `layout` says which sites they give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Order = Literal["own", "blocks", "heads", "groups", "first", "last"]


@dataclass(frozen=True)
class Projection:
    """Where one of q, k and v comes out: a module of a block, and how its last axis is laid out.

    order: "own" (all of it, head by head), "blocks" (all of q, then k, then v), "heads" (q, k and v
    of each head in turn), "groups" (the queries of a key-value head, its key, its value, in turn),
    "first" or "last" (so many numbers of each head, with others behind or before them). source: the
    projection itself, where the module is a norm over all heads behind it (OLMo 2)."""

    path: str
    order: Order
    heads: int
    width: int  # of a head
    norm: str = ""  # of single heads, between it and what attention works with
    source: str = ""

    def cut(self, kind: str, raw: Tensor, shape: tuple[int, int]) -> Tensor:
        """Its part of what the module gives, (..., heads, width); a view but for queries in several
        groups. shape: heads and key-value heads."""
        queries, keys = shape
        if self.order == "heads":
            return raw.unflatten(-1, (self.heads, 3, self.width))[..., "qkv".index(kind), :]
        if self.order == "groups":
            share = queries // keys
            split = raw.unflatten(-1, (keys, share + 2, self.width))
            if kind == "q":
                return split[..., :share, :].flatten(-3, -2)
            return split[..., share + "kv".index(kind), :]
        if self.order == "blocks":
            begin = self.width * {"q": 0, "k": queries, "v": queries + keys}[kind]
            raw = raw[..., begin : begin + self.heads * self.width]
        split = raw.unflatten(-1, (self.heads, -1))
        return split[..., -self.width :] if self.order == "last" else split[..., : self.width]


@dataclass(frozen=True)
class Added:
    """What one sublayer adds to the stream: `scale` times what the module at `path` gives. within:
    the sublayer itself, which is another where a norm stands behind it."""

    path: str
    within: str
    scale: float = 1.0


@dataclass(frozen=True)
class Block:
    """The parts of one block, as paths relative to it; "" or None where it has none.

    attention: the module that takes the softmax. heads, kv_heads, width: their numbers and the
    width of a head of z. sinks: columns of the softmax that stand for no token. o, down: the output
    projections of attention and feed-forward. attn, mixer, mlp, other: what the sublayers add;
    mixer is what mixes tokens without a softmax, other what is neither attention nor the first
    feed-forward (shared experts beside it, the per-layer input of Gemma 4). mid: the module that
    reads the stream between. norm1, norm2: the norms between the stream and what attention's q and
    the feed-forward are given, None where more or other than a norm stands there. router: what
    chooses experts; experts: the module that is called with the choice."""

    attention: str = ""
    heads: int = 0
    kv_heads: int = 0
    width: int = 0
    sinks: int = 0
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None
    o: str = ""
    attn: Added | None = None
    mixer: Added | None = None
    mid: str = ""
    norm1: str | None = None
    norm2: str | None = None
    down: str = ""
    mlp: Added | None = None
    other: Added | None = None
    router: str = ""
    experts: str = ""
    parallel: bool = False
    whole: bool = False  # whether the sublayers named are all that is added
    gain: str = ""  # the buffer that all of it, the stream too, is multiplied with in the end
    gives: int = 0  # how many things a block gives in a tuple, 0 for a tensor by itself


@dataclass(frozen=True)
class Structure:
    """layers: path of the list of blocks. stream: width of the residual stream. norm: the norm
    behind the last block, "" for none."""

    layers: str
    blocks: tuple[Block, ...]
    stream: int
    norm: str
