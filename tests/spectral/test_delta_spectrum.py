"""Spectra of changes: hand-computed ranks, Eckart-Young, and LoRA's ceiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.conftest import adapter, tiny
from tests.spectral.test_intruders import pair_of, power_law
from workbench import numerics
from workbench.spectral.delta_spectrum import effective_rank, energy, summary


@pytest.mark.parametrize("q", [1, 3, 17])
def test_q_equal_values_have_effective_and_stable_rank_q(q: int):
    found = summary(torch.cat([torch.full((q,), 0.3), torch.zeros(5)]))
    assert found["effective_rank"] == pytest.approx(q)
    assert found["stable_rank"] == pytest.approx(q)
    assert found["rank_99"] == q


def test_effective_rank_by_hand():
    # p = (3/4, 1/4): exp(-(.75 ln .75 + .25 ln .25)) = 4 / 27**.25
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 27**0.25)


def test_energy_is_one_minus_the_error_of_the_best_low_rank_copy():
    change = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    u, s, vt = torch.linalg.svd(change, full_matrices=False)
    for k in (1, 5, 19):
        error = (change - (u[:, :k] * s[:k]) @ vt[:k]).norm() ** 2 / change.norm() ** 2
        assert float(energy(s)[k - 1]) == pytest.approx(1 - float(error), abs=1e-5)


def test_every_metric_by_hand(tmp_path: Path):
    """A change of singular values 4, 2, 2, 1 (squares 16, 4, 4, 1 of 25) on a base of norm 10."""
    sigma = torch.tensor([4.0, 2, 2, 1])
    base = torch.zeros(6, 4)
    base[0, 0] = 10
    change = torch.zeros(6, 4)
    change[[5, 2, 3, 4], [1, 2, 3, 0]] = sigma
    result = wb.spectral.delta_spectrum(pair_of(base, base + change, tmp_path))
    rows = result.table[result.table["component"] == result.metric("sigma")["component"].iloc[0]]
    found = rows[rows["rank"].isna()].set_index("metric")["value"]
    share = sigma / 9
    assert found.to_dict() == pytest.approx(
        {
            "norm": 5, "relative_norm": 0.5, "stable_rank": 25 / 16, "rank_90": 3, "rank_99": 4,
            "effective_rank": float(torch.exp(-(share * share.log()).sum())),
            "energy_1": 16 / 25, "energy_2": 20 / 25,
        },
        rel=1e-5,
    )  # fmt: skip
    by_rank = rows[rows["metric"] == "sigma"].sort_values("rank")["value"]
    assert by_rank.tolist() == pytest.approx(sigma.tolist(), rel=1e-5)


def test_base_against_itself_is_zero_everywhere_and_has_no_rank(base: Path):
    result = wb.spectral.delta_spectrum(wb.load_pair(base, base))
    table = result.table
    ranks = table["metric"].isin(["effective_rank", "stable_rank", "rank_90", "rank_99"])
    assert (table.loc[~ranks, "value"] == 0).all()
    assert ranks.sum() == 4 * 14
    assert table.loc[ranks, "value"].isna().all()
    assert any("14 of 14 matrices did not change" in note for note in result.provenance.notes)
    assert {"self_attn.q_proj", "input_layernorm", "embed_tokens"} <= set(table["component"])


def test_full_change_matches_a_dense_svd(base: Path, tuned: Path):
    pair = wb.load_pair(base, tuned)
    result = wb.spectral.delta_spectrum(pair)
    delta = next(pair.deltas())
    rows = result.table.query("metric == 'sigma' and layer == 0")
    own = rows[rows["component"] == delta.site.component].sort_values("rank")["value"]
    torch.testing.assert_close(
        torch.tensor(own.to_numpy()).float(),
        torch.linalg.svdvals(delta.change),
        rtol=1e-4,
        atol=1e-6,
    )
    assert len(result.metric("relative_norm")) == 21


@pytest.mark.parametrize("rank", [1, 4])
def test_a_loras_effective_rank_never_exceeds_its_rank(rank: int, base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "a", r=rank)
    result = wb.spectral.delta_spectrum(wb.load_pair(base, lora))
    ranks = result.metric("effective_rank")["value"]
    assert (ranks <= rank + 1e-6).all()
    assert ranks.max() > 0.5 * rank


def test_similarity_of_base_with_itself_is_the_identity(base: Path):
    result = wb.spectral.similarity(wb.load_pair(base, base), matrices=["1.mlp.up_proj"])
    found = torch.from_numpy(result.tensors["1.mlp.up_proj"])
    torch.testing.assert_close(found, torch.eye(32), atol=1e-4, rtol=0)
    with pytest.raises(wb.WorkbenchError, match="There is no matrix"):
        wb.spectral.similarity(wb.load_pair(base, base), matrices=["9.nothing"])


@pytest.mark.parametrize("side", ["left", "right", "joint"])
def test_similarity_by_numpy(side: Any, base: Path, tuned: Path):
    """|u . u0|, |v . v0| or their product, from two decompositions in float64."""
    pair, name = wb.load_pair(base, tuned), "1.mlp.up_proj"
    found = wb.spectral.similarity(pair, matrices=[name], side=side)
    (delta,) = (one for one in pair.deltas() if str(one.site) == name)
    (left0, _, right0), (left, _, right) = (
        np.linalg.svd(one.double().numpy(), full_matrices=False)
        for one in (delta.base, delta.tuned)
    )
    lefts, rights = np.abs(left.T @ left0), np.abs(right @ right0.T)
    wanted = {"left": lefts, "right": rights, "joint": lefts * rights}[side]
    assert found.tensors[name] == pytest.approx(wanted, abs=1e-3)
    best = found.metric("max_cosine").sort_values("rank")["value"]
    assert best.to_numpy(float) == pytest.approx(wanted.max(1), abs=1e-3)


def test_vectors_of_value_zero_are_not_in_the_similarity(tmp_path: Path):
    """Rank 5 on both sides: five vectors each, and where the change is a factor, the identity."""
    u, s, vt = torch.linalg.svd(power_law(160, 200), full_matrices=False)
    low = (u[:, :5] * s[:5]) @ vt[:5]
    pair = pair_of(low, 1.5 * low, tmp_path)
    found = torch.from_numpy(wb.spectral.similarity(pair).tensors["0.mlp.up_proj"])
    torch.testing.assert_close(found, torch.eye(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_the_unit_of_both_sides_makes_no_difference(scale: float, tmp_path_factory):
    w = power_law(60, 80)
    tuned = w + 0.01 * power_law(60, 80, seed=1)
    ours, theirs = (
        wb.spectral.delta_spectrum(pair_of(by * w, by * tuned, tmp_path_factory.mktemp("p"))).table
        for by in (scale, 1.0)
    )
    by = {"norm": scale, "sigma": scale}
    for metric, rows in theirs.groupby("metric"):
        scaled = ours.loc[ours["metric"] == metric, "value"].to_numpy() / by.get(str(metric), 1.0)
        assert scaled == pytest.approx(rows["value"].to_numpy(), rel=1e-3)


@given(exponent=st.integers(-120, 110), seed=st.integers(0, 10**6), size=st.integers(1, 50))
def test_a_norm_of_numbers_of_any_size(exponent: int, seed: int, size: int):
    entries = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    exact = float(entries.double().norm())
    assert numerics.norm(entries) == pytest.approx(exact, rel=1e-5)
    assert entries.div(numerics.unit(entries)).mul(numerics.unit(entries)).equal(entries)


def test_a_norm_of_nothing_is_zero():
    assert numerics.norm(torch.zeros(3)) == numerics.norm(torch.zeros(0)) == 0
