"""Singular vectors shared by the spectral analyses: dense decompositions, and matrices by products.

That of a base is kept on disk, see `base_svd`; the top k of a tuned matrix alone are found in
`leading`. Nothing depends on the unit of the weights: tolerances are relative, and numbers too
large or too small to be squared in float32 are divided by a power of two first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench import numerics
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.numerics import singular_values, svd
from workbench.results import cache


@dataclass(frozen=True)
class Triplets:
    """Singular triplets, largest first. angle: bound on the sine of each vector's angle to the
    true one, of both sides; 0 for a dense decomposition."""

    left: Float[Tensor, "out k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "in k"]
    angle: Float[Tensor, " k"]

    def top(self, k: int) -> Triplets:
        return Triplets(self.left[:, :k], self.values[:k], self.right[:, :k], self.angle[:k])

    def supported(self) -> Triplets:
        """Without the triplets of numerically zero value, whose vectors are arbitrary: none of a
        zero matrix. The tolerance is numpy.linalg.matrix_rank's, max(out, in) * machine epsilon *
        sigma_1."""
        size = max(self.left.shape[0], self.right.shape[0])
        floor = self.values[:1] * size * torch.finfo(self.values.dtype).eps
        return self.top(int((self.values > floor).sum()))


@dataclass(frozen=True)
class Operator:
    """W = dense + up @ down, used only through products; `factors` None means dense alone."""

    dense: Float[Tensor, "out in"]
    factors: Factors | None = None

    @classmethod
    def of(cls, delta: Delta, device: str | torch.device = "cpu") -> Operator:
        """The tuned matrix of a Delta, in float32 on `device`."""
        if delta.factors is None:
            return cls(delta.tuned.float().to(device))
        up, down = delta.factors.up.to(device), delta.factors.down.to(device)
        return cls(delta.base.float().to(device), Factors(up, down))

    @property
    def shape(self) -> tuple[int, int]:
        return self.dense.shape[0], self.dense.shape[1]

    def times(self, block: Float[Tensor, "in b"]) -> Float[Tensor, "out b"]:
        out = self.dense @ block
        return out if self.factors is None else out + self.factors.up @ (self.factors.down @ block)

    def transposed_times(self, block: Float[Tensor, "out b"]) -> Float[Tensor, "in b"]:
        # (b, out) @ (out, in) reads W along its rows; W.T @ block would stride through it.
        out = (block.T @ self.dense).T
        if self.factors is None:
            return out
        return out + self.factors.down.T @ (self.factors.up.T @ block)

    def formed(self) -> Float[Tensor, "out in"]:
        return self.dense if self.factors is None else self.dense + self.factors.product

    @property
    def unit(self) -> float:
        """What to divide W by, see `numerics.unit`."""
        own = numerics.unit(self.dense)
        if self.factors is None:
            return own
        return max(own, numerics.unit(self.factors.up, self.factors.down))

    def over(self, unit: float) -> Operator:
        """W / unit."""
        if unit == 1:
            return self
        factors = self.factors and Factors(self.factors.up / unit, self.factors.down)
        return Operator(self.dense / unit, factors)

    def own_generator(self) -> torch.Generator:
        """Random numbers that W's content decides: the same each time, and none that a matrix
        could have been made for."""
        parts = [self.dense]
        if self.factors is not None:
            parts += [self.factors.up, self.factors.down]
        return own_generator(*parts)


def own_generator(*parts: Tensor) -> torch.Generator:
    """Random numbers that the content of the tensors decides."""
    from workbench.loaders.checkpoint import tensor_bytes

    found = cache.digest(tensor_bytes(part) for part in parts)
    return torch.Generator().manual_seed(int(found[:15], 16))


def dense_triplets(matrix: Float[Tensor, "out in"]) -> Triplets:
    """All min(out, in) triplets by a thin SVD in float32, as the paper's code takes them."""
    unit = numerics.unit(matrix)
    whole = matrix.float() if unit == 1 else matrix.float() / unit
    left, values, right = svd(whole)
    return Triplets(left, values * unit, right.T, torch.zeros_like(values))


def factor_values(factors: Factors) -> Float[Tensor, " rank"]:
    """Singular values of up @ down from two thin QR and one r x r SVD; exact, O((out + in) r^2)."""
    _, left = torch.linalg.qr(factors.up)
    _, right = torch.linalg.qr(factors.down.T)
    return singular_values(left @ right.T)
