"""theta_0 + alpha . m * P(delta): endpoints bit for bit, compositions, projections by their law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.conftest import adapter
from tests.models.conftest import batch, decoder, write_base, write_member
from workbench.loaders import Delta
from workbench.loaders.names import ParameterSite
from workbench.models import edit, entries, merged, one_bit, only, tiered, truncated
from workbench.models.edits import decomposed, once, overlay, tiers_of

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(params=["full", "lora"])
def pair(request, tmp_path: Path):
    base = write_base("llama", tmp_path / "base")
    return wb.load_pair(base, write_member("llama", request.param, tmp_path / request.param))


def load(folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in model.named_parameters()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_endpoints_are_the_checkpoints_bit_for_bit(kind: str, how: str, tmp_path: Path):
    base, member = write_base(kind, tmp_path / "b"), write_member(kind, how, tmp_path / "m")
    pair = wb.load_pair(base, member)
    model = load(base)
    plain = parameters(model)
    whole = parameters(merged(pair))
    assert not equal(plain, whole)
    with edit(pair).on(model):
        assert equal(parameters(model), whole)
    assert equal(parameters(model), plain)
    for nothing in (edit(pair, 0.0), edit(pair, mask=only(layers=()))):
        assert nothing.tensors() == {}
        with nothing.on(model):
            assert equal(parameters(model), plain)


def test_alpha_walks_the_line_between(pair):
    model, whole = load(pair.base.folder), parameters(merged(pair))
    plain = parameters(model)
    with edit(pair, 0.25).on(model):
        for name, found in parameters(model).items():
            line = plain[name] + 0.25 * (whole[name] - plain[name])
            torch.testing.assert_close(found, line)


def test_masks_choose_layers_components_and_entries(pair):
    model, whole = load(pair.base.folder), parameters(merged(pair))
    plain = parameters(model)
    with edit(pair, mask=only(layers=[1], components=["mlp.up_proj"])).on(model):
        found = parameters(model)
    assert {n for n in found if not torch.equal(found[n], plain[n])} == {NAME}
    keep = torch.rand(plain[NAME].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with edit(pair, mask=entries({NAME: keep})).on(model):
        found = parameters(model)
    assert torch.equal(found[NAME], torch.where(keep, whole[NAME], plain[NAME]))
    assert all(torch.equal(found[n], plain[n]) for n in plain if n != NAME)


def test_disjoint_masks_add_up_to_the_whole(pair):
    parts = edit(pair, mask=only(layers=[0])) + edit(pair, mask=lambda site: site.layer != 0)
    model = load(pair.base.folder)
    with parts.on(model):
        found = parameters(model)
    for name, tensor in parameters(merged(pair)).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


def test_edits_of_different_bases_do_not_add(pair, tmp_path: Path):
    other = decoder("llama")
    other.model.layers[0].mlp.up_proj.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    stranger = wb.load_pair(tmp_path / "other", pair.base.folder)
    with pytest.raises(wb.WorkbenchError, match="added over one base"):
        edit(pair) + edit(stranger)


def test_truncation_has_eckart_youngs_error(pair):
    delta = next(d for d in pair.deltas() if d.site.name == NAME)
    values = torch.linalg.svdvals(delta.change)
    for rank in (1, 2, 5):
        left = delta.change - truncated(rank)(delta)
        tail = values[rank:].square().sum()
        torch.testing.assert_close(left.square().sum(), tail, atol=1e-5, rtol=1e-4)


def test_a_decomposition_has_the_changes_values_and_orthonormal_vectors(pair):
    delta = next(d for d in pair.deltas() if d.site.name == NAME)
    left, values, right = decomposed(delta)
    size = len(values)
    assert size == (3 if delta.factors is not None else min(delta.change.shape))
    torch.testing.assert_close(left * values @ right, delta.change, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values, torch.linalg.svdvals(delta.change)[:size])
    for vectors in (left.T @ left, right @ right.T):
        torch.testing.assert_close(vectors, torch.eye(size), atol=1e-5, rtol=0)


def test_projections_can_share_one_decomposition(pair):
    delta, calls = next(d for d in pair.deltas() if d.site.name == NAME), []

    def counted(one):
        calls.append(one.site.name)
        return decomposed(one)

    shared = once(counted)
    for kept, plain in (
        (truncated(1, shared), truncated(1)),
        (truncated(2, shared), truncated(2)),
        (tiered(decompose=shared), tiered()),
    ):
        assert torch.equal(kept(delta), plain(delta))
    assert calls == [NAME]


def test_the_mean_is_the_best_single_scale(pair):
    delta = next(d for d in pair.deltas() if d.site.name == NAME)
    coarse = one_bit()(delta)
    assert coarse is not None
    best = (delta.change - coarse).square().sum()
    for factor in (0.95, 1.05):
        assert (delta.change - factor * coarse).square().sum() > best


def test_entries_that_did_not_change_stay_so_in_one_bit():
    """And the scale is the best for the others."""
    change = torch.tensor([[0.0, 2.0, -4.0], [0.0, 0.0, 6.0]])
    site = ParameterSite("m", 0, "m")
    made = one_bit()(Delta(site, torch.zeros(2, 3), whole=change))
    assert made is not None
    assert made.tolist() == [[0.0, 4.0, -4.0], [0.0, 0.0, 4.0]]


def test_the_published_tiers_are_for_a_matrix_of_4096():
    assert tiers_of((4096, 11008)) == ((2, 8), (32, 3), (968, 2))
    assert tiers_of((2048, 4096)) == ((1, 8), (16, 3), (484, 2))
    assert tiers_of((96, 64)) == ((1, 8), (1, 3), (15, 2))


def test_more_bits_come_nearer(pair):
    delta = next(d for d in pair.deltas() if d.site.name == NAME)
    size = min(delta.change.shape)
    errors = [
        float((delta.change - tiered([(size, bits)])(delta)).norm()) for bits in (2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * float(delta.change.norm())


def test_an_edit_leaves_a_sharing_model_alone(pair):
    """Two models may share parameters; only the edited one changes."""
    model, other = load(pair.base.folder), load(pair.base.folder)
    other.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    before = other(**batch()).logits
    with edit(pair).on(model):
        assert torch.equal(other(**batch()).logits, before)


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_an_adapter_that_unties_cannot_be_an_edit(saved: str, tmp_path: Path):
    base = write_base("gemma", tmp_path / "b")
    adapter(decoder("gemma"), tmp_path / "m", target_modules=["q_proj"], modules_to_save=[saved])
    pair = wb.load_pair(base, tmp_path / "m")
    for made in (lambda: edit(pair).tensors(), lambda: merged(pair)):
        with pytest.raises(wb.WorkbenchError, match="ties to the head"):
            made()


def test_a_wrong_shape_leaves_the_model_alone(pair):
    model = load(pair.base.folder)
    plain = parameters(model)
    wrong = {NAME: torch.zeros(48, 32), "model.layers.1.mlp.down_proj.weight": torch.zeros(3)}
    with pytest.raises(wb.WorkbenchError, match="shape"), overlay(model, wrong, pair):
        pass
    assert equal(parameters(model), plain)


def test_tied_weights_stay_tied(tmp_path: Path):
    base = write_base("gemma", tmp_path / "b")
    pair = wb.load_pair(base, write_member("gemma", "full", tmp_path / "m"))
    model = load(base)
    with edit(pair).on(model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model(**batch()).logits, merged(pair)(**batch()).logits)
