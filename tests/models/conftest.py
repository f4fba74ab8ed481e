"""One tiny decoder of every architecture the sites know, with grouped-query heads where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.conftest import adapter, nudged
from workbench.lab import shipped

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
OWN = {
    "gpt2": GPT2,
    "gpt_neox": {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")},
}
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox")


def decoder(kind: str, **more) -> Any:
    """A random model of this architecture, eager attention, eval mode."""
    options: dict[str, Any] = OWN.get(kind, SHAPE) | {"attn_implementation": "eager"} | more
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**options)).eval()


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two rows of random tokens, the second padded on the right."""
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def write_base(kind: str, folder: Path, **more) -> Path:
    decoder(kind, **more).save_pretrained(folder)
    shipped.tokenizer().save_pretrained(folder)
    return folder


def write_member(kind: str, how: str, folder: Path, **more) -> Path:
    """A "full" or "lora" member of `decoder(kind)`."""
    if how == "lora":
        return adapter(decoder(kind, **more), folder)
    nudged(decoder(kind, **more)).save_pretrained(folder)
    return folder


@pytest.fixture(params=ARCHITECTURES)
def kind(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
