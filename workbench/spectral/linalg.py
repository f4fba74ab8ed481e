"""Singular vectors shared by the spectral analyses: dense decompositions, and matrices by products.

The base decomposition is kept on disk under the content of the matrix, so every fine-tune of a base
reuses it. The top k of a tuned matrix alone are found in `leading`. Nothing depends on the unit of
the weights: tolerances are relative, and numbers too large or too small to be squared in float32
are divided by a power of two first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench import cache, magnitude
from workbench.decompose import singular_values, svd
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.outputs import writing


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
        """What to divide W by, see `magnitude.unit`."""
        own = magnitude.unit(self.dense)
        if self.factors is None:
            return own
        return max(own, magnitude.unit(self.factors.up, self.factors.down))

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
    unit = magnitude.unit(matrix)
    whole = matrix.float() if unit == 1 else matrix.float() / unit
    left, values, right = svd(whole)
    return Triplets(left, values * unit, right.T, torch.zeros_like(values))


def base_triplets(matrix: Float[Tensor, "out in"], device: str | torch.device = "cpu") -> Triplets:
    """`dense_triplets` of a base matrix, computed once and kept on disk under its content; again
    where what is kept is no longer what was computed."""
    file = _kept_at(matrix)
    parts = _kept(file, matrix.shape)
    if parts is None:
        found = dense_triplets(matrix.to(device))
        whole = {"left": found.left, "values": found.values, "right": found.right}
        parts = {name: part.cpu().contiguous() for name, part in whole.items()}
        with writing(file, cache.CACHED) as fresh:
            save_file(parts, fresh, {"sha256": _content(file, parts)})
    left, values, right = (parts[name].to(device) for name in ("left", "values", "right"))
    return Triplets(left, values, right, torch.zeros_like(values))


def _kept(file: Path, shape: torch.Size) -> dict[str, Tensor] | None:
    """The parts in a file, None unless it is whole, of a matrix of this shape, and as it was."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get("sha256")
            parts = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    k = min(shape)
    wanted = {"left": (shape[0], k), "values": (k,), "right": (shape[1], k)}
    whole = {name: tuple(part.shape) for name, part in parts.items()} == wanted
    return parts if whole and said == _content(file, parts) else None


def _content(file: Path, parts: dict[str, Tensor]) -> str:
    """sha256 of the parts and of what they are the parts of."""
    from workbench.loaders.checkpoint import tensor_bytes

    own = (tensor_bytes(parts[name]) for name in sorted(parts))
    return cache.digest(chain([file.name.encode()], own))


def _kept_at(matrix: Tensor) -> Path:
    from workbench.loaders.checkpoint import tensor_bytes

    about = f"{tuple(matrix.shape)} {matrix.dtype} thin-svd-float32".encode()
    return cache.folder("svd", cache.digest([about, tensor_bytes(matrix)]) + ".safetensors")


def factor_values(factors: Factors) -> Float[Tensor, " rank"]:
    """Singular values of up @ down from two thin QR and one r x r SVD; exact, O((out + in) r^2)."""
    _, left = torch.linalg.qr(factors.up)
    _, right = torch.linalg.qr(factors.down.T)
    return singular_values(left @ right.T)
