"""A change of low rank as its two factors, and DoRA's matrix made of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
