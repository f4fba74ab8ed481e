"""One vocabulary of places in a decoder.

A Site is a kind of activation, a layer, and where it applies a head and a token position:

    resid_pre -> (q, k, v -> pattern -> z -> attn_out) or mixer_out -> resid_mid
    -> (router_logits -> expert_weights, mlp_hidden -> mlp_out), other_out -> resid_post

The names are TransformerLens', but for four. What ends in `_out` is what is added to the stream:
where a model normalises a sublayer's output (Gemma 2) it is taken behind that norm, and where it
scales one (Granite) with that factor. `q`, `k` and `v` are the projections' outputs, before any
rotation or norm of single heads, and behind one over all of them (OLMo 2); `z` is the input of the
output projection, so where a gate stands before that (Qwen3-Next) z is behind the gate. `mixer_out`
is of a sublayer that mixes tokens without a softmax: a state-space model's, linear attention, a
convolution. `other_out` is what a block adds besides: a second feed-forward of shared experts, the
per-layer input of Gemma 4. Of a mixture of experts `router_logits` are those before any softmax,
`expert_weights` what each token takes of each expert's output, 0 of those it did not choose.

Where each lies in one model is told by its `Layout`, and proved by `site_verification`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

Kind = Literal[
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mixer_out", "resid_mid",
    "router_logits", "expert_weights", "mlp_hidden", "mlp_out", "other_out", "resid_post",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of execution
HEADED = ("q", "k", "v", "pattern", "z")
End = Literal["input", "output", "softmax", "routing"]


@dataclass(frozen=True)
class Site:
    """One place. head: None for all of them. position: None for every token; an integer counts
    from the prompt's end where negative (-1: its last token) and from its first token otherwise; a
    name is a span of the prompt ("query box"). neuron: one of mlp_hidden's; None for all of them.

    Shapes: residual and sublayer sites (batch, token, width); q and z (batch, token, head, d_head);
    k and v the same with key-value heads; pattern (batch, head, query, key); router_logits
    and expert_weights (batch, token, expert). A head or a neuron drops its axis; a position picks
    tokens (for pattern: queries).
    """

    kind: Kind
    layer: int
    head: int | None = None
    position: int | str | None = None
    neuron: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WorkbenchError(f"Unknown site {self.kind!r}; the kinds are {', '.join(KINDS)}.")
        if self.head is not None and self.kind not in HEADED:
            raise WorkbenchError(f"{self.kind} has no heads; leave head out, or use z.")
        if self.neuron is not None and self.kind != "mlp_hidden":
            raise WorkbenchError(
                f"{self.kind} has no neurons; leave neuron out, or use mlp_hidden."
            )

    def __str__(self) -> str:
        parts = [str(self.layer), self.kind]
        parts += [] if self.head is None else [f"h{self.head}"]
        parts += [] if self.neuron is None else [f"n{self.neuron}"]
        return ".".join(parts) + ("" if self.position is None else f"@{self.position}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """What `str` gives: "4.resid_post", "2.z.h3@-1", "0.mlp_hidden.n7", "0.v@query box"."""
        found = re.fullmatch(r"(\d+)\.([a-z_]+)(?:\.([hn])(\d+))?(?:@(.+))?", text)
        if not found:
            raise WorkbenchError(f'Expected a site such as "2.z.h3@-1", found {text!r}.')
        layer, kind, letter, number, place = found.groups()
        head = int(number) if letter == "h" else None
        neuron = int(number) if letter == "n" else None
        return cls(cast(Kind, kind), int(layer), head, position_of(place), neuron)

    @property
    def whole(self) -> Site:
        """All heads, neurons and tokens of this kind and layer."""
        return Site(self.kind, self.layer)

    @property
    def order(self) -> tuple[int, int]:
        """Sites sorted by it come in the order of execution."""
        return self.layer, KINDS.index(self.kind)


def position_of(text: str | None) -> int | str | None:
    """A position as it is typed: a count where it is one, else a name; None where there is none."""
    return int(text) if text and re.fullmatch(r"-?\d+", text) else text


def end(site: Site) -> End:
    """Which end of its module a site is: its input, its output, the softmax inside it, or what its
    experts are called with."""
    if site.kind == "pattern":
        return "softmax"
    if site.kind == "expert_weights":
        return "routing"
    return "input" if site.kind in ("resid_pre", "z", "resid_mid", "mlp_hidden") else "output"


def pick(site: Site, full: Tensor, index: Tensor | None) -> Tensor:
    """The site's part of a tensor that holds all heads and tokens.

    index: (batch, p) token numbers, or None for every token.
    """
    own = _head(site, full)
    if index is None:
        return own
    tokens, swapped = _tokens_second(site, own)
    found = tokens[_rows(index), index]
    return found.transpose(1, 2) if swapped else found


def put(site: Site, full: Tensor, index: Tensor | None, value: Tensor) -> None:
    """Write the site's part of `full` in place, shapes as `pick` gives them."""
    own = _head(site, full)
    value = value.to(device=full.device, dtype=full.dtype)
    if index is None:
        own.copy_(value.expand_as(own))
        return
    tokens, swapped = _tokens_second(site, own)
    tokens[_rows(index), index] = value.transpose(1, 2) if swapped and value.ndim > 2 else value


def _head(site: Site, full: Tensor) -> Tensor:
    if site.neuron is not None:
        return full[..., site.neuron]
    if site.head is None:
        return full
    return full[:, site.head] if site.kind == "pattern" else full[..., site.head, :]


def _tokens_second(site: Site, own: Tensor) -> tuple[Tensor, bool]:
    swap = site.kind == "pattern" and site.head is None
    return (own.transpose(1, 2), True) if swap else (own, False)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device)[:, None]
