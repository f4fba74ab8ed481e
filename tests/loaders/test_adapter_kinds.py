"""Every kind of adapter that peft trains: its change is what peft merges, its run what peft runs.

ADAPTER_KINDS is the table: kind -> what of the workbench applies ("weights", "run"), or the words
by which it is refused. The oracle is peft's own merge_and_unload of the whole model, and its model
before that; nothing here asks the workbench what is right.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import PeftType
from torch import nn

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, logits, saved, tiny

WEIGHTS, RUN = "weights", "run"
BOTH = (WEIGHTS, RUN)
PROMPTS = "changes no weight"
ADAPTER_KINDS: dict[str, tuple[str, ...] | str] = {
    "LORA": BOTH, "ADALORA": BOTH, "ADAMSS": BOTH, "BEFT": BOTH, "BOFT": BOTH, "C3A": BOTH,
    "DEFT": BOTH, "DELORA": BOTH, "FOURIERFT": BOTH, "GLORA": BOTH, "GRALORA": BOTH, "HIRA": BOTH,
    "HRA": BOTH, "IA3": BOTH, "LN_TUNING": BOTH, "LOHA": BOTH, "LOKR": BOTH, "MISS": BOTH,
    "OFT": BOTH, "OSF": BOTH, "PEANUT": BOTH, "PSOFT": BOTH, "PVERA": BOTH, "RANDLORA": BOTH,
    "ROAD": BOTH, "SHIRA": BOTH, "SUPERTUNING": BOTH, "TRAINABLE_TOKENS": BOTH, "VBLORA": BOTH,
    "VERA": BOTH, "WAVEFT": BOTH,
    "FROD": (RUN,), "LILY": (RUN,), "TINYLORA": (RUN,), "UNILORA": (RUN,),
    "PROMPT_TUNING": PROMPTS, "MULTITASK_PROMPT_TUNING": PROMPTS, "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS, "CPT": PROMPTS, "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": "adds attention to trained vectors", "XLORA": "anew for every token",
    "POLY": "mixes adapters by task", "SHADOW": "a second model",
}  # fmt: skip

# What a config needs beside the modules, so that what it makes is small and changes something.
OPTIONS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3, "init_lora_weights": False},
    "ADALORA": {"init_r": 4, "target_r": 3, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 3},
    "DELORA": {"r": 2},
    "FOURIERFT": {"n_frequency": 20, "scaling": 1.0},
    "GLORA": {"r": 3},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 3},
    "HRA": {"r": 2},
    "LOHA": {"r": 2, "alpha": 3},
    "LOKR": {"r": 2, "alpha": 3},
    "MISS": {"r": 2},
    "OFT": {"r": 0, "oft_block_size": 8},
    "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.1},
    "TRAINABLE_TOKENS": {"token_indices": [3, 7]},
    "UNILORA": {"r": 2, "theta_d_length": 64},
    "VBLORA": {"r": 2, "num_vectors": 12, "vector_length": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
MODULES = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
NORMS = {"llama": ["input_layernorm"], "gpt2": ["ln_1"]}
EMBEDDING = {"llama": ["embed_tokens"], "gpt2": ["wte"]}
# The kinds that peft 0.21 puts on Conv1D.
CONV1D = ("LORA", "ADALORA", "VERA", "PVERA", "IA3", "FOURIERFT", "RANDLORA", "LN_TUNING",
          "GRALORA", "WAVEFT", "VBLORA", "HIRA", "DEFT", "TRAINABLE_TOKENS")  # fmt: skip
# Of which the change is factors, so that no spectrum needs a dense matrix.
FACTORED = ("LORA", "ADALORA", "DELORA", "PVERA", "VBLORA", "VERA")
APPLY = {kind: told for kind, told in ADAPTER_KINDS.items() if isinstance(told, tuple)}
# float32 sums of 48 terms, of entries up to about 5.
CLOSE = {"atol": 2e-6, "rtol": 1e-6}


def base_model(architecture: str) -> Any:
    """As `tiny`, with biases, where some kinds change them; moved, since they begin at zero."""
    if architecture == "gpt2":
        model = tiny("gpt2")
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        biased = {"attention_bias": True, "mlp_bias": True}
        model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, **SPECIAL, **biased))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def config_of(kind: str, architecture: str, **options: Any) -> Any:
    own = OPTIONS.get(kind, {}) | options
    named = {"LN_TUNING": NORMS, "TRAINABLE_TOKENS": EMBEDDING}.get(kind, MODULES)[architecture]
    own.setdefault("target_modules", named)
    if kind == "IA3":
        own.setdefault("feedforward_modules", named[-1:])
    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    return made(task_type="CAUSAL_LM", **own)


def trained(kind: str, model: nn.Module, config: Any, *, by: float = 0.1) -> Any:
    """peft's model with every number that training would move moved at random."""
    torch.manual_seed(3)
    made = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: saved(base_model(name), root / name) for name in MODULES}


def adapter_of(kind: str, architecture: str, folder: Path, **options: Any) -> Path:
    config = config_of(kind, architecture, **options)
    trained(kind, base_model(architecture), config).save_pretrained(folder)
    return folder


def peft_alone(architecture: str, adapter: Path) -> Any:
    return PeftModel.from_pretrained(base_model(architecture), str(adapter)).eval()


CASES = [("llama", kind) for kind in APPLY] + [("gpt2", kind) for kind in CONV1D]


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_a_kind_is_what_peft_merges_and_what_peft_runs(
    architecture: str, kind: str, folders: dict[str, Path], tmp_path: Path
):
    adapter = adapter_of(kind, architecture, tmp_path / "a")
    pair = wb.load_pair(folders[architecture], adapter)
    alone, untouched = peft_alone(architecture, adapter), base_model(architecture)
    before = {name: one.detach().clone() for name, one in untouched.named_parameters()}
    running = logits(alone)
    assert float((running - logits(untouched)).abs().max()) > 1e-4  # the adapter does something
    if WEIGHTS in APPLY[kind]:
        merged = dict(alone.merge_and_unload().named_parameters())
        for delta in pair.deltas("all"):
            name = delta.site.name
            conv = architecture == "gpt2" and merged[name].ndim > 1 and ".h." in name
            wanted = merged[name].detach().double() - before[name].double()
            wanted = wanted.T if conv else wanted
            torch.testing.assert_close(delta.change.double(), wanted, **CLOSE)
            assert delta.changed == bool(wanted.any())
            named = any(module in name for module in MODULES[architecture])
            if name.endswith("weight") and named:
                assert (delta.factors is not None) == (kind in FACTORED)
    with pair.models() as sides:
        torch.testing.assert_close(logits(sides.tuned), running, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits(sides.base), logits(untouched), atol=1e-6, rtol=0)
