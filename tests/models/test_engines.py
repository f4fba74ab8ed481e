"""Every site, backend and architecture: hooks = nnsight exactly, = TransformerLens to 1e-4."""

from __future__ import annotations

import subprocess

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.models import zoo
from tests.models.conftest import batch, decoder
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import KINDS, Layout, Site, capture, hooks, nnsight, replace, transformer_lens
from workbench.models.sites import HEADED

LAYER = 1


def shifted(value: torch.Tensor) -> torch.Tensor:
    return 0.5 * value + 0.1


def places(kind: str) -> list[Site]:
    """The sites of one layer: whole, and one token (of one head) each."""
    own = [k for k in KINDS if LAYER in Layout(decoder(kind)).where(k)]
    one = [Site(k, LAYER, head=1 if k in HEADED else None, position=4) for k in own]
    return [Site(k, LAYER) for k in own] + one


def test_backends_agree_at_every_site(kind: str):
    model, inputs = decoder(kind), batch()
    layout, sites = Layout(model), places(kind)
    lens = transformer_lens.bridge(model, shipped.tokenizer())
    sight = nnsight.wrap(model)
    plain = hooks.run(model, inputs, read=sites)
    theirs = transformer_lens.run(lens, inputs, layout=layout, read=sites)
    traced = nnsight.run(sight, inputs, layout=layout, read=sites)
    assert torch.equal(plain.logits, model(**inputs, use_cache=False).logits)
    assert torch.equal(plain.logits, traced.logits)
    for site in sites:
        assert torch.equal(plain.captured[site], traced.captured[site]), site
        torch.testing.assert_close(
            plain.captured[site], theirs.captured[site], atol=1e-4, rtol=1e-4
        )
    for site in sites:
        write = {site: shifted}
        changed = hooks.run(model, inputs, write=write).logits
        assert not torch.equal(changed, plain.logits), site
        traced = nnsight.run(sight, inputs, layout=layout, write=write)
        assert torch.equal(changed, traced.logits), site
        theirs = transformer_lens.run(lens, inputs, layout=layout, write=write)
        torch.testing.assert_close(changed, theirs.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(**inputs, use_cache=False).logits, plain.logits)


def test_the_stream_is_the_sum_of_its_parts(kind: str):
    names = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    skip = {"resid_mid"} if kind == "gpt_neox" else set()
    sites = {name: Site(name, LAYER) for name in names if name not in skip}
    found = hooks.run(decoder(kind), batch(), read=sites.values()).captured
    have = {name: found[site] for name, site in sites.items()}
    total = have["resid_pre"] + have["attn_out"] + have["mlp_out"]
    torch.testing.assert_close(total, have["resid_post"], atol=1e-5, rtol=1e-5)
    if "resid_mid" in have:
        middle = have["resid_pre"] + have["attn_out"]
        torch.testing.assert_close(middle, have["resid_mid"], atol=1e-5, rtol=1e-5)


def test_patterns_are_distributions_and_make_z(kind: str):
    """z = pattern @ v, with the value heads repeated over their groups."""
    sites = [Site("pattern", LAYER), Site("v", LAYER), Site("z", LAYER)]
    model = decoder(kind)
    pattern, v, z = hooks.run(model, batch(), read=sites).captured.values()
    torch.testing.assert_close(pattern[0].sum(-1), torch.ones_like(pattern[0, :, :, 0]))
    groups = Layout(model).heads // Layout(model).kv_heads
    expanded = v.repeat_interleave(groups, dim=2)
    made = torch.einsum("bhqk,bkhd->bqhd", pattern, expanded)
    torch.testing.assert_close(made[0], z[0], atol=1e-5, rtol=1e-5)


def test_patching_a_site_with_itself_changes_nothing(kind: str):
    model, inputs = decoder(kind), batch()
    sites = places(kind)
    plain = hooks.run(model, inputs, read=sites)
    for site in sites:
        again = hooks.run(model, inputs, write={site: plain.captured[site]})
        assert torch.equal(again.logits, plain.logits), site


def test_patching_the_last_stream_gives_the_other_run(kind: str):
    model, here, there = decoder(kind), batch(0), batch(1)
    site = Site("resid_post", 2)
    other = hooks.run(model, there, read=[site])
    assert torch.equal(
        hooks.run(model, here, write={site: other.captured[site]}).logits, other.logits
    )


