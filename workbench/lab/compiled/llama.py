"""How does the same program become a Llama? Another architecture, the same numbers.

The mirrored residual stream has mean 0, so RMSNorm divides it by what LayerNorm does and keeps the
gains. A gated MLP whose other factor is held at 1 by its bias is the MLP of the program. Rotary
positions are stretched until they turn nothing, and there are no learned ones: a program that reads
positions has no Llama here, and is refused. (Both are ordinary settings of transformers' Llama.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.lab.compiled.compiler import State, folder_of
from workbench.lab.compiled.program import POSITION, TOKEN, Program

STRETCHED = 1e12  # by so much, rotary positions turn less than float32 tells


def llama(state: State) -> State:
    """A compiled GPT-2's tensors as those of a Llama that computes the same."""
    found = {
        "model.embed_tokens.weight": state["transformer.wte.weight"],
        "model.norm.weight": state["transformer.ln_f.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    layers = sum(name.endswith("ln_1.weight") for name in state)
    for layer in range(layers):
        old, new = f"transformer.h.{layer}", f"model.layers.{layer}"
        found[f"{new}.input_layernorm.weight"] = state[f"{old}.ln_1.weight"]
        found[f"{new}.post_attention_layernorm.weight"] = state[f"{old}.ln_2.weight"]
        for kind in ("weight", "bias"):
            parts = state[f"{old}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, part in zip("qkv", parts, strict=True):
                found[f"{new}.self_attn.{name}_proj.{kind}"] = _turned(part)
            for name, part in (
                ("self_attn.o_proj", "attn.c_proj"), ("mlp.gate_proj", "mlp.c_fc"),
                ("mlp.down_proj", "mlp.c_proj"),
            ):  # fmt: skip
                found[f"{new}.{name}.{kind}"] = _turned(state[f"{old}.{part}.{kind}"])
        gate = found[f"{new}.mlp.gate_proj.weight"]
        found[f"{new}.mlp.up_proj.weight"] = torch.zeros_like(gate)
        found[f"{new}.mlp.up_proj.bias"] = torch.ones(len(gate))
    return found


def _turned(x: Tensor) -> Tensor:
    """GPT-2 keeps (in, out), a Llama (out, in); a bias is a bias."""
    return x.T.contiguous() if x.ndim == 2 else x.contiguous()


def save_llama(program: Program, state: State, folder: str | Path) -> Path:
    """Write a model's folder, which transformers loads. Raises WorkbenchError for a program that
    reads positions, and where another kind of folder is in the way."""
    from transformers import LlamaConfig

    if any(POSITION in (one.query, one.key, one.value) for one in program.heads):
        raise WorkbenchError(
            f"Program {program.name!r} reads positions, which a compiled Llama has not; expected "
            "one that reads tokens alone, or write it as GPT-2."
        )
    hidden, width = state["model.layers.0.mlp.gate_proj.weight"].shape
    config: Any = LlamaConfig(
        vocab_size=len(program.labels[TOKEN]), max_position_embeddings=program.positions,
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=program.layers,
        num_attention_heads=program.width, num_key_value_heads=program.width, hidden_act="relu",
        attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "factor": STRETCHED, "rope_theta": 10000.0},
        pad_token_id=0, bos_token_id=1, eos_token_id=2, architectures=["LlamaForCausalLM"],
        dtype="float32",
    )  # fmt: skip
    return folder_of(program, config, state, folder)
