"""The change on the inputs' directions: exact nulls, planted changes, numbers by plain torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.calls import Asked, write_pair
from tests.conftest import contents
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.loaders.names import ParameterSite
from workbench.spectral.explained import applied, fourth_moment, null_range
from workbench.tasks.batching import rows

SITE = ParameterSite("w", 0, "mlp.up_proj")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> wb.CheckpointPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


def value(result: wb.Result, metric: str, layer=None, component=None, x=None) -> dict:
    """The one row of the boxes."""
    own = result.metric(metric)
    own = own[own["task"] == "boxes"]
    for name, wanted in (("layer", layer), ("component", component), ("x", x)):
        own = own[own[name].isna()] if wanted is None else own[own[name] == wanted]
    (row,) = own.to_dict("records")
    return row


def read_by_hand(pair: wb.CheckpointPair, prompts: wb.tasks.PromptSet, name: str) -> list:
    """What a module of the base reads, prompt by prompt, in plain torch."""
    model, words, seen = pair.base.load(), pair.base.tokenizer(), []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0].double())
    )
    with torch.no_grad():
        for row in rows(words, prompts):
            model(torch.tensor([row.ids]))
    hook.remove()
    return seen


def test_every_number_by_plain_torch(pair: wb.CheckpointPair):
    """Of one matrix that has its inputs to itself and one that shares them, and of them all."""
    asked = Asked(5)
    found = wb.spectral.explained(pair, asked.prompts, others=[asked.others], batch_size=3)
    totals = np.zeros((2, 5))
    for site in pair.sites():
        inputs = read_by_hand(pair, asked.prompts, site.name.removesuffix(".weight"))
        change = pair.delta(site).change.double()
        size, d = float(change.square().sum()), change.shape[1]
        tops = np.array([float((x @ change.T).square().sum()) for x in inputs])
        bottoms = np.array([float(x.square().sum()) * size / d for x in inputs])
        totals += np.array([tops, bottoms])
        row = value(found, "energy", site.layer, site.component)
        assert row["value"] == pytest.approx(tops.sum() / bottoms.sum(), rel=1e-4)
        assert row["low"] < row["value"] < row["high"]
        assert row["n"] == 5
        gram = torch.cat(inputs).T @ torch.cat(inputs)
        values, vectors = torch.linalg.eigh(gram)
        for p in (1, 8):
            inside = float((change @ vectors[:, -p:]).square().sum()) / size
            row = value(found, "explained", site.layer, site.component, p)
            assert row["value"] == pytest.approx(inside, rel=1e-3)
            assert row["baseline"] == pytest.approx(p / d)
            row = value(found, "inputs", site.layer, site.component, p)
            assert row["value"] == pytest.approx(float(values[-p:].sum() / values.sum()), rel=1e-4)
    row = value(found, "energy")
    assert row["value"] == pytest.approx(totals[0].sum() / totals[1].sum(), rel=1e-4)
    assert set(found.table["task"]) == {"boxes", "facts"}


def test_inputs_without_directions_give_one_and_a_change_beside_them_zero():
    """C = s^2 I: tr(dW C dW^T) = s^2 |dW|^2, so that every change is as a random one."""
    noise = torch.Generator().manual_seed(0)
    delta = Delta(SITE, torch.zeros(6, 8), torch.randn(6, 8, generator=noise))
    whole = torch.linalg.qr(torch.randn(8, 8, generator=noise))[0] * 3
    assert float(applied(delta, whole).square().sum()) == pytest.approx(9 * delta.norm**2, rel=1e-5)
    low, high = null_range(delta.norm**2, fourth_moment(delta), 9 * torch.eye(8))
    assert low == high == pytest.approx(9 * delta.norm**2)
    inputs = torch.zeros(5, 8)
    inputs[:, :2] = torch.randn(5, 2, generator=noise)
    beside = torch.randn(6, 8, generator=noise)
    beside[:, :2] = 0
    assert applied(Delta(SITE, torch.zeros(6, 8), beside), inputs).abs().max() == 0


def test_factors_give_what_the_dense_change_gives():
    noise = torch.Generator().manual_seed(1)
    up, down = torch.randn(9, 3, generator=noise), torch.randn(3, 7, generator=noise)
    low = Delta(SITE, torch.zeros(9, 7), factors=Factors(up, down))
    full = Delta(SITE, torch.zeros(9, 7), up @ down)
    inputs = torch.randn(4, 7, generator=noise)
    torch.testing.assert_close(applied(low, inputs), applied(full, inputs), rtol=1e-4, atol=1e-5)
    exact = float(torch.linalg.svdvals((up @ down).double()).pow(4).sum())
    assert fourth_moment(low) == pytest.approx(exact, rel=1e-5)
    assert fourth_moment(full) == pytest.approx(exact, rel=1e-5)


def test_the_null_is_that_of_drawn_rotations():
    """Mean, variance and range of tr(Q A Q^T C) over 4,000 Haar-random rotations."""
    draw = np.random.default_rng(0)
    d, sigma = 12, np.array([3.0, 1, 0.5])
    gram = np.diag(np.arange(1.0, d + 1) ** 1.5)
    drawn = []
    for _ in range(4000):
        frame = np.linalg.qr(draw.standard_normal((d, 3)))[0]
        drawn.append(float((sigma**2 * np.einsum("ij,ik,kj->j", frame, gram, frame)).sum()))
    low, high = null_range((sigma**2).sum(), (sigma**4).sum(), torch.from_numpy(gram))
    assert np.mean(drawn) == pytest.approx((sigma**2).sum() * np.trace(gram) / d, rel=0.02)
    assert np.mean((np.array(drawn) > low) & (np.array(drawn) < high)) == pytest.approx(
        0.95, abs=0.02
    )


def test_a_change_planted_on_the_inputs_is_found_there_and_a_random_one_is_as_chance(
    tmp_path: Path,
):
    """Layer 1's up projection changes along the first direction of what it reads; layer 2's along a
    random one."""
    pair, prompts = write_pair(tmp_path), Asked(6).prompts
    name = "model.layers.1.mlp.up_proj"
    inputs = torch.cat(read_by_hand(pair, prompts, name))
    first = torch.linalg.eigh(inputs.T @ inputs)[1][:, -1].float()
    other = torch.randn(32, generator=torch.Generator().manual_seed(3))
    planted = pair.base.load()
    with torch.no_grad():
        out = torch.randn(48, generator=torch.Generator().manual_seed(4))
        planted.get_submodule(name).weight += 0.1 * torch.outer(out, first)
        planted.model.layers[2].mlp.up_proj.weight += 0.1 * torch.outer(out, other)
    planted.save_pretrained(tmp_path / "planted")
    found = wb.spectral.explained(wb.load_pair(tmp_path / "base", tmp_path / "planted"), prompts)
    changed = found.metric("energy").dropna(subset=["layer"])
    assert changed["layer"].tolist() == [1, 2]
    here, there = changed.to_dict("records")
    assert here["value"] > here["null_high"]
    assert there["null_low"] < there["value"] < there["null_high"]
    row = value(found, "explained", 1, "mlp.up_proj", 1)
    assert row["value"] == pytest.approx(1, abs=1e-4)
    assert any("19 of 21 matrices did not change" in note for note in found.provenance.notes)


def test_the_base_against_itself_has_no_change_to_explain(pair: wb.CheckpointPair):
    found = wb.spectral.explained(wb.CheckpointPair(pair.base, pair.base, "same"), Asked(3).prompts)
    assert len(found.table) == 1
    assert found.table["value"].isna().all()


def test_further_passes_padding_and_the_files_change_nothing(
    pair: wb.CheckpointPair, monkeypatch: pytest.MonkeyPatch
):
    """Groups that hold one matrix each, and batches of one prompt: the same table."""
    before = contents(Path(pair.tuned.reference))
    asked = Asked(4)
    whole = wb.spectral.explained(pair, asked.prompts, batch_size=4).table
    monkeypatch.setattr(import_module("workbench.spectral.explained"), "MEMORY", 1)
    single = wb.spectral.explained(pair, asked.prompts, batch_size=1).table
    assert list(single["metric"]) == list(whole["metric"])
    assert single["value"].to_numpy() == pytest.approx(
        whole["value"].to_numpy(), rel=1e-3, abs=1e-5
    )
    assert contents(Path(pair.tuned.reference)) == before
