"""Changes without a direction of their own: what a count of intruders is held against.

A large change turns the top vectors wherever it points, so a count alone says nothing. The fair
null keeps all of the change but its directions: `same_spectrum` has its very singular values, with
Haar-random left and right vectors. A trained LoRA's change is mostly one or two directions (stable
rank 1.4 to 1.7) where a Gaussian BA of its rank and norm is flat, and the strongest direction
decides what turns; so random_lowrank, like the dense random_delta, compares with a weaker change.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from workbench import numerics
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.rotations import haar, own_noise, rotated
from workbench.spectral.linalg import Operator

SAME = "same_spectrum"
DRAWS = 5  # of the null that others are read against, for a spread


def null_operators(
    delta: Delta, base: Float[Tensor, "out in"], seed: int, draws: int = DRAWS
) -> Iterator[tuple[str, Operator]]:
    """The same base with a change of the same Frobenius norm and no direction of its own:
    random_delta, dense and Gaussian; for a LoRA change random_lowrank, a Gaussian BA of its rank;
    and `draws` of same_spectrum, named "same_spectrum:1" and so on."""
    noise = own_noise(delta.site.name, seed)
    norm = delta.norm
    dense = torch.randn(base.shape, generator=noise).to(base.device)
    yield "random_delta", Operator(base + dense * (norm / numerics.norm(dense)))
    if delta.factors is not None:
        rank = delta.factors.up.shape[1]
        up = torch.randn(base.shape[0], rank, generator=noise).to(base.device)
        down = torch.randn(rank, base.shape[1], generator=noise).to(base.device)
        up *= norm / Factors(up, down).norm
        yield "random_lowrank", Operator(base, Factors(up, down))
    for draw in range(1, draws + 1):
        yield f"{SAME}:{draw}", same_spectrum(delta, base, noise)


def same_spectrum(delta: Delta, base: Float[Tensor, "out in"], noise: torch.Generator) -> Operator:
    """The base with the change's own singular values in random directions; a LoRA change stays
    factored."""
    if delta.factors is None:
        change = delta.change.to(base.device)
        return Operator(base + rotated(rotated(change, noise).T, noise).T)
    up, down = delta.factors.up.to(base.device), delta.factors.down.to(base.device)
    corner = torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T
    left = haar(up.shape[0], corner.shape[0], noise).to(up)
    right = haar(down.shape[1], corner.shape[1], noise).to(up)
    return Operator(base, Factors(left @ corner, right.T))
