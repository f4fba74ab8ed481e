"""A GGUF file is dequantised once by transformers and then read like any folder."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import tiny
from workbench.lab import Recipe
from workbench.results import cache

WORDS = ["<pad>", "<s>", "</s>", *(chr(c) for c in range(33, 79)), "AB"]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in the order llama.cpp rotates them in."""
    size = weight.shape[0] // heads // 2
    split = weight.reshape(heads, 2, size, weight.shape[1])
    return split.swapaxes(1, 2).reshape(weight.shape)


def write(model, path: Path) -> Path:
    """`model` (a Llama) as an unquantised GGUF file."""
    path.parent.mkdir(exist_ok=True)
    config = model.config
    made = gguf.GGUFWriter(str(path), "llama")
    made.add_block_count(config.num_hidden_layers)
    made.add_context_length(config.max_position_embeddings)
    made.add_embedding_length(config.hidden_size)
    made.add_feed_forward_length(config.intermediate_size)
    made.add_head_count(config.num_attention_heads)
    made.add_head_count_kv(config.num_key_value_heads)
    made.add_layer_norm_rms_eps(config.rms_norm_eps)
    made.add_rope_freq_base(10000.0)
    made.add_vocab_size(config.vocab_size)
    made.add_tokenizer_model("gpt2")
    made.add_token_list(WORDS)
    made.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    made.add_token_merges(["A B"])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    made.add_pad_token_id(0)
    tensors = {n: p.detach().numpy().astype(np.float32) for n, p in model.named_parameters()}
    made.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    made.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    made.add_tensor("output.weight", tensors["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            value = tensors[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                value = rotary_order(value, config.num_attention_heads)
            made.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def test_weights_and_logits_are_the_models(tmp_path: Path):
    model = tiny("llama")
    checkpoint = wb.Checkpoint.parse(write(model, tmp_path / "tiny.gguf"))
    weights = checkpoint.weights()
    expected = dict(model.named_parameters())
    assert set(weights) == set(expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(weights[name], parameter.detach(), atol=0, rtol=0)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        found, plain = checkpoint.load()(ids).logits, model.eval()(ids).logits
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert checkpoint.tokenizer().convert_tokens_to_ids("A") == WORDS.index("A")


def test_it_is_dequantised_once(tmp_path: Path, monkeypatch):
    path = write(tiny("llama", seed=7), tmp_path / "once.gguf")
    first = wb.Checkpoint.parse(path).folder
    assert first is not None
    assert cache.folder("gguf") == first.parent
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("again")
    )
    assert wb.Checkpoint.parse(path).folder == first


def test_a_damaged_file_is_one_sentence(tmp_path: Path):
    path = write(tiny("llama", seed=8), tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(wb.WorkbenchError, match="download it again"):
        _ = wb.Checkpoint.parse(path).folder


def test_a_member_trained_on_it_names_the_file_and_is_known_as_its_own(tmp_path: Path):
    """Not the converted copy in a cache, which lies elsewhere on every machine."""
    path = write(tiny("llama"), tmp_path / "models" / "tiny.gguf")
    recipe = Recipe(task="x", method="lora", rank=2, alpha=4.0, lr=1e-3, steps=1, batch_size=2)
    member = wb.lab.train(path, recipe, ["AB AB", "B A"], tmp_path / "lora")
    config = json.loads((member / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../models/tiny.gguf"
    table = wb.load_pair(path, member).check(read=False).table.set_index("item")
    assert table.loc["adapter's base", "status"] == "ok"
    assert wb.Checkpoint.parse(member).reference == str(member / "../models/tiny.gguf")
