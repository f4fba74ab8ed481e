"""Both sides of a pair run as each would alone, in as little memory as they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.models.conftest import batch, decoder, write_base, write_member
from workbench.models import Layout, memory, merged, transformer_lens
from workbench.models import sides as running
from workbench.models.kept import KEPT


def plain(folder: Path, adapter: Path | None = None) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def logits(model) -> torch.Tensor:
    return model(**batch(), use_cache=False).logits


@pytest.mark.parametrize("how", ["full", "lora"])
def test_both_sides_are_the_checkpoints(kind: str, how: str, tmp_path: Path):
    base, member = write_base(kind, tmp_path / "base"), write_member(kind, how, tmp_path / how)
    pair = wb.load_pair(base, member)
    alone = plain(base, member) if how == "lora" else plain(member)
    with pair.models() as both:
        assert torch.equal(logits(both.base), logits(plain(base)))
        assert torch.equal(logits(both.tuned), logits(alone))
        assert torch.equal(logits(both.base), logits(plain(base)))
        assert both.weights == ("unmerged" if how == "lora" else "plain")
        assert both.changed == {0, 1, 2}


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_pair_handed_over_gives_the_same_logits(kind: str, how: str, tmp_path: Path):
    """On TransformerLens to 1e-4 and on nnsight exactly; weights read afterwards are unchanged."""
    base, member = write_base(kind, tmp_path / "base"), write_member(kind, how, tmp_path / how)
    pair = wb.load_pair(base, member)
    before = {name: tensor.clone() for name, tensor in pair.base.weights().items()}
    sides = [plain(base), plain(base, member) if how == "lora" else plain(member)]
    for side in sides:  # patterns are among the places both libraries show
        Layout(side).root.set_attn_implementation("eager")
    expected = [logits(side) for side in sides]
    for lens, logit in zip(pair.to_transformer_lens(), expected, strict=True):
        inputs = batch()
        found = lens(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], return_type="logits"
        )
        torch.testing.assert_close(found, logit, atol=1e-4, rtol=1e-4)
    for sight, logit in zip(pair.to_nnsight(), expected, strict=True):
        inputs = batch()
        with sight.trace(inputs, use_cache=False):
            found = sight.output.logits.save()
        assert torch.equal(found, logit)
    fresh = wb.load_pair(base, member)
    assert all(torch.equal(fresh.base.weights()[name], kept) for name, kept in before.items())
    assert fresh.base.fingerprint == pair.base.fingerprint


LENS_WEIGHTS = ("W_E", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "W_U")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_the_bridge_of_an_adapter_has_the_weights_it_runs_with(kind: str, tmp_path: Path):
    """Every weight property and every head's share, against the merged model's own bridge; and
    gradients reach the weights."""
    base, member = write_base(kind, tmp_path / "base"), write_member(kind, "lora", tmp_path / "m")
    pair = wb.load_pair(base, member)
    words, ids = pair.base.tokenizer(), batch()["input_ids"]
    before, ours = pair.to_transformer_lens()
    theirs = transformer_lens.bridge(merged(pair), words)
    changed = set()
    for name in LENS_WEIGHTS[: -1 if kind == "gpt2" else None]:
        if name == "W_gate" and kind != "llama":
            continue
        weight, expected = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5, msg=name)
        changed |= {name} if not torch.equal(weight, getattr(before, name)) else set()
    assert {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"} <= changed
    heads = [lens.run_with_cache(ids)[1].stack_head_results() for lens in (ours, theirs)]
    torch.testing.assert_close(*heads, atol=1e-4, rtol=1e-4)
    with torch.enable_grad():
        ours(ids, return_type="logits").square().sum().backward()
    slopes = [p.grad.abs().max() for p in ours.parameters() if p.grad is not None]
    assert len(slopes) > 20
    assert max(slopes) > 0


def test_a_bridge_of_a_model_with_its_adapters_off_is_the_base(tmp_path: Path):
    base = write_base("llama", tmp_path / "base")
    pair = wb.load_pair(base, write_member("llama", "lora", tmp_path / "m"))
    words, ids = pair.base.tokenizer(), batch()["input_ids"]
    expected = plain(base)(ids).logits
    with pair.models() as both:
        lens = transformer_lens.bridge(both.base, words)
        torch.testing.assert_close(lens(ids, return_type="logits"), expected, atol=1e-4, rtol=1e-4)
        tuned = both.tuned(ids).logits
        with both.tuned.disable_adapter():
            off = transformer_lens.bridge(both.tuned, words)
        torch.testing.assert_close(off(ids, return_type="logits"), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(both.tuned(ids).logits, tuned)


def test_a_lora_pair_holds_one_copy(tmp_path: Path):
    base, member = (
        write_base("llama", tmp_path / "b"),
        write_member("llama", "lora", tmp_path / "m"),
    )
    with wb.load_pair(base, member).models() as both:
        ours = {p.data_ptr() for p in both.base.parameters()}
        assert ours == {p.data_ptr() for p in both.tuned.parameters()}


def test_a_full_pair_shares_what_did_not_change(tmp_path: Path):
    base = write_base("llama", tmp_path / "b")
    changed = decoder("llama")
    changed.model.layers[1].mlp.down_proj.weight.data *= 2
    changed.save_pretrained(tmp_path / "m")
    with wb.load_pair(base, tmp_path / "m").models() as both:
        ours, theirs = dict(both.base.named_parameters()), dict(both.tuned.named_parameters())
        apart = {name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()}
        assert apart == {"model.layers.1.mlp.down_proj.weight"}
        assert both.changed == {1}
        assert both.elsewhere == ()


def test_changes_outside_the_blocks_are_named(tmp_path: Path):
    base = write_base("gpt2", tmp_path / "b")
    changed = decoder("gpt2")
    changed.transformer.ln_f.weight.data *= 2
    changed.save_pretrained(tmp_path / "m")
    with wb.load_pair(base, tmp_path / "m").models() as both:
        assert both.changed == set()
        assert both.elsewhere == ("transformer.ln_f.weight",)


def test_adapters_on_some_layers_leave_the_others_untouched(tmp_path: Path):
    base = write_base("llama", tmp_path / "b")
    from tests.conftest import adapter

    adapter(decoder("llama"), tmp_path / "m", layers_to_transform=[2], target_modules=["q_proj"])
    with wb.load_pair(base, tmp_path / "m").models() as both:
        assert both.changed == {2}


@pytest.mark.parametrize(
    ("how", "where"), [("lora", "memory"), ("full", "memory"), ("full", "disk")]
)
def test_a_block_of_the_base_is_the_bases(kind: str, how: str, where: str, tmp_path: Path):
    """The base's block, called with what the tuned block was called with, is the base's own."""
    base, member = write_base(kind, tmp_path / "base"), write_member(kind, how, tmp_path / how)
    alone = plain(base)
    with running.models(wb.load_pair(base, member), base=where) as both:  # pyright: ignore
        called = {}

        def keep(_module, args, kwargs):
            called["args"], called["kwargs"] = args, kwargs

        handle = both.layout.block(1).register_forward_pre_hook(keep, with_kwargs=True)
        logits(both.tuned)
        handle.remove()
        found = both.base_block(1)(called["args"], called["kwargs"])
        expected = Layout(alone).block(1)(*called["args"], **called["kwargs"])
        first = [x[0] if isinstance(x, tuple) else x for x in (found, expected)]
        assert torch.equal(*first)


def test_generation_of_the_base_runs_without_adapters(tmp_path: Path):
    base, member = (
        write_base("llama", tmp_path / "b"),
        write_member("llama", "lora", tmp_path / "m"),
    )
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = {"input_ids": batch()["input_ids"][:1]}
    expected = plain(base).generate(**ids, **options)
    with wb.load_pair(base, member).models() as both:
        assert torch.equal(both.base.generate(**ids, **options), expected)
        assert not torch.equal(both.tuned.generate(**ids, **options), expected)


def test_what_cannot_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch):
    base, member = (
        write_base("llama", tmp_path / "b"),
        write_member("llama", "full", tmp_path / "m"),
    )
    pair = wb.load_pair(base, member)
    size = sum(tensor.numel() * 4 for tensor in pair.base.weights().values())
    assert memory.plan(pair, None, "memory")[0] == 2 * size
    assert memory.plan(pair, None, "disk")[0] == size
    assert memory.plan(pair, torch.bfloat16, "memory")[0] == size
    monkeypatch.setattr(memory, "free", lambda device: size)
    with pytest.raises(wb.WorkbenchError, match=r"MiB of .* free on cpu"), pair.models():
        pass


def test_bfloat16(tmp_path: Path):
    base, member = (
        write_base("llama", tmp_path / "b"),
        write_member("llama", "lora", tmp_path / "m"),
    )
    with wb.load_pair(base, member).models(dtype=torch.bfloat16) as both:
        assert {p.dtype for p in both.tuned.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(
            logits(both.base).float(), logits(plain(base)), atol=0.5, rtol=0.1
        )


@pytest.mark.parametrize("how", ["full", "lora"])
def test_models_that_are_kept_run_in_every_block_within(how: str, tmp_path: Path):
    """Those of the same pair, device and precision, whoever asks; nothing else, and none that were
    written into, which are not what the pair is."""
    base, member = write_base("llama", tmp_path / "b"), write_member("llama", how, tmp_path / "m")
    pair, again = wb.load_pair(base, member), wb.load_pair(base, member)
    with pair.models(keep=True) as both:
        first = logits(both.tuned)
        with again.models() as same, again.models(dtype=torch.float32) as named:
            assert same.tuned is both.tuned
            assert same.base is both.base
            assert named.tuned is both.tuned
        assert torch.equal(logits(both.tuned), first)  # the block within gave nothing back
        with pair.models(dtype=torch.bfloat16) as narrow, wb.load_pair(base, base).models() as null:
            assert narrow.tuned is not both.tuned
            assert null.tuned is not both.tuned
        with torch.no_grad():
            next(both.tuned.parameters()).add_(1.0)
        with pair.models() as fresh:
            assert fresh.tuned is not both.tuned
            assert torch.equal(logits(fresh.tuned), first)
    with pair.models() as one, pair.models() as other:
        assert one.tuned is not other.tuned
    assert not KEPT.get()


def test_a_hook_on_models_that_are_kept_is_not_the_pairs(tmp_path: Path):
    base, member = (
        write_base("llama", tmp_path / "b"),
        write_member("llama", "full", tmp_path / "m"),
    )
    pair = wb.load_pair(base, member)
    with pair.models(keep=True) as both:
        handle = both.tuned.register_forward_hook(lambda _m, _a, out: out)
        with pair.models() as other:
            assert other.tuned is not both.tuned
        handle.remove()
        with pair.models() as other:
            assert other.tuned is both.tuned
