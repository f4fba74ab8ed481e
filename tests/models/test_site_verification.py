"""A site of a model is what its name says, or is refused by name; known once a model."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import workbench as wb
from tests.models import zoo
from tests.models.conftest import batch, decoder
from tests.patching.conftest import boxes, copier, paired
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import (
    KINDS,
    Layout,
    Site,
    capture,
    hooks,
    known,
    nnsight,
    replace,
    site_verification,
)

# What these families do inside a block, so that the kinds are not what their names say; and what
# they have no module for at all.
ODD: dict[str, tuple[set[str], set[str]]] = {
    # A norm over all heads stands between pattern @ v and the output projection.
    "bitnet": ({"v", "z"}, set()),
    # Two softmaxes are subtracted, of heads that share what a norm of two then mixes.
    "diffllama": ({"k", "v", "z"}, set()),
    # Attention of experts: heads come and go with the tokens.
    "jetmoe": ({"pattern", "z"}, {"q", "k", "v", "mlp_hidden"}),
    # States of a recurrence in place of a softmax.
    "falcon_mamba": (
        set(),
        {"q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out"},
    ),
}
SPECIAL = {"mixer_out", "router_logits", "expert_weights", "other_out"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_site_of_a_known_architecture_is_proved(kind: str, dtype: torch.dtype):
    assert site_verification.refused(Layout(decoder(kind).to(dtype))) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ODD)
def test_what_does_not_hold_is_refused_kind_by_kind(family: str, dtype: torch.dtype):
    model = zoo.small(family).to(dtype)
    layout, (refused, absent) = Layout(model), ODD[family]
    assert set(site_verification.refused(layout)) == refused
    assert {kind for kind in KINDS if not layout.where(kind)} - SPECIAL == absent
    for one in set(KINDS) - SPECIAL:
        if one in refused | absent:
            with pytest.raises(WorkbenchError, match=rf"1\.{one}(:| is not available)"):
                hooks.run(model, batch(), read=[Site(one, 1)])
            with pytest.raises(WorkbenchError, match=rf"1\.{one}(:| is not available)"):
                hooks.run(model, batch(), write={Site(one, 1): torch.zeros(1)})
        else:
            hooks.run(model, batch(), read=[Site(one, 1)])


def test_one_projection_is_cut_as_the_model_does():
    """q, k and v of GPT-2's shapes: all of q first, or one head after the other, or the queries of
    a key-value head before its key and value. Cut otherwise, a head's v decides other heads' z."""
    heads_first = {
        "gpt2": ("blocks", {}), "gpt_bigcode": ("heads", {"multi_query": False}),
        "falcon": ("groups", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    }  # fmt: skip
    for family, (order, more) in heads_first.items():
        model = zoo.small(family, **more)
        layout = Layout(model)
        assert {layout.parts(1).q.order, layout.parts(1).v.order} == {order}
        assert site_verification.refused(layout) == {}
        for other in ("blocks", "heads", "groups"):
            if other == order or (other == "heads" and layout.heads != layout.kv_heads):
                continue
            wrong = Layout(model)
            part = replace_part(wrong.parts(1), other)
            blocks = tuple(part for _ in wrong.structure.blocks)
            wrong.structure = dataclasses.replace(wrong.structure, blocks=blocks)
            told = site_verification._Probe(wrong).verdict().refused
            # Where each head has its own key and value, groups are heads.
            alike = {other, order} == {"heads", "groups"} and layout.heads == layout.kv_heads
            assert ("v" in told) != alike, (family, other)


def replace_part(part: Any, order: str) -> Any:
    own = {k: dataclasses.replace(getattr(part, k), order=order) for k in ("q", "k", "v")}
    return dataclasses.replace(part, **own)


def test_one_block_is_enough():
    model = decoder("llama")
    block: Any = model.model.layers[2]
    forward = block.forward
    block.forward = lambda *args, **kwargs: 1.5 * forward(*args, **kwargs)
    layout = Layout(model)
    assert layout.where("mlp_out") == [0, 1]
    with pytest.raises(WorkbenchError, match=r"2\.mlp_out: no module of block 2"):
        layout.check(Site("mlp_out", 2))
    assert site_verification.refused(layout) == {}


def test_what_is_added_is_proved_with_the_models_own_numbers():
    """A structure that says too much is found out: here a factor that the model does not have."""
    layout = Layout(decoder("llama"))
    part = layout.parts(1)
    scaled = dataclasses.replace(part, attn=dataclasses.replace(part.attn, scale=0.5))
    blocks = (layout.parts(0), scaled, layout.parts(2))
    layout.structure = dataclasses.replace(layout.structure, blocks=blocks)
    told = site_verification._Probe(layout).verdict().refused
    assert "attn_out" in told
    assert "mlp_out" not in told


def test_components_that_add_nothing_are_no_fault():
    assert site_verification.refused(Layout(copier())) == {}
    model = decoder("gpt2")
    for parameter in model.parameters():
        parameter.zero_()
    assert "z" not in site_verification.refused(Layout(model))


def test_a_model_is_proved_once_and_only_where_sites_are_used():
    model, passes = decoder("llama"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    Layout(model).check(Site("z", 0))
    model(**batch())
    with capture(model, []), replace(model, {}):
        model(**batch())
    assert len(passes) == 1 + 2  # one tells its parts
    for _ in range(2):
        hooks.run(model, batch(), read=[Site("z", 0)])
    assert len(passes) == 1 + 2 + 1 + 2


def test_models_of_one_make_are_proved_once():
    first, second = decoder("qwen2"), decoder("qwen2")
    site_verification.require(Layout(first), [Site("z", 0)])
    passes: list[int] = []
    second.model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert known.make_of(second) == ""  # a hook may change what runs
    second.model._forward_pre_hooks.clear()
    assert known.make_of(second) == known.make_of(first)
    assert known.make_of(decoder("qwen2", rope_theta=1.0)) != (known.make_of(first))
    second.forward = counting(second.forward, passes)
    site_verification.require(Layout(second), [Site("z", 0)])
    assert len(passes) == 2  # somebody changed its forward: told and proved anew


def counting(forward: Any, calls: list[int]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return counted


def test_a_model_in_training_stays_so_and_draws_no_random_number():
    model = decoder("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[1].mlp.eval()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert site_verification.refused(Layout(model)) == {}
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert model.transformer.h[1].attn.training
    assert not model.transformer.h[1].mlp.training


def test_nnsight_refuses_the_same():
    model = zoo.small("bitnet")
    sight, layout = nnsight.wrap(model), Layout(model)
    with pytest.raises(WorkbenchError, match="use resid_pre, q, k, pattern, attn_out"):
        nnsight.run(sight, batch(), layout=layout, read=[Site("z", 0)])
    site = Site("resid_mid", 1)
    found = nnsight.run(sight, batch(), layout=layout, read=[site]).captured[site]
    assert torch.equal(found, hooks.run(model, batch(), read=[site]).captured[site])


def test_patching_goes_on_with_the_other_kinds(tmp_path):
    words = len(shipped.tokenizer())
    one, other = (
        zoo.small("bitnet", vocab_size=words, max_position_embeddings=128) for _ in range(2)
    )
    other.model.layers[1].mlp.down_proj.weight.mul_(3)
    pair = paired(one, other, tmp_path)
    found = wb.patching.cross_model(pair, boxes(4), sites=["resid_post", "attn_out"])
    krs = found.metric("krs")
    krs = krs[(krs["arm"] == "patch") & (krs["component"] == "resid_post")]["value"].tolist()
    assert krs == pytest.approx([0, 1, 1], abs=1e-5)
    with pytest.raises(WorkbenchError, match=r"0\.v is not available in BitNet"):
        wb.patching.cross_model(pair, boxes(4), sites=["v"])


def test_experts_are_chosen_and_can_be_chosen_otherwise():
    """Mixtral by hand: weights are the largest softmax values, made to sum to one, at the experts
    of the largest logits; with all weight on one expert the MLP is that expert."""
    model = zoo.small("mixtral")
    given, places = batch(), [Site("router_logits", 1), Site("expert_weights", 1)]
    mid, out = Site("resid_mid", 1), Site("mlp_out", 1)
    seen = hooks.run(model, given, read=[*places, mid]).captured
    top, where = seen[places[0]].softmax(-1).topk(2)
    wanted = torch.zeros_like(seen[places[1]]).scatter(-1, where, top / top.sum(-1, keepdim=True))
    torch.testing.assert_close(seen[places[1]], wanted)
    alone = torch.zeros_like(wanted)
    alone[..., 3] = 1
    found = hooks.run(model, given, read=[out], write={places[1]: alone}).captured[out]
    block: Any = model.model.layers[1]
    experts = block.mlp.experts
    x = block.post_attention_layernorm(seen[mid])
    gate, up = (x @ experts.gate_up_proj[3].T).chunk(2, -1)
    hand = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[3].T
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)
    with pytest.raises(WorkbenchError, match="a trace of nnsight cannot show"):
        nnsight.run(nnsight.wrap(model), given, layout=Layout(model), read=[places[1]])
