"""Blocks kept or dropped: these places hold the fine-tuned numbers, all others the base's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.conftest import logits, nudged, saved, tiny
from workbench.models import edit


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> wb.CheckpointPair:
    folder = tmp_path_factory.mktemp("places")
    base, tuned = tiny("llama"), nudged(tiny("llama"))
    return wb.load_pair(saved(base, folder / "base"), saved(tuned, folder / "tuned"))


@pytest.mark.parametrize(
    ("keep", "drop", "held"),
    [
        (["0"], [], lambda name: ".0." in name),
        (["0-1"], ["mlp"], lambda name: ".layers." in name and ".mlp." not in name),
        (["1.self_attn.q_proj"], [], lambda name: "1.self_attn.q_proj." in name),
        ([], ["self_attn", "0.mlp.down_proj"],
         lambda name: "self_attn" not in name and "0.mlp.down_proj" not in name),
    ],
)  # fmt: skip
def test_what_is_written_is_the_tuned_models_there_and_the_bases_elsewhere(
    pair: wb.CheckpointPair, keep, drop, held, tmp_path: Path
):
    made = wb.edits.within(edit(pair), keep, drop)
    out = wb.edits.save(made, tmp_path / "out", form="weights")
    folders = (out, pair.base.folder, pair.tuned.folder)
    written, base, tuned = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in written.items():
        assert torch.equal(tensor, (tuned if held(name) else base)[name]), name


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["0", "1", "self_attn", "mlp.up_proj", "0.mlp", "embed_tokens"]),
             min_size=1),
    st.sampled_from([0.5, 1.0]),
)  # fmt: skip
def test_what_is_kept_and_what_is_dropped_are_the_whole(pair, places, alpha):
    made = edit(pair, alpha)
    kept, rest = wb.edits.within(made, keep=places), wb.edits.within(made, drop=places)
    for site in pair.sites("all"):
        torch.testing.assert_close(kept.change(site) + rest.change(site), made.change(site))
        assert not (kept.change(site).any() and rest.change(site).any())


def test_an_adapter_keeps_its_blocks_by_plain_peft(base: Path, lora: Path, tmp_path: Path):
    pair = wb.load_pair(base, lora)
    made = wb.edits.within(edit(pair), drop=["0"])
    out = wb.edits.save(made, tmp_path / "out")
    assert (out / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = PeftModel.from_pretrained(plain, lora)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if "lora_B" in name and ".layers.0." in name:
                parameter.zero_()
    wanted = logits(own.eval())
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    found = logits(PeftModel.from_pretrained(again, out).eval())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(found, logits(pair.tuned.load(dtype=torch.float32)), atol=1e-5)


@pytest.mark.parametrize("place", ["7", "self", "5-9", "0.lm_head", ""])
def test_a_place_without_a_change_is_refused(pair, place: str):
    with pytest.raises(wb.WorkbenchError, match="Expected a place where the fine-tuned model"):
        wb.edits.within(edit(pair), keep=[place])
