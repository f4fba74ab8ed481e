"""A change of low rank as its two factors, and DoRA's matrix made of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.numerics import svd

EXACT = 1e-5  # of a change's norm: what float32 leaves behind the last direction of a low rank


@dataclass(frozen=True)
class Factors:
    """A low-rank change, up @ down, in float32; the scale s is inside `up`."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    @property
    def product(self) -> Float[Tensor, "out in"]:
        return self.up @ self.down

    @property
    def norm(self) -> float:
        """|up @ down|_F from the two r x r Gram matrices: |BA|^2 = <B^T B, A A^T>."""
        left, right = self.up.double(), self.down.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


def dora(
    base: Float[Tensor, "out in"], factors: Factors, magnitude: Float[Tensor, " out"]
) -> Float[Tensor, "out in"]:
    """The tuned matrix of a DoRA module, float32."""
    direction = base.float() + factors.product
    return magnitude[:, None] * direction / torch.linalg.vector_norm(direction, dim=1)[:, None]


def split(change: Tensor, rank: int | None = None) -> tuple[Factors, float]:
    """(B, A) of the best approximation of a change of that rank, the square roots of the singular
    values in each, and the share of its norm that this does not keep; None: all of it.

    change: (out, in), float32.
    """
    left, values, right = svd(change)
    total = float(values.norm())
    if not total:
        return Factors(left[:, :0], right[:0]), 0.0
    behind = values.square().flip(0).cumsum(0).flip(0).sqrt()  # norm from each direction on
    needed = int((behind > EXACT * total).sum())
    kept = needed if rank is None else min(rank, needed)
    root = values[:kept].sqrt()
    lost = float(behind[kept]) / total if kept < len(values) else 0.0
    return Factors(left[:, :kept] * root, root[:, None] * right[:kept]), lost
