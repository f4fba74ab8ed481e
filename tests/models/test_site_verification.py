"""A site of a model is what its name says, or is refused by name; known once a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import workbench as wb
from tests.models.conftest import GPT2, SHAPE, batch, decoder
from tests.patching.conftest import boxes, copier, paired
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import (
    KINDS,
    Layout,
    Site,
    capture,
    hooks,
    nnsight,
    replace,
    site_verification,
)

GEMMA3N = {
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4,
    "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 3,
    "layer_types": ["full_attention"] * 3,
}  # fmt: skip
# Types that have a known record's module names, and the kinds that are not what they say there.
ALIKE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "gpt_bigcode": (GPT2, {"q", "k", "v"}),
    "bitnet": (SHAPE, {"v", "z"}),
    "diffllama": ({k: v for k, v in SHAPE.items() if k != "head_dim"}, {"v", "z"}),
    "hyperclovax": (SHAPE, {"attn_out", "mlp_out"}),
    "beam": (SHAPE | {"mlp_layer_types": ["dense"] * 3}, {"attn_out", "mlp_out", "v", "z"}),
    "gemma3n_text": (
        SHAPE | GEMMA3N,
        {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "v", "z"},
    ),
}


def alike(name: str, **more: Any) -> Any:
    options = ALIKE[name][0] | {"attn_implementation": "eager"} | more
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**options)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_site_of_a_known_architecture_is_proved(kind: str, dtype: torch.dtype):
    assert site_verification.refused(Layout(decoder(kind).to(dtype))) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALIKE)
def test_what_only_looks_like_one_is_refused_kind_by_kind(name: str, dtype: torch.dtype):
    model = alike(name).to(dtype)
    assert set(site_verification.refused(Layout(model))) == ALIKE[name][1]
    for one in KINDS:
        if one in ALIKE[name][1]:
            with pytest.raises(WorkbenchError, match=f"1.{one} is not to be had"):
                hooks.run(model, batch(), read=[Site(one, 1)])
            with pytest.raises(WorkbenchError, match=f"1.{one} is not to be had"):
                hooks.run(model, batch(), write={Site(one, 1): torch.zeros(1)})
        else:
            hooks.run(model, batch(), read=[Site(one, 1)])


def test_one_projection_laid_out_head_by_head_is_not_gpt2s():
    """The shapes are GPT-2's; only what a head does tells."""
    found = site_verification.refused(Layout(alike("gpt_bigcode", multi_query=False)))
    assert set(found) == {"q", "k", "v", "z"}


def test_one_block_is_enough():
    model = decoder("llama")
    block: Any = model.model.layers[2]
    forward = block.forward
    block.forward = lambda *args, **kwargs: 1.5 * forward(*args, **kwargs)
    assert site_verification.refused(Layout(model)) == {
        "mlp_out": "in block 2 the stream is not the sum of the parts so named"
    }


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
    assert len(passes) == 2
    for _ in range(2):
        hooks.run(model, batch(), read=[Site("z", 0)])
    assert len(passes) == 2 + 1 + 2


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
    model = alike("bitnet")
    sight, layout = nnsight.wrap(model), Layout(model)
    with pytest.raises(WorkbenchError, match="use resid_pre, q, k, pattern, attn_out"):
        nnsight.run(sight, batch(), layout=layout, read=[Site("z", 0)])
    site = Site("resid_mid", 1)
    found = nnsight.run(sight, batch(), layout=layout, read=[site]).captured[site]
    assert torch.equal(found, hooks.run(model, batch(), read=[site]).captured[site])


def test_patching_goes_on_with_the_other_kinds(tmp_path):
    words = len(shipped.tokenizer())
    one, other = (alike("gpt_bigcode", vocab_size=words, n_positions=128) for _ in range(2))
    other.transformer.h[1].mlp.c_proj.weight.mul_(3)
    pair = paired(one, other, tmp_path)
    found = wb.patching.cross_model(pair, boxes(4), sites=["resid_post", "z"])
    krs = found.metric("krs")
    krs = krs[(krs["arm"] == "patch") & (krs["component"] == "resid_post")]["value"].tolist()
    assert krs == pytest.approx([0, 1, 1], abs=1e-5)
    with pytest.raises(WorkbenchError, match=r"0\.v is not to be had in GPTBigCode"):
        wb.patching.cross_model(pair, boxes(4), sites=["v"])
