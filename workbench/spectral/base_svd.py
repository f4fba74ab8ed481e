"""The decomposition of a base matrix, kept on disk under the matrix's content, so that every
fine-tune of a base reuses it."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.files.writing import writing
from workbench.results import cache
from workbench.spectral.linalg import Triplets, dense_triplets


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
