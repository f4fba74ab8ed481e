"""Singular value decompositions that do not give up.

LAPACK's divide and conquer, which torch uses, now and then fails in float32 on a matrix of many
equal singular values ("failed to converge"); in float64 the same matrix is no difficulty."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]


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
