"""Tokens that one side has and the other has not: the rest is compared, and said of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.calls import CALLS, Asked, write_pair
from tests.conftest import logits, nudged, saved, tiny
from workbench.skills.scoring import Readout


def resized(folder: Path, more: int, target: Path) -> Path:
    """A copy with rows for so many more tokens, of random numbers."""
    shutil.copytree(folder, target)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(7)
    model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
    return saved(model, target)


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("more", [1, 8, 64])
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_the_rows_that_both_have_are_compared(kind: str, more: int, side: str, tmp_path: Path):
    folders = {"base": saved(tiny(kind), tmp_path / "base"),
               "tuned": saved(nudged(tiny(kind)), tmp_path / "tuned")}  # fmt: skip
    plain = wb.load_pair(folders["base"], folders["tuned"])
    folders[side] = resized(folders[side], more, tmp_path / "resized")
    pair = wb.load_pair(folders["base"], folders["tuned"])
    for ours, theirs in zip(pair.deltas("all"), plain.deltas("all"), strict=True):
        assert torch.equal(ours.base, theirs.base)
        assert torch.equal(ours.tuned, theirs.tuned)
    report = pair.check()
    assert report.ok
    told = report.table.set_index("item").loc["resized vocabulary"]
    assert f"the {more} that only {side} has" in told["remedy"]
    changes = plain.check().changes
    assert changes is not None
    assert report.changes is not None
    assert report.changes["norm"].tolist() == pytest.approx(changes["norm"].tolist())
    with wb.models.edit(pair).on(pair.base.load()) as edited:
        shared = logits(edited)[..., :50]
        torch.testing.assert_close(shared, logits(plain.tuned.load()), atol=1e-5, rtol=0)


def grown_adapter(base: Path, folder: Path, **options) -> Tensor:
    """Saves LoRA on q_proj with embeddings of three more tokens; the logits it runs with."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(2)
    model.resize_token_embeddings(53, mean_resizing=False)
    lora = LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False, **options)
    made = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    made.save_pretrained(folder, save_embedding_layers=not options)
    return logits(made.eval())


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_an_adapter_brings_embeddings_of_its_own(options, tmp_path: Path):
    """Saved beside it, or by name: the base is run without, the tuned model with them."""
    base = saved(tiny("llama"), tmp_path / "base")
    truth = grown_adapter(base, tmp_path / "lora", **options)
    pair = wb.load_pair(base, tmp_path / "lora")
    with pair.models(dtype=torch.float32) as sides:
        torch.testing.assert_close(logits(sides.tuned), truth, atol=1e-5, rtol=0)
        assert torch.equal(logits(sides.base), logits(tiny("llama").eval()))
    own, stored = pair.tuned.lora, tiny("llama").get_input_embeddings().weight
    assert own is not None
    (delta,) = (d for d in pair.deltas("all") if d.site.name == "model.embed_tokens.weight")
    wanted = own.replacement("model.embed_tokens.weight")[:50]
    assert torch.equal(delta.tuned, wanted)
    assert torch.equal(delta.base, stored)
    found = pair.check(run=True).table.set_index("item")
    assert found.loc["adapter keys", "status"] == "ok"
    assert "the 3 that only tuned has" in found.loc["resized vocabulary", "remedy"]
    assert found.loc["runs", "status"] == "ok"
    with pytest.raises(wb.WorkbenchError, match="run it unmerged"):
        wb.models.merged(pair)


def test_an_untrained_embedding_saved_beside_an_adapter_is_given_back(tmp_path: Path):
    """Without a switch in peft: the base is then a model of its own."""
    base = saved(tiny("llama"), tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False)
    made = get_peft_model(model, lora)
    with torch.no_grad():
        made.get_input_embeddings().weight += 0.5
    made.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    truth = logits(made.eval())
    with wb.load_pair(base, tmp_path / "lora").models(dtype=torch.float32) as sides:
        assert torch.equal(logits(sides.base), logits(tiny("llama").eval()))
        torch.testing.assert_close(logits(sides.tuned), truth, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("sides")
    write_pair(home)
    for side, more in (("base", 8), ("tuned", 3)):
        resized(home / side, more, home / f"{side}-more")
    return home


@pytest.mark.parametrize("grown", ["base", "tuned"])
@pytest.mark.parametrize(
    "key",
    ["behaviour.tokens", "behaviour.generate", "patching.lens", "patching.restore",
     "patching.cross_model", "forgetting.retention", "tuco.contribution"],
)  # fmt: skip
def test_what_runs_both_sides_runs(key: str, grown: str, sides: Path):
    names = {side: f"{side}-more" if side == grown else side for side in ("base", "tuned")}
    pair = wb.load_pair(sides / names["base"], sides / names["tuned"])
    assert len(CALLS[key](pair, Asked(12)).table)


def test_the_tuned_end_is_the_tuned_model(sides: Path):
    """With the probability that it gives to tokens that only it has."""
    pair, own = wb.load_pair(sides / "base", sides / "tuned-more"), Asked(12)
    (found,) = Readout.of(pair, [own.prompts]).tuned
    words, model = pair.base.tokenizer(), pair.tuned.load(dtype=torch.float32)
    wanted = []
    for prompt in own.prompts:
        start, ids = len(words(prompt.prompt).input_ids), words(prompt.text).input_ids
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        wanted.append(sum(float(said[i - 1, ids[i]]) for i in range(start, len(ids))))
    assert found["log_probability"].tolist() == pytest.approx(wanted, abs=1e-4)
