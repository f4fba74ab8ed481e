"""Random directions: orthonormal frames and rotations that know nothing of what they turn.

What is held against a trained change, be it a null of an analysis or a model that learned nothing,
keeps all of the change but its directions.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 1024  # rows up to which a rotation is drawn by a QR decomposition of a Gaussian matrix
MIXES = 3  # of random signs and a fast transform, beyond that


def haar(
    size: int, columns: int, noise: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "size columns"]:
    """Haar-distributed orthonormal columns: Q of a Gaussian matrix, with the signs that make R's
    diagonal positive (Mezzadri 2007)."""
    gaussian = torch.randn(size, columns, generator=noise, dtype=dtype)
    frame, corner = torch.linalg.qr(gaussian)
    return frame * corner.diagonal().sign()


def rotated(matrix: Float[Tensor, "n m"], noise: torch.Generator) -> Float[Tensor, "n m"]:
    """Q @ matrix with a random orthogonal Q: Haar up to EXACT rows; beyond, where that would cost
    more than the analysis, MIXES rounds of random signs and a Hartley transform, which is
    orthogonal for any n and spreads every vector over all rows (Ailon & Chazelle 2009)."""
    size = matrix.shape[0]
    if size <= EXACT:
        return haar(size, size, noise, matrix.dtype).to(matrix) @ matrix
    for _ in range(MIXES):
        signs = torch.randint(0, 2, (size, 1), generator=noise).to(matrix) * 2 - 1
        waves = torch.fft.fft(matrix * signs, dim=0, norm="ortho")
        matrix = waves.real - waves.imag
    return matrix


def own_noise(name: str, seed: int) -> torch.Generator:
    """Seeded by a parameter's own name: what is drawn for it does not depend on what else is."""
    own = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    return torch.Generator().manual_seed(seed + own)
