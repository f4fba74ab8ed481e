"""A language model by itself and inside a multimodal one is the same module, by every name that
versions of transformers gave it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.conftest import logits, nudged, saved
from workbench.loaders import Checkpoint

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SEEN = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def renamed(folder: Path, target: Path) -> Path:
    """A copy with the names that transformers gives the running modules."""
    shutil.copytree(folder, target)
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        own = name.replace("language_model.model.", "model.language_model.")
        seen = own.startswith(("vision_tower", "multi_modal"))
        state[f"model.{own}" if seen else own] = tensor
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    """both, both-tuned; the same by other names; text and text-tuned, of the same weights."""
    home = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = t.Gemma3Config(
        text_config=TEXT, vision_config=SEEN, mm_tokens_per_image=1, image_token_index=63,
        boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    both = t.Gemma3ForConditionalGeneration(config).eval()
    text = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**TEXT)).eval()
    for side in ("", "-tuned"):
        inner = {
            name.replace("model.language_model.", "model."): tensor
            for name, tensor in both.state_dict().items() if "language_model" in name
        }  # fmt: skip
        assert not text.load_state_dict(inner, strict=False).unexpected_keys
        saved(both, home / f"both{side}")
        saved(text, home / f"text{side}")
        renamed(home / f"both{side}", home / f"named{side}")
        both = nudged(both)
    return home


def norms(pair: wb.CheckpointPair) -> dict[str, float]:
    """By place, whatever the parameter is called."""
    return {str(d.site): d.norm for d in pair.deltas("all")}


def test_every_name_of_a_module_is_matched(gemma: Path):
    truth = norms(wb.load_pair(gemma / "both", gemma / "both-tuned"))
    assert len(truth) == len(load_file(gemma / "both" / "model.safetensors"))
    for base, tuned in (("both", "named-tuned"), ("named", "both-tuned"), ("named", "named-tuned")):
        found = norms(wb.load_pair(gemma / base, gemma / tuned))
        assert sorted(found.values()) == sorted(truth.values())


@pytest.mark.parametrize("sides", [("text", "both-tuned"), ("both", "text-tuned")])
def test_a_language_model_is_compared_with_the_one_inside(sides, gemma: Path):
    pair = wb.load_pair(*(gemma / side for side in sides))
    alone = norms(wb.load_pair(gemma / "text", gemma / "text-tuned"))
    assert sorted(norms(pair).values()) == sorted(alone.values())
    report = pair.check()
    assert report.ok
    told = report.table.set_index("item")
    assert told.loc["config", "status"] == "ok"
    assert "vision_tower" in str(told.loc["unmatched names", "found"])


@pytest.mark.parametrize("side", ["both", "named", "text"])
def test_what_runs_is_the_saved_model(side: str, gemma: Path):
    found = Checkpoint.parse(gemma / side).load(dtype=torch.float32)
    kind = t.Gemma3ForCausalLM if side == "text" else t.Gemma3ForConditionalGeneration
    whole = "text" if side == "text" else "both"
    truth = kind.from_pretrained(gemma / whole, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found), logits(truth), atol=1e-5, rtol=0)


def test_an_adapter_of_the_whole_is_no_adapter_of_the_language_model_alone(gemma, tmp_path):
    """Its change is the same matrices'; peft would put it on none of them."""
    model = t.Gemma3ForConditionalGeneration.from_pretrained(gemma / "both")
    options = {"target_modules": r".*language_model.*\.q_proj", "init_lora_weights": False}
    made = get_peft_model(model, LoraConfig(r=2, **options))
    made.save_pretrained(tmp_path / "lora")
    for base in ("both", "named"):
        pair = wb.load_pair(gemma / base, tmp_path / "lora")
        assert sum(delta.changed for delta in pair.deltas()) == 2
        running = pair.tuned.load(dtype=torch.float32)
        torch.testing.assert_close(logits(running), logits(made.eval()), atol=1e-5, rtol=0)
    alone = wb.load_pair(gemma / "text", tmp_path / "lora")
    assert sum(delta.changed for delta in alone.deltas()) == 2
    with pytest.raises(wb.WorkbenchError, match="No model can be loaded"):
        alone.tuned.load()
