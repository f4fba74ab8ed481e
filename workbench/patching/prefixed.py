"""What a prefix does to the attention of one layer, and what random prefixes do to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.models import Layout, Site
from workbench.patching.recalled import Attended, Called, Prefix, unread

SAME, RUNS = "with - without prefix", "tuned - base"
OWN = "prefix"  # the arm that is no control
GAP = 0.05  # of the largest output: more than rounding, in any precision


def arms(random: int) -> tuple[str, ...]:
    """The prefix itself, and as many random ones."""
    return OWN, *map(str, range(random))


class Added(NamedTuple):
    """Vectors at every token of a layer. heads: (batch, token, head, d_head), before the output
    projection. layer: (batch, token, width), behind it."""

    heads: Tensor
    layer: Tensor

    def sizes(self) -> Tensor:
        """Norms, (batch, token, head + 1): of the heads, and of the layer behind them."""
        return torch.cat([self.heads.norm(dim=-1), self.layer.norm(dim=-1, keepdim=True)], -1)

    def along(self, direction: Added) -> Tensor:
        """Squared parts in one direction each, (batch, token, head + 1)."""
        own, whole = (one / one.norm(dim=-1, keepdim=True).clamp(min=1e-30) for one in direction)
        heads = (self.heads * own).sum(-1)
        return torch.cat([heads, (self.layer @ whole)[..., None]], -1).square()

    def summed(self, real: Tensor) -> Added:
        """(head, d_head) and (width,): the sums over all tokens that are no padding."""
        heads = torch.einsum("bthd,bt->hd", self.heads, real)
        return Added(heads, torch.einsum("btw,bt->w", self.layer, real))

    def plus(self, other: Added | None) -> Added:
        """The sum of two sums."""
        return self if other is None else Added(*(a + b for a, b in zip(self, other, strict=True)))


def bias(attended: Attended, prefix: Prefix) -> Tensor:
    """sum_p a_p v_p of every head, (batch, token, head, d_head); heads share values in groups."""
    many = attended.pattern.shape[1] // prefix.values.shape[1]
    values = prefix.values.float().repeat_interleave(many, dim=1)
    return (attended.on_prefix @ values).transpose(1, 2)


def drawn(prefix: Prefix, seed: Sequence[int]) -> Prefix:
    """Keys and values of the same norms in random directions, the same in every row."""
    rng = np.random.default_rng(seed)

    def turned(own: Tensor) -> Tensor:
        noise = torch.from_numpy(rng.standard_normal(own.shape[1:])).float().to(own.device)
        unit = noise / noise.norm(dim=-1, keepdim=True)
        return (unit * own.float().norm(dim=-1, keepdim=True)).to(own.dtype)

    return Prefix(turned(prefix.keys), turned(prefix.values))


def tolerance(content: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding may move an attention over the content, (batch, head, query, key) ->
    (batch, head, query): 4 machine epsilons of scores as large as they are apart."""
    apart = -torch.where(content > 0, content, 1).log().amin(-1)
    return 4 * torch.finfo(dtype).eps * (1 + apart)


class Layer(NamedTuple):
    """One layer's attention behind its prefix. real: (batch, token), 1 where no padding is."""

    layout: Layout
    call: Called
    own: Attended
    real: Tensor

    def attention(self, base: Attended) -> dict[str, Tensor]:
        """How its attention over the content differs from that without the prefix and from the
        base's, (batch, head + 1)."""
        alone = self.call.again(self.layout, None)
        self._require_sum(alone)
        found = {}
        for side, other in ((SAME, alone), (RUNS, base)):
            apart = (self.own.content - other.content).abs().sum(-1) / 2
            found[f"content_change/{side}"] = _whole(self._mean(apart.transpose(1, 2)))
            found[f"largest_content_change/{side}"] = self._largest(apart)
        found["tolerance"] = self._largest(tolerance(alone.content, self.own.z.dtype))
        return found

    def biases(
        self, random: int, seed: int, directions: Mapping[str, Added] | None
    ) -> tuple[dict[str, Tensor], dict[str, Added]]:
        """What the prefix and random ones take and add: numbers, and sums by arm."""
        found: dict[str, Tensor] = {}
        sums: dict[str, Added] = {}
        for arm in arms(random):
            given, made = self.call.prefix, self.own
            if arm != OWN:
                given = drawn(given, (seed, self.call.layer, int(arm)))
                made = self.call.again(self.layout, given)
            added, whole = self._projected(bias(made, given)), self._projected(made.z.float())
            mass = made.on_prefix.sum(-1).transpose(1, 2)
            found[f"mass/{arm}"] = _whole(self._mean(mass))
            found[f"bias/{arm}"] = self._mean(added.sizes())
            found[f"output/{arm}"] = self._mean(whole.sizes())
            if directions is not None:
                found[f"along/{arm}"] = self._mean(added.along(directions[arm]))
                found[f"energy/{arm}"] = self._mean(added.sizes().square())
            sums[arm] = added.summed(self.real)
        return found, sums

    def _mean(self, values: Tensor) -> Tensor:
        """Over the tokens that are no padding, (batch, token, n) -> (batch, n)."""
        real = self.real[..., None]
        return (values * real).sum(1) / real.sum(1)

    def _largest(self, values: Tensor) -> Tensor:
        """Over those tokens, (batch, head, token) -> (batch, head + 1), the layer's over heads."""
        own = torch.where(self.real[:, None] > 0, values, 0).amax(-1)
        return torch.cat([own, own.amax(-1, keepdim=True)], -1)

    def _projected(self, z: Tensor) -> Added:
        """z (batch, token, head, d_head) and what the output projection makes of it, without its
        own bias."""
        project = self.layout.module(Site("z", self.call.layer))
        flat = z.flatten(2).to(self.own.z.dtype)
        with torch.no_grad():
            made = project(flat) - project(torch.zeros_like(flat[:1, :1]))
        return Added(z, made.float())

    def _require_sum(self, alone: Attended) -> None:
        """Raises unless outputs are the prefix's part and the rest scaled down."""
        left = 1 - self.own.on_prefix.sum(-1).transpose(1, 2)[..., None]
        whole = bias(self.own, self.call.prefix) + left * alone.z.float()
        apart = (whole - self.own.z.float()).abs() * self.real[..., None, None]
        if not float(apart.max()) <= GAP * float(self.own.z.float().abs().max()):
            raise unread(
                self.call.layer, "what its heads give is no such mixture (it may have a gate)"
            )


def _whole(heads: Tensor) -> Tensor:
    """(batch, head) with the mean over heads behind them."""
    return torch.cat([heads, heads.mean(-1, keepdim=True)], -1)
