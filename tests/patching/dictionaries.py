"""Sparse dictionaries as SAELens saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.patching.sae import CFG, WEIGHTS


def saved(
    folder: Path, weights: dict[str, Tensor], hook: str = "blocks.1.hook_resid_post", **cfg: Any
) -> str:
    """A folder in SAELens' format of today; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    size, width = weights["W_dec"].shape
    about = {
        "d_in": width, "d_sae": size, "dtype": "float32", "device": "cpu",
        "architecture": "standard", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.51.1", "hook_name": hook, "model_name": "made up"},
    }  # fmt: skip
    (folder / CFG).write_text(json.dumps(about | cfg))
    save_file({name: own.contiguous() for name, own in weights.items()}, folder / WEIGHTS)
    return str(folder)


def drawn(width: int, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Random rows of norm 1, read by what they write, about a third of them active."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(size, width, generator=random), dim=1)
    made = {"W_enc": rows.T, "W_dec": rows * 2, "b_enc": torch.full((size,), -0.05)}
    return made | {"b_dec": 0.1 * torch.randn(width, generator=random)}


def exact(width: int, without: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Orthonormal rows that are always active, so that every state is rebuilt; `without` leaves
    out a row."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))[0]
    rows = rows[[i for i in range(width) if i != without]].float()
    return {
        "W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(len(rows)), "b_dec": -20 * rows.sum(0)
    }  # fmt: skip
