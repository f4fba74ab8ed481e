"""Prefix adapters of given numbers, as peft saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor

import workbench as wb
from tests.tuco.conftest import write
from workbench.models import Layout


def drawn_prefix(model: Any, count: int, seed: int = 0) -> Tensor:
    """(layer, 2, key-value head, virtual token, d_head): keys and values at random."""
    layout = Layout(model)
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(layout.layers, 2, layout.kv_heads, count, layout.d_head, generator=draw)


def prefixed(folder: Path, model: Any, numbers: Tensor, name: str = "prefix") -> wb.CheckpointPair:
    """A pair of a model and a prefix of these numbers, shaped as `drawn_prefix` gives them."""
    base = folder / "base"
    if not base.exists():
        write(model, base)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=numbers.shape[3])
    made: Any = get_peft_model(model, config)
    with torch.no_grad():
        made.prompt_encoder["default"].embedding.weight.copy_(
            numbers.permute(3, 0, 1, 2, 4).flatten(1)
        )
    made.save_pretrained(folder / name)
    return wb.load_pair(base, folder / name)