def test_a_peft_model_is_seen_through_its_adapters():
    model = decoder("qwen2")
    inputs = batch()
    plain = hooks.run(model, inputs, read=[Site("q", 0)])
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    adapted = hooks.run(wrapped, inputs, read=[Site("q", 0)])
    assert not torch.equal(plain.captured[Site("q", 0)], adapted.captured[Site("q", 0)])
    with wrapped.disable_adapter():
        back = hooks.run(wrapped, inputs, read=[Site("q", 0)])
    assert torch.equal(plain.captured[Site("q", 0)], back.captured[Site("q", 0)])


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_gives_the_same(where: str, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model, inputs = decoder("llama"), batch()
    sites = places("llama")
    plain = hooks.run(model, inputs, read=sites, write={Site("z", 0, head=2): shifted})
    if where == "cpu":
        away = cpu_offload(decoder("llama"), execution_device=torch.device("cpu"))
    else:
        device = torch.device("cpu")
        away = disk_offload(decoder("llama"), offload_dir=tmp_path, execution_device=device)
    assert any(p.device.type == "meta" for p in away.parameters())
    found = hooks.run(away, inputs, read=sites, write={Site("z", 0, head=2): shifted})
    assert torch.equal(found.logits, plain.logits)
    assert all(torch.equal(found.captured[s], plain.captured[s]) for s in sites)


def test_fused_attention_is_lifted_for_patterns_only():
    model = decoder("llama", attn_implementation="sdpa")
    eager = decoder("llama")
    site = Site("pattern", 0)
    found = hooks.run(model, batch(), read=[site]).captured[site]
    assert torch.equal(found, hooks.run(eager, batch(), read=[site]).captured[site])
    assert model.config._attn_implementation == "sdpa"


def test_the_model_is_left_as_it_was_after_an_exception():
    model, inputs = decoder("llama"), batch()
    plain = model(**inputs).logits

    def fails(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the middle")

    for site in (Site("pattern", 0), Site("resid_mid", 1), Site("z", 1)):
        with pytest.raises(RuntimeError, match="in the middle"), replace(model, {site: fails}):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_interrupt_leaves_no_softmax_changed():
    """KeyboardInterrupt skips forward hooks, also those that are always called."""
    model, inputs = decoder("llama"), batch()

    def interrupts(value: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    before = torch.arange(4.0).softmax(0)
    with pytest.raises(KeyboardInterrupt), replace(model, {Site("pattern", 0): interrupts}):
        model(**inputs)
    assert torch.equal(torch.arange(4.0).softmax(0), before)


def test_positions_outside_a_row_are_refused():
    for position in (9, -10):
        with pytest.raises(WorkbenchError, match="outside a row of 9 tokens"):
            hooks.run(decoder("llama"), batch(), read=[Site("resid_post", 0, position=position)])


def test_a_replacement_that_never_ran_is_an_error():
    model = decoder("llama")
    with (
        pytest.raises(WorkbenchError, match=r"1\.z was never replaced"),
        replace(model, {Site("z", 1): shifted}),
    ):
        pass
    with pytest.raises(WorkbenchError, match="never read"), capture(model, [Site("z", 1)]):
        pass


def test_reduction_keeps_only_its_result():
    model, inputs = decoder("llama"), batch()
    site = Site("mlp_hidden", 1)
    whole = hooks.run(model, inputs, read=[site]).captured[site]
    with capture(model, [site], reduce=lambda _, x: x.abs().amax((0, 1))) as found:
        model(**inputs)
    assert torch.equal(found[site], whole.abs().amax((0, 1)))


def test_positions_are_taken_row_by_row():
    """Each row's own last token, as a batch of prompts of unequal length tells it."""
    model, inputs = decoder("llama"), batch()
    last = inputs["attention_mask"].sum(1) - 1

    def at(position: int | str) -> torch.Tensor:
        assert position == "end"
        return last[:, None]

    site = Site("resid_post", 2, position="end")
    whole = hooks.run(model, inputs, read=[Site("resid_post", 2)]).captured[Site("resid_post", 2)]
    found = hooks.run(model, inputs, read=[site], at=at).captured[site]
    assert torch.equal(found[:, 0], whole[torch.arange(2), last])
    with pytest.raises(WorkbenchError, match="needs at="):
        hooks.run(model, inputs, read=[site])


def test_handing_over_installs_nothing(monkeypatch: pytest.MonkeyPatch):
    """For a model that reads images TransformerLens would call pip."""

    def called(*command: object, **_: object) -> None:
        raise AssertionError(command)

    monkeypatch.setattr(subprocess, "check_call", called)
    made = transformer_lens.bridge(zoo.small("gemma3", vocab_size=600), shipped.tokenizer())
    assert made is not None


def test_what_transformer_lens_cannot_take_is_one_sentence():
    for family, says in (("helium", "not determine"), ("granitemoehybrid", "not set")):
        with pytest.raises(WorkbenchError, match=rf"TransformerLens cannot take .*{says}.*nnsight"):
            transformer_lens.bridge(zoo.small(family, vocab_size=600), shipped.tokenizer())
