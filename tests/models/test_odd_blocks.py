"""Blocks that share what they keep, scale what they add, or stand beside others of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import workbench as wb
from tests.architectures import cells
from tests.models import zoo
from tests.models.conftest import batch, decoder
from tests.patching.conftest import boxes, paired
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import KINDS, Layout, Site, capture, hooks, replace, site_verification
from workbench.models.known import make_of
from workbench.models.parts import find
from workbench.models.rerun import Rerun
from workbench.patching import edges
from workbench.tuco.contribution import decompose

SLIDING, FULL = "sliding_attention", "full_attention"
SHARED = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
}  # fmt: skip
WORDS = {"vocab_size": cells.WORDS, "max_position_embeddings": 128}


def test_blocks_that_share_keys_and_values(tmp_path: Path):
    """Gemma 4's last blocks read the keys of earlier ones: all of them are found, the base's read
    the base's, and no block is left out of a run that a later one needs."""
    case = cells.Case("gemma4_text", tmp_path, SHARED)
    assert Layout(case.plain[0]).layers == 4
    cells.run(case)
    cells.tuco(case)
    cells.patching(case)
    cells.grafts(case)


def test_a_change_of_biases_beside_a_lora_is_seen_by_tuco(tmp_path: Path):
    """Such a pair is two models: the base's block is made of the base's own modules."""
    base = zoo.small("qwen2", **WORDS)
    folder = tmp_path / "base"
    base.save_pretrained(folder)
    shipped.tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    options: dict[str, Any] = {"r": 2, "target_modules": ["o_proj"], "init_lora_weights": False}
    made = get_peft_model(base, LoraConfig(bias="all", **options))
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.5)
    made.save_pretrained(tmp_path / "member")
    pair = wb.load_pair(folder, tmp_path / "member")
    given = cells.Case("qwen2", tmp_path).inputs
    with pair.models(dtype=torch.float32) as sides:
        sums, _ = decompose(sides, given)
        ends = [Site("resid_pre", layer) for layer in range(3)]
        seen = hooks.run(sides.tuned, given.inputs, read=ends).captured
        first = seen[ends[0]]
        own = hooks.run(sides.base, given.inputs, read=[Site("resid_post", 0)]).captured
        # Both begin with one embedding: block 0's contributions are plain differences.
        ptc = own[Site("resid_post", 0)] - first
        ftc = seen[ends[1]] - own[Site("resid_post", 0)]
    size = sums.at_last(ptc).abs().sum(-1), sums.at_last(ftc).abs().sum(-1)
    torch.testing.assert_close(sums.layers[0][0], size[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(sums.layers[0][1], size[1], atol=1e-3, rtol=1e-4)
    assert size[1].min() > 0.1


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
def test_gradients_pass_a_place_that_is_scaled(kind: Any):
    """Granite adds half of what its sublayers give; the slope at what is added is the finite
    difference, and a value written there is what is added."""
    model, given = zoo.small("granite"), batch()
    site = Site(kind, 1)
    with torch.enable_grad():
        more = torch.zeros(2, 9, 32, requires_grad=True)
        with replace(model, {site: lambda own: own + more}):
            total = model(**given, use_cache=False).logits[:, -1, :5].sum()
        (slope,) = torch.autograd.grad(total, [more])
    step = torch.zeros(2, 9, 32)
    step[0, 4, 7] = 1e-2
    ends = []
    for sign in (1, -1):
        with replace(model, {site: lambda own, s=sign: own + s * step}):
            ends.append(model(**given, use_cache=False).logits[:, -1, :5].sum())
    finite = (ends[0] - ends[1]) / 2e-2
    assert slope[0, 4, 7].item() == pytest.approx(finite.item(), rel=1e-2, abs=1e-3)
    value = torch.randn(2, 9, 32)
    ends = [Site("resid_mid", 1), Site("resid_pre", 1), Site("resid_post", 1)]
    with replace(model, {site: value}), capture(model, ends) as seen:
        model(**given, use_cache=False)
    parts = (seen[ends[0]], seen[ends[1]]) if kind == "attn_out" else (seen[ends[2]], seen[ends[0]])
    torch.testing.assert_close(parts[0] - parts[1], value, atol=1e-5, rtol=1e-5)


def test_what_can_only_be_read_is_not_written():
    model = zoo.small("mixtral")
    site = Site("router_logits", 1)
    with capture(model, [site]):
        model(**batch())
    with pytest.raises(WorkbenchError, match="router_logits is not available"):
        hooks.run(model, batch(), write={site: torch.zeros(1)})


def test_what_is_known_of_one_make_is_of_its_numbers():
    """Not of a model without numbers, of another precision, or of one that adds nothing."""
    model = decoder("llama")
    with torch.device("meta"):
        empty = decoder("llama")
    assert len({make_of(one) for one in (model, empty, decoder("llama").bfloat16())}) == 3
    for parameter in (silent := zoo.small("bitnet")).parameters():
        parameter.zero_()
    site_verification.refused(Layout(silent))
    told = site_verification.refused(Layout(zoo.small("bitnet")))
    assert set(told) == {"v", "z"}


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma4_text", "nemotron_h", "olmo2", "qwen3_next", "deepseek_v3"]
)
def test_what_a_model_is_made_of_hangs_on_no_precision(family: str):
    model = zoo.small(family)
    assert find(model) == find(model.bfloat16())


def test_unused_rows_of_an_embedding_hide_nothing():
    model = zoo.small("olmo2")
    model.get_input_embeddings().weight[:10] = 0
    layout = Layout(model)
    assert {kind for kind in KINDS if layout.where(kind)} >= {"attn_out", "resid_mid", "mlp_out"}


def test_edges_are_of_plain_blocks_alone():
    more = {"shared_intermediate_size": 16}
    for family, options in (("granitemoeshared", more), ("falcon_h1", {})):
        with pytest.raises(WorkbenchError, match="leave edges out"):
            edges.links(Layout(zoo.small(family, **options)))
    assert edges.links(Layout(zoo.small("granite")))


def test_transformer_lens_names_only_the_same_places():
    for family in ("olmo2", "qwen3_next"):
        with pytest.raises(WorkbenchError, match="a different place"):
            Layout(zoo.small(family)).lens(Site("q", 1))
    assert Layout(zoo.small("llama")).lens(Site("q", 1)) == "blocks.1.attn.hook_q"


def test_paths_hold_what_mixes_tokens_without_heads(tmp_path: Path):
    """With every later mixer held, what a head changes at one token reaches no other token's
    logits."""
    kinds = ["attention", "mamba", "attention"]
    one, other = (zoo.small("granitemoehybrid", layer_types=kinds, **WORDS) for _ in range(2))
    other.model.layers[1].mamba.out_proj.weight.mul_(3)
    pair = paired(one, other, tmp_path)
    found = wb.patching.path(pair, boxes(8), senders=[(0, 1)], position=-2, sides=["base"])
    moved = found.metric("logit_change")
    assert moved[moved["arm"] == "patch"]["value"].abs().max() < 1e-5


def test_patterns_of_hybrids_stand_at_their_layers(tmp_path: Path):
    one, other = (zoo.small("qwen3_next", **WORDS) for _ in range(2))
    other.model.layers[2].self_attn.k_proj.weight.mul_(2)
    found = wb.patching.patterns(paired(one, other, tmp_path), boxes(4))
    last = torch.from_numpy(found.tensors["0/tuned/last"])
    assert last.shape[0] == 3
    assert last[0].isnan().all()
    torch.testing.assert_close(last[1:].sum(-1), torch.ones(2, last.shape[1]))


def test_no_state_is_cut_into_tokens():
    """A recurrence's state is of no token: nothing before a change is left out of a second run."""
    run = Rerun(zoo.small("mamba2", **WORDS), cells.Case("mamba2", Path()).inputs)
    assert not run.saves.tokens
    assert run.saves.blocks
