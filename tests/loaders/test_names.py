"""Names say the layer, the component, what is fused in it, and how its matrix is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, nudged, saved, tiny
from workbench.loaders.names import align, embedding, heads, is_conv1d, locate, unwrapped

GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32}
STORED_IN_OUT = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT, **SPECIAL, add_cross_attention=True)),
    "openai-gpt": lambda: t.OpenAIGPTLMHeadModel(t.OpenAIGPTConfig(**GPT)),
    "imagegpt": lambda: t.ImageGPTModel(t.ImageGPTConfig(**GPT)),
    "decision_transformer": lambda: t.DecisionTransformerModel(
        t.DecisionTransformerConfig(
            hidden_size=32, n_layer=2, n_head=4, n_positions=32, state_dim=5, act_dim=3,
            max_ep_len=16, add_cross_attention=True,
        )
    ),
    "clvp_decoder": lambda: t.ClvpForCausalLM(
        t.ClvpDecoderConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, max_text_tokens=16, num_mel_attn_blocks=1,
        )
    ),
    "a decoder behind an encoder": lambda: t.VisionEncoderDecoderModel(
        encoder=tiny("vit"),
        decoder=t.GPT2LMHeadModel(t.GPT2Config(**GPT, add_cross_attention=True)),
    ),
    "llama": lambda: tiny("llama"),
    "neox": lambda: tiny("neox"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED_IN_OUT)
def test_exactly_the_matrices_of_conv1d_are_turned(kind: str, tmp_path: Path):
    """By the class of each module; and the weights as the analyses see them are (out, in)."""
    model = STORED_IN_OUT[kind]()
    linear = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, Conv1D | torch.nn.Linear)
    }
    told = {name for name in linear if is_conv1d(name, model.config.to_dict())}
    assert told == {name for name, module in linear.items() if isinstance(module, Conv1D)}
    folder = saved(model, tmp_path / "it")
    stored = load_file(folder / "model.safetensors")
    seen = {delta.site.name: delta.base for delta in wb.load_pair(folder, folder).deltas()}
    assert told <= seen.keys()
    for name, matrix in seen.items():
        own = stored[name].flatten(1)
        assert torch.equal(matrix, own.T if name in told else own)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("h.0.attn.c_attn.weight", "attn.c_attn (q+k+v)"),
        ("h.0.attn.c_attn.bias", "attn.c_attn.bias (q+k+v)"),
        ("layers.0.attention.query_key_value.weight", "attention.query_key_value (q+k+v)"),
        ("layers.0.self_attn.qkv_proj.weight", "self_attn.qkv_proj (q+k+v)"),
        ("layers.0.attn.Wqkv.weight", "attn.Wqkv (q+k+v)"),
        ("blocks.0.attn.in_proj_weight", "attn.in_proj_weight (q+k+v)"),
        ("layers.0.mlp.gate_up_proj.weight", "mlp.gate_up_proj (gate+up)"),
        ("layers.0.self_attn.q_proj.weight", "self_attn.q_proj"),
        ("layers.0.mlp.c_proj.weight", "mlp.c_proj"),
    ],
)
def test_what_is_fused_is_said(name: str, component: str):
    site = locate([name])[name]
    assert (site.layer, site.component, site.expert) == (0, component, None)


def test_places_by_hand():
    """One stack's own name is dropped, of two each keeps its own; experts are numbered apart."""
    one = ["model.embed.weight", "model.layers.10.mlp.w.weight", "model.layers.2.norm.bias"]
    found = locate(one)
    assert [str(found[name]) for name in one] == ["embed", "10.mlp.w", "2.norm.bias"]
    assert [found[name].at for name in one] == [
        (None, "embed", None), (10, "mlp.w", None), (2, "norm.bias", None),
    ]  # fmt: skip
    other = locate(["transformer.wte.weight", "transformer.h.0.w.weight", "lm_head.weight"])
    assert [str(site) for site in other.values()] == ["wte", "0.w", "lm_head"]
    two = ["encoder.block.0.q.weight", "decoder.block.0.q.weight", "encoder.norm.weight"]
    found = locate(two)
    assert [str(found[name]) for name in two] == [
        "0.encoder.block.q", "0.decoder.block.q", "encoder.norm",
    ]  # fmt: skip
    name = "model.layers.3.mlp.experts.7.down.weight"
    site = locate([name])[name]
    assert (site.at, str(site)) == ((3, "mlp.experts.down", 7), "3.mlp.experts.down[7]")
    assert site.place == {"layer": 3, "component": "mlp.experts.down", "expert": 7}
    plain = locate(["model.layers.3.up.weight"])["model.layers.3.up.weight"]
    assert plain.place == {"layer": 3, "component": "up"}
    # A number that begins or ends a name is no layer.
    assert [site.layer for site in locate(["0.weight.x", "net.5"]).values()] == [None, None]


def test_names_of_two_sides_by_hand():
    bare = ["layers.0.q.weight", "layers.1.q.weight", "norm.gamma", "embed.weight"]
    grown = ["bert.layers.0.q.weight", "bert.layers.1.q.weight", "bert.norm.weight",
             "bert.embed.weight", "classifier.weight"]  # fmt: skip
    assert align(bare, grown) == dict(zip(bare, grown, strict=False))
    assert align(grown, bare) == dict(zip(grown, bare, strict=False))
    assert list(align(bare[::-1], grown)) == bare[::-1]
    # Half the names are not most of them: what two heads have in front is no prefix of a model.
    assert align(["lm_head.dense.weight", "x.a"], ["classifier.dense.weight", "y.b"]) == {}


def test_wrappers_by_hand():
    plain = {"a.weight": "a.weight", "module.b": "module.b"}
    assert unwrapped(plain) == plain  # not before all
    assert unwrapped(["module._orig_mod.a.w", "module.v_head.w"]) == {"module._orig_mod.a.w": "a.w"}
    assert unwrapped([]) == {}


def test_heads_and_embeddings_by_hand():
    shapes = {
        "model.embed_tokens.weight": (50, 32), "embed_positions.weight": (64, 32),
        "lm_head.weight": (50, 32), "model.norm.weight": (32,),
    }  # fmt: skip
    assert embedding(shapes) == "model.embed_tokens.weight"
    assert heads(shapes) == {"lm_head.weight": ["model.embed_tokens.weight"]}
    assert heads(shapes | {"lm_head.weight": (64, 32)}) == {
        "lm_head.weight": ["embed_positions.weight"]
    }
    assert embedding(shapes | {"encoder.wte.weight": (50, 32)}) is None
    assert embedding({"wte.weight": (50,)}) is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_counts_by_what_the_config_says_of_equal_numbers(tied: bool, tmp_path: Path):
    """Equal numbers are one parameter where they are tied, and two that may part where not."""
    options: dict[str, Any] = {**SMALL, **HEADS, **SPECIAL, "tie_word_embeddings": tied}
    made = t.LlamaForCausalLM(t.LlamaConfig(**options))
    with torch.no_grad():
        made.lm_head.weight.copy_(made.model.embed_tokens.weight)
    folder = saved(made, tmp_path / "base")
    assert ("lm_head.weight" in wb.Checkpoint.parse(folder).weights()) == (not tied)
    pair = wb.load_pair(folder, saved(nudged(made), tmp_path / "tuned"))
    assert len([d for d in pair.deltas("all") if d.changed]) == 20 + (not tied)
