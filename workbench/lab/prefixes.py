"""How is a prefix written by hand, and one in its likeness that learned nothing?

A prefix is keys and values of N virtual tokens in every layer (`loaders.adapters.soft_prompt`).
Here they are (layer, 2, key-value head, token, d_head), keys before values; peft stores them as one
matrix, a row a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count
from workbench.lab.members import write_adapter_config
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.adapters import SoftPrompt
from workbench.loaders.adapters.soft_prompt import STORED
from workbench.rotations import own_noise


def prefix_of(pair: CheckpointPair) -> SoftPrompt | None:
    """The member's adapter where keys and values are all of it."""
    own = pair.tuned.lora
    return own if isinstance(own, SoftPrompt) and own.kind.in_layers else None


def numbers_of(prefix: SoftPrompt) -> Tensor:
    """Its keys and values, (layer, 2, key-value head, token, d_head), as they are stored. Raises
    WorkbenchError where its config does not tell into how many layers and heads they part."""
    layers, heads = (prefix.config.get(key, 0) for key in ("num_layers", "num_attention_heads"))
    parts = 2 * layers * heads if is_count(layers) and is_count(heads) else 0
    if not parts or prefix.width % parts:
        raise WorkbenchError(
            f"Expected the numbers of layers and heads in the config of prefix {prefix.reference}, "
            f"which part {prefix.width} numbers of a token, found {layers!r} and {heads!r}; save "
            "it again with peft's save_pretrained."
        )
    return prefix.weights[STORED].unflatten(1, (layers, 2, heads, -1)).permute(1, 2, 3, 0, 4)


def prefix_config(numbers: Tensor) -> dict[str, Any]:
    """The config of prefix tuning with these keys and values."""
    layers, _, heads, tokens, size = numbers.shape
    return {
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "inference_mode": True,
        "num_virtual_tokens": tokens, "token_dim": heads * size, "num_layers": layers,
        "num_attention_heads": heads, "num_transformer_submodules": 1,
    }  # fmt: skip


def write_prefix(
    numbers: Tensor, config: Mapping[str, Any], base: Checkpoint, folder: Path, place: Path
) -> None:
    """Write an adapter of these keys and values over this base, which peft loads. place: where the
    folder will stand, from which the base's path is told."""
    stored = {STORED: numbers.permute(3, 0, 1, 2, 4).flatten(1).contiguous()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_adapter_config(config, base, folder, place)


def redrawn(numbers: Tensor, seed: int) -> Tensor:
    """Keys and values of the same norms, of each layer, head and token, in random directions; as
    precise as they were."""
    noise = torch.randn(numbers.shape, generator=own_noise(STORED, seed), dtype=torch.float64)
    unit = noise / noise.norm(dim=-1, keepdim=True)
    return (unit * numbers.double().norm(dim=-1, keepdim=True)).to(numbers.dtype)


def norms_of(numbers: Tensor) -> dict[str, float]:
    """The norm of every key and value, named by its place."""
    found = numbers.double().norm(dim=-1)
    return {
        ".".join(map(str, at)): float(found[tuple(at)])
        for at in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist()
    }
