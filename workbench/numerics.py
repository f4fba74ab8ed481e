"""Float32 where it ends: numbers too large or too small to be squared, decompositions that do not
converge; and how near two subspaces are.

LAPACK's divide and conquer, which torch uses, now and then fails in float32 on a matrix of many
equal singular values ("failed to converge"); in float64 the same matrix is no difficulty."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

# Largest entries between which squares, and squares of rounding errors, stay within float32.
PLAIN = (2.0**-20, 2.0**20)


def unit(*factors: Tensor) -> float:
    """The power of two to divide a product by, so that its entries are about 1; 1 where they are
    of a plain size, so that nothing need be copied. Dividing by it rounds nothing."""
    largest = math.prod(_largest(factor) for factor in factors)
    if not 0 < largest < math.inf or PLAIN[0] <= largest <= PLAIN[1]:
        return 1.0
    return 2.0 ** min(max(math.frexp(largest)[1] - 1, -126), 127)


def norm(tensor: Tensor) -> float:
    """|tensor|_F, whose squares neither overflow nor vanish."""
    by = unit(tensor)
    return by * float(torch.linalg.vector_norm(tensor if by == 1 else tensor / by))


def svd(
    matrix: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """The thin SVD (left, values largest first, right transposed), k = min(m, n); by way of
    float64 where torch does not converge."""
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except LinAlgError:
        wide = torch.linalg.svd(matrix.double(), full_matrices=False)
        left, values, right = (part.to(matrix.dtype) for part in wide)
    return left, values, right


def singular_values(matrix: Float[Tensor, "m n"]) -> Float[Tensor, " k"]:
    """The values alone, largest first; by way of float64 where torch does not converge."""
    try:
        return torch.linalg.svdvals(matrix)
    except LinAlgError:
        return torch.linalg.svdvals(matrix.double()).to(matrix.dtype)


def cosines(first: Float[Tensor, "d r"], second: Float[Tensor, "d s"]) -> Float[Tensor, " k"]:
    """Cosines of the principal angles between two orthonormal frames, largest first."""
    return singular_values(first.T @ second).clamp(max=1)


def chance(d: int, r: int, s: int) -> tuple[float, float, float]:
    """(mean, low, high) of |Q1^T Q2|_F^2 / min(r, s) for random subspaces of r and s dimensions in
    d: the exact mean and variance, and the 95% range of the Beta distribution that has them, which
    is exact where r or s is 1."""
    from scipy.stats import beta

    mean, small = r * s / d, min(r, s)
    if d < 2 or max(r, s) >= d:
        return mean / small, mean / small, mean / small
    variance = 2 * r * s * (d - r) * (d - s) / (d**2 * (d - 1) * (d + 2))
    # Between what two subspaces must share at least, and all of the smaller one.
    least = max(0, r + s - d)
    width, inside, spread = small - least, mean - least, variance
    size = inside * (width - inside) / spread - 1
    low, high = beta.ppf([0.025, 0.975], size * inside / width, size * (1 - inside / width))
    return mean / small, (least + width * low) / small, (least + width * high) / small


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
