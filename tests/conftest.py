"""Tiny real models of several architectures, and a cache folder of the tests' own."""

from __future__ import annotations

import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for every worker and what it starts, said before torch and numpy load.
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
# Every worker's own.
CACHE = os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-tests-")

# Before nnsight, which gives every object a method that beartype cannot read when it starts.
import beartype  # noqa: F401
from jaxtyping import install_import_hook

# Shapes written in the types are checked in every spectral call of every test.
install_import_hook("workbench.spectral", "beartype.beartype")

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from peft import LoraConfig, get_peft_model

from tests.spoiled import ASKED as SPOILED
from tests.spoiled import spoil

# How long an example takes beside a busy neighbour says nothing. The same examples each time, so
# that what passed passes again; `make fuzz` takes fresh ones (--hypothesis-profile fresh).
settings.register_profile("fresh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("tests", settings.get_profile("fresh"), derandomize=True)
settings.load_profile("tests")
if SPOILED in os.environ:
    spoil(*os.environ[SPOILED].split(" ", 1))
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
HEADS = {"num_attention_heads": 4}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


IDS = torch.tensor([[5, 9, 30, 17, 44, 3, 8, 12]])


def logits(model) -> torch.Tensor:
    """Of the eight tokens IDS."""
    with torch.no_grad():
        return model(input_ids=IDS).logits


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def tiny(kind: str, seed: int = 0):
    """A random model of a few thousand weights."""
    torch.manual_seed(seed)
    t = transformers
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32}
    made = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, **HEADS, **SPECIAL)),
        "tied": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SMALL, **HEADS, **SPECIAL, tie_word_embeddings=True)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2, **SPECIAL)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SMALL, **HEADS, **SPECIAL)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**SMALL, **HEADS, **SPECIAL)),
        "bert": lambda: t.BertModel(t.BertConfig(**SMALL, **HEADS)),
        "bert-classifier": lambda: t.BertForSequenceClassification(
            t.BertConfig(**SMALL, **HEADS, num_labels=3)
        ),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**SMALL, **HEADS)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=50)
        ),
        "vit": lambda: t.ViTModel(
            t.ViTConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, image_size=16,
                patch_size=8, **HEADS,
            )
        ),
    }  # fmt: skip
    return made[kind]()


def saved(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def nudged(model, scale: float = 0.05, seed: int = 1):
    """The model with every parameter moved at random, as full fine-tuning would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def adapter(model, folder: Path, *, seed: int = 2, **options) -> Path:
    """A LoRA adapter with random B on `model` (which it changes), saved to `folder`; modules saved
    whole, and biases where they are trained, have moved too."""
    torch.manual_seed(seed)
    defaults = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "init_lora_weights": False}
    peft_model = get_peft_model(model, LoraConfig(**(defaults | options)))
    for name, parameter in peft_model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
        elif parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.1 * torch.rand_like(parameter)
    peft_model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "base")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return saved(nudged(tiny("llama")), tmp_path / "tuned")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return adapter(tiny("llama"), tmp_path / "lora")


# What takes longest, first: the workers then end together.
LONGEST = ("test_cluster.py", "test_notebooks.py", "test_package.py", "test_crash.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
