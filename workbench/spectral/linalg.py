"""Singular vectors shared by the spectral analyses: the base's once, the tuned model's top k only.

The base decomposition is kept on disk under the content of the matrix, so every fine-tune of a base
reuses it. The top k of a tuned matrix come from a block Golub-Kahan-Davidson iteration (the basis
grows by the residuals of the wanted triplets, which spans the block Krylov space; Golub & Van Loan,
Matrix Computations, 4th ed., 10.4). It needs only products with W: a LoRA change stays factored.
Each vector carries a bound on its angle to the true one (Wedin 1972); where that cannot be made
small, because singular values lie too close, the dense decomposition is taken instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench import cache
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.outputs import always, writing

DENSE_BELOW = 128  # a full SVD of so small a matrix costs less than one iteration
GUARD = 4  # extra triplets followed, so that the k-th has a neighbour to keep a distance from
ANGLE = 1e-3  # largest accepted bound on the sine of the angle to the true vector


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
        """Without the triplets of numerically zero value, whose vectors are arbitrary; the
        tolerance is numpy.linalg.matrix_rank's, max(out, in) * machine epsilon * sigma_1."""
        size = max(self.left.shape[0], self.right.shape[0])
        floor = self.values[0] * size * torch.finfo(self.values.dtype).eps
        return self.top(max(1, int((self.values > floor).sum())))


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


def dense_triplets(matrix: Float[Tensor, "out in"]) -> Triplets:
    """All min(out, in) triplets by a thin SVD in float32, as the paper's code takes them."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    return Triplets(left, values, right.T, torch.zeros_like(values))


def base_triplets(matrix: Float[Tensor, "out in"], device: str | torch.device = "cpu") -> Triplets:
    """`dense_triplets` of a base matrix, computed once and kept on disk under its content."""
    from safetensors.torch import load_file, save_file

    file = _kept_at(matrix)
    if not file.exists():
        found = dense_triplets(matrix.to(device))
        parts = {"left": found.left, "values": found.values, "right": found.right}
        with writing(file, always) as fresh:
            save_file({name: part.cpu().contiguous() for name, part in parts.items()}, fresh)
    kept = load_file(file, device=str(device))
    return Triplets(kept["left"], kept["values"], kept["right"], torch.zeros_like(kept["values"]))


def is_kept(matrix: Float[Tensor, "out in"]) -> bool:
    """Whether `base_triplets` of this matrix is on disk already."""
    return _kept_at(matrix).exists()


def _kept_at(matrix: Tensor) -> Path:
    from workbench.loaders.checkpoint import tensor_bytes

    about = f"{tuple(matrix.shape)} {matrix.dtype} thin-svd-float32".encode()
    return cache.folder("svd", cache.digest([about, tensor_bytes(matrix)]) + ".safetensors")


def factor_values(factors: Factors) -> Float[Tensor, " rank"]:
    """Singular values of up @ down from two thin QR and one r x r SVD; exact, O((out + in) r^2)."""
    _, left = torch.linalg.qr(factors.up)
    _, right = torch.linalg.qr(factors.down.T)
    return torch.linalg.svdvals(left @ right.T)


def top_triplets(
    operator: Operator,
    k: int,
    start: Float[Tensor, "in b"] | None = None,
    *,
    seed: int = 0,
    angle: float = ANGLE,
) -> Triplets | None:
    """The k largest triplets of W, or None where they cannot be certified more cheaply than by a
    dense SVD.

    start: right vectors to begin from (the base's own converge fastest); random ones are added, so
    that no direction of W is left out. angle: the bound every returned vector keeps.
    """
    out, width = operator.shape
    # Past a quarter of the columns, basis and projection cost as much as the dense SVD.
    most = min(out, width) // 4
    wanted = k + GUARD
    if min(out, width) < DENSE_BELOW or most < 2 * wanted:
        return None
    noise = torch.Generator().manual_seed(seed)
    block = torch.randn(width, wanted, generator=noise).to(operator.dense.device)
    basis = _orthonormal(block if start is None else torch.cat([start, block], 1))
    image = operator.times(basis)
    while basis.shape[1] <= most:
        left, values, turn = thin_svd(image)
        left, values, turn = left[:, :wanted], values[:wanted], turn[:wanted].T
        right = basis @ turn
        back = operator.transposed_times(left)
        residual = back - right * values
        bound = _angle_bound(values, torch.linalg.vector_norm(residual, dim=0))
        if bool((bound[:k] <= angle).all()):
            return Triplets(left, values, right, bound).top(k)
        fresh = _new_directions(basis, residual[:, bound > angle])
        if fresh.shape[1] == 0:
            return None
        basis = torch.cat([basis, fresh], 1)
        image = torch.cat([image, operator.times(fresh)], 1)
    return None


def thin_svd(tall: Float[Tensor, "n b"]) -> tuple[Tensor, Tensor, Tensor]:
    """A thin SVD of few columns; elsewhere than on a CPU by way of QR, whose small triangle the CPU
    decomposes sooner than an accelerator."""
    if tall.device.type == "cpu":
        return torch.linalg.svd(tall, full_matrices=False)
    frame, corner = torch.linalg.qr(tall)
    left, values, right = (part.to(tall.device) for part in torch.linalg.svd(corner.cpu()))
    return frame @ left, values, right


def _angle_bound(values: Tensor, residual: Tensor) -> Tensor:
    """sin(angle) <= residual / gap for each triplet, the gap taken to both neighbours and reduced
    by their own uncertainty. Float32 rounding of the residual itself is added."""
    rounding = values[0] * torch.finfo(values.dtype).eps * 4
    residual = residual + rounding
    gap = values[:-1] - values[1:] - residual[1:]
    edge = gap.new_full((1,), torch.inf)
    nearest = torch.minimum(torch.cat([gap, edge]), torch.cat([edge, gap]))
    return torch.where(nearest > 0, residual / nearest, torch.inf)


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block)[0]


def _new_directions(basis: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis of what `block` adds to `basis`; two passes of Gram-Schmidt suffice."""
    scale = torch.linalg.vector_norm(block, dim=0)
    block = block[:, scale > 0] / scale[scale > 0]
    for _ in range(2):
        block = _orthonormal(block - basis @ (basis.T @ block))
    leak = torch.linalg.vector_norm(basis.T @ block, dim=0)
    return block[:, leak < 1e-3]
