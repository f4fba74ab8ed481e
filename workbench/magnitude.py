"""Numbers too large or too small to be squared in float32: what to divide them by first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
