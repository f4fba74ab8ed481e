"""Intruder dimensions: exact nulls, planted directions of known cosine, and auto = exact."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.loaders import CheckpointPair
from workbench.loaders.adapters import Factors
from workbench.spectral import base_svd
from workbench.spectral.base_svd import base_triplets
from workbench.spectral.intruders import Method, _energy, cosines, describe, tuned_triplets
from workbench.spectral.leading import ANGLE, top_triplets
from workbench.spectral.linalg import (
    Operator,
    Triplets,
    dense_triplets,
    factor_values,
)

NAME = "model.layers.0.mlp.up_proj.weight"


def power_law(rows: int, columns: int, seed: int = 0, decay: float = 0.7) -> torch.Tensor:
    """A matrix with a simple, decaying spectrum, as trained weights have."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))
    values = 3 * torch.arange(1, size + 1, dtype=torch.float64) ** -decay
    return ((u * values) @ v.T).float()


def pair_of(base: torch.Tensor, tuned: torch.Tensor, folder: Path) -> CheckpointPair:
    for name, matrix in (("b", base), ("t", tuned)):
        (folder / name).mkdir()
        save_file({NAME: matrix.contiguous()}, folder / name / "model.safetensors")
    return wb.load_pair(folder / "b", folder / "t")


def values(result: wb.Result, metric: str) -> torch.Tensor:
    return torch.tensor(result.metric(metric).sort_values("rank")["value"].to_numpy())


@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize("side", ["left", "right", "joint"])
def test_base_against_itself_is_the_exact_null(method, side, tmp_path: Path):
    w = power_law(160, 200)
    result = wb.spectral.intruders(pair_of(w, w, tmp_path), method=method, side=side)
    assert values(result, "intruder").sum() == 0
    torch.testing.assert_close(
        values(result, "max_cosine"), torch.ones(10).double(), atol=1e-5, rtol=0
    )
    assert values(result, "nearest").tolist() == list(range(10))
    assert not any("random" in metric for metric in result.table["metric"])


@pytest.mark.parametrize(("q", "is_intruder"), [(3, False), (5, True)])
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_a_strong_spike_mixing_q_directions_has_cosine_one_over_root_q(
    q: int, is_intruder: bool, method: Method, tmp_path: Path
):
    w = power_law(160, 200)
    u, _, vt = torch.linalg.svd(w, full_matrices=False)
    direction = u[:, 20 : 20 + q].sum(1) / math.sqrt(q)
    spiked = w + 1000 * torch.outer(direction, vt[20 : 20 + q].sum(0) / math.sqrt(q))
    result = wb.spectral.intruders(pair_of(w, spiked, tmp_path), method=method)
    assert values(result, "max_cosine")[0] == pytest.approx(1 / math.sqrt(q), abs=2e-3)
    assert bool(values(result, "intruder")[0]) is is_intruder
    assert values(result, "participation_ratio")[0] == pytest.approx(q, rel=0.02)


def test_every_number_by_hand():
    """A vector with .04, .36, .25 and .1 of its energy on four base vectors, .25 outside them all;
    its nearest has the value 2, with 1.99 in its cluster and 1.975 not."""
    share = torch.tensor([0.04, 0.36, 0.25, 0.1, 0.25, 0])
    axes, none = torch.eye(6)[:, :4], torch.zeros(4)
    base = Triplets(axes, torch.tensor([4, 2, 1.99, 1.975]), axes, none)
    # Joint: half of each coordinate is left where the right vector has cosine .5.
    right = torch.full((6, 1), 0.5)
    tuned = Triplets(share.sqrt()[:, None], torch.tensor([7.0]), right, none[:1])
    squares = 0.04**2 + 0.36**2 + 0.25**2 + 0.1**2
    for side, factor in (("left", 1.0), ("joint", 0.5)):
        found = {name: float(one[0]) for name, one in describe(tuned, base, side).items()}
        assert found == pytest.approx({
            "sigma": 7,
            "max_cosine": 0.6 * factor,
            "nearest": 1,
            "participation_ratio": 0.75**2 / squares,
            "cluster_projection": math.sqrt(0.36 + 0.25) * factor,
            "out_of_span": 1 - 0.75 * factor**2,
        }, rel=1e-5)  # fmt: skip
    sigma, intruder = torch.tensor([4.0, 2, 1]), torch.tensor([0.0, 1, 1])
    assert float(_energy({"sigma": sigma, "intruder": intruder})) == pytest.approx(5 / 21)


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_the_whole_table_by_numpy(method: Method, tmp_path: Path):
    """Every row of a pair, from two decompositions in float64 and the paper's definition."""
    k, eps = 4, 0.9
    base = saved(tiny("llama"), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(tiny("llama"), 0.003), tmp_path / "tuned"))
    found = wb.spectral.intruders(pair, k=k, eps=eps, method=method, nulls=False).table
    for delta in pair.deltas():
        rows = found[
            (found["layer"] == delta.site.layer) & (found["component"] == delta.site.component)
        ]
        sides = (one.double().numpy() for one in (delta.base, delta.tuned))
        (left, values, _), (ours, sigma, _) = (
            np.linalg.svd(one, full_matrices=False) for one in sides
        )
        cosine = np.abs(left.T @ ours[:, :k])
        best, new = cosine.max(0), cosine.max(0) < eps
        near = values[cosine.argmax(0)]
        cluster = np.abs(values[:, None] - near) <= 0.01 * near
        energy = sigma[:k] ** 2
        for metric, wanted in {
            "sigma": sigma[:k],
            "max_cosine": best,
            "nearest": cosine.argmax(0),
            "intruder": new,
            "participation_ratio": (cosine**2).sum(0) ** 2 / (cosine**4).sum(0),
            "cluster_projection": np.sqrt((cosine**2 * cluster).sum(0)),
            "out_of_span": 1 - (cosine**2).sum(0),
            "intruder_energy": [energy[new].sum() / energy.sum()],
            "changed": [1],
        }.items():
            value = rows[rows["metric"] == metric].sort_values("rank")["value"]
            assert value.to_numpy(float) == pytest.approx(np.array(wanted, float), abs=2e-3), metric
    assert set(found.loc[found["metric"] == "intruder", "value"]) == {0, 1}


@pytest.mark.parametrize("method", ["auto", "exact", "decide"])
def test_the_direction_that_a_base_lacks_is_new(method: Method, tmp_path: Path):
    """A base of rank 59 of 60: its last vector has the value zero and is none of its directions."""
    low = dense_triplets(power_law(60, 60))
    kept = low.top(59)
    base = (kept.left * kept.values) @ kept.right.T
    tuned = base + 10 * torch.outer(low.left[:, 59], low.right[:, 59])
    found = wb.spectral.intruders(pair_of(base, tuned, tmp_path), method=method, k=3, nulls=False)
    assert values(found, "intruder").tolist() == [1, 0, 0]
    energy = 100 / (100 + float(low.values[:2].square().sum()))
    assert values(found, "intruder_energy")[0] == pytest.approx(energy, rel=1e-4)


def test_strengthening_a_base_direction_makes_no_intruder(tmp_path: Path):
    w = power_law(160, 200)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    stronger = w + 5 * torch.outer(u[:, 7], vt[7])
    result = wb.spectral.intruders(pair_of(w, stronger, tmp_path))
    assert values(result, "intruder").sum() == 0
    assert values(result, "nearest")[0] == 7
    assert values(result, "sigma")[0] == pytest.approx(float(s[7]) + 5, rel=1e-4)


def test_baik_ben_arous_peche(tmp_path: Path):
    """Spiked square Gaussian: sigma = theta + 1/theta and |<u, p>|^2 = 1 - 1/theta^2."""
    n, theta = 1200, 2.0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, n, generator=generator) / math.sqrt(n)
    p, q = (torch.nn.functional.normalize(torch.randn(n, generator=generator), dim=0) for _ in "ab")
    top = tuned_triplets(
        Operator(noise, Factors(theta * p[:, None], q[None])),
        dense_triplets(noise), 1, 0.5, "left", "auto",
    )  # fmt: skip
    assert float(top.values[0]) == pytest.approx(theta + 1 / theta, abs=0.05)
    assert float(top.left[:, 0] @ p) ** 2 == pytest.approx(1 - 1 / theta**2, abs=0.03)


def test_invariance_to_rotation_sign_and_joint_scale(tmp_path_factory):
    w = power_law(96, 128)
    tuned = w + 0.5 * torch.outer(power_law(96, 1)[:, 0], power_law(128, 1, seed=1)[:, 0])
    rotation = torch.linalg.qr(torch.randn(96, 96, generator=torch.Generator().manual_seed(3)))[0]
    expected = None
    for left, scale in ((torch.eye(96), 1.0), (rotation, 1.0), (-torch.eye(96), 7.0)):
        pair = pair_of(scale * left @ w, scale * left @ tuned, tmp_path_factory.mktemp("p"))
        found = values(wb.spectral.intruders(pair, nulls=False), "max_cosine")
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_left_and_right_swap_under_transposition(tmp_path_factory):
    w, tuned = power_law(96, 128), power_law(96, 128) + 0.02 * power_law(96, 128, seed=5)
    one = wb.spectral.intruders(pair_of(w, tuned, tmp_path_factory.mktemp("p")), side="left")
    other = wb.spectral.intruders(pair_of(w.T, tuned.T, tmp_path_factory.mktemp("p")), side="right")
    torch.testing.assert_close(
        values(one, "max_cosine"), values(other, "max_cosine"), atol=1e-4, rtol=0
    )


def test_noise_in_a_degenerate_spectrum_is_not_called_new_by_the_cluster_score(tmp_path: Path):
    """Equal singular values: noise of 1e-6 turns every vector, and only the cluster score tells."""
    u = torch.linalg.qr(torch.randn(160, 160, generator=torch.Generator().manual_seed(0)))[0]
    noise = 1e-6 * torch.randn(160, 160, generator=torch.Generator().manual_seed(1))
    result = wb.spectral.intruders(pair_of(u, u + noise, tmp_path))
    assert values(result, "intruder").sum() == 10
    assert (values(result, "cluster_projection") > 0.99).all()
    assert (values(result, "participation_ratio") > 20).all()


def test_nulls_tell_structure_from_size(tmp_path: Path):
    """A random change of the same norm, spread over all directions, is no intruder; a spike is."""
    w = power_law(160, 200)
    generator = torch.Generator().manual_seed(4)
    p, q = (torch.randn(n, generator=generator) for n in (160, 200))
    spike = 8 * torch.outer(p / p.norm(), q / q.norm())
    result = wb.spectral.intruders(pair_of(w, w + spike, tmp_path))
    assert values(result, "intruder")[0] == 1
    assert values(result, "intruder:random_delta")[0] == 0


def test_merged_unmerged_and_base_plus_adapter_give_the_same_table(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "b")
    lora = adapter(tiny("llama"), tmp_path / "a")
    merged = PeftModel.from_pretrained(tiny("llama"), str(lora)).merge_and_unload()
    references = [lora, saved(merged, tmp_path / "m"), f"{base}+{lora}"]
    tables = [
        wb.spectral.intruders(wb.load_pair(base, r, "x"), nulls=False).table for r in references
    ]
    assert len(tables[0]) == len(tables[1]) == len(tables[2]) > 0
    for table in tables[1:]:
        assert np.allclose(table["value"], tables[0]["value"], rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(128, 260),
    columns=st.integers(128, 260),
    seed=st.integers(0, 10**6),
    decay=st.floats(0.2, 1.2),
    strength=st.floats(1e-3, 10),
    rank=st.integers(1, 16),
    eps=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]),
    side=st.sampled_from(["left", "right", "joint"]),
)
def test_auto_and_exact_agree_on_every_decision(
    rows, columns, seed, decay, strength, rank, eps, side
):
    w = power_law(rows, columns, seed, decay)
    generator = torch.Generator().manual_seed(seed + 1)
    up = torch.randn(rows, rank, generator=generator) * strength / math.sqrt(rows * rank)
    down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
    operator, base = Operator(w, Factors(up, down)), dense_triplets(w)
    auto = tuned_triplets(operator, base, 10, eps, side, "auto")
    exact = tuned_triplets(operator, base, 10, eps, side, "exact")
    ours, theirs = (cosines(t, base, side).max(0).values for t in (auto, exact))
    slack = ANGLE * (2 if side == "joint" else 1)
    # Where two exact values lie closer than float32 tells apart, both orders are right.
    apart = exact.values[:-1] - exact.values[1:] > 1e-4 * exact.values[0]
    clear = torch.cat([apart, torch.tensor([False])]) & torch.cat([torch.tensor([True]), apart])
    assert ((ours < eps) == (theirs < eps))[clear].all()
    assert ((ours - theirs).abs() <= slack)[clear].all()


def test_the_iteration_itself_is_certified_and_right():
    """Negative control of the fallback: a decaying spectrum needs no dense SVD."""
    w = power_law(300, 400)
    found = top_triplets(Operator(w), 10, dense_triplets(w).right[:, :20])
    left, singular, _ = torch.linalg.svd(w.double(), full_matrices=False)
    assert found is not None
    torch.testing.assert_close(found.values, singular[:10].float(), rtol=1e-4, atol=0)
    exact, ours = left[:, :10], found.left.double()
    sine = (ours - exact * (exact * ours).sum(0)).norm(dim=0)
    assert (sine <= found.angle + 1e-4).all()
    assert top_triplets(Operator(torch.eye(200)), 10) is None


def test_base_decompositions_are_kept_under_their_content(monkeypatch):
    w = power_law(130, 140, seed=11)
    first = base_triplets(w)
    monkeypatch.setattr("workbench.spectral.base_svd.dense_triplets", None)
    again = base_triplets(w.clone())
    torch.testing.assert_close(again.left, first.left, rtol=0, atol=0)
    with pytest.raises(TypeError):
        base_triplets(w + 1e-6)


def kept(matrix: torch.Tensor) -> Path:
    base_triplets(matrix)
    return base_svd._kept_at(matrix)


def other_bytes(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-7] ^= 1
    file.write_bytes(bytes(raw))


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:200]),
    "empty": lambda file: file.write_bytes(b""),
    "no tensors": lambda file: file.write_bytes(b"\x02" + bytes(7) + b"{}"),
    "another matrix": lambda file: shutil.copy(kept(power_law(31, 17, seed=2)), file),
    "another shape": lambda file: shutil.copy(kept(power_law(12, 9, seed=2)), file),
    "without its digest": lambda file: save_file(load_file(file), file),
    "other bytes": other_bytes,
}


@pytest.mark.parametrize("which", DAMAGE)
def test_a_kept_decomposition_that_is_damaged_is_made_anew(which: str):
    w = power_law(31, 17, seed=1)
    file, truth = kept(w), dense_triplets(w)
    whole = file.read_bytes()
    DAMAGE[which](file)
    again = base_triplets(w)
    for name in ("left", "values", "right"):
        assert torch.equal(getattr(again, name), getattr(truth, name))
    assert file.read_bytes() == whole


def test_factor_values_are_those_of_the_product():
    up, down = torch.randn(50, 4), torch.randn(4, 70)
    expected = torch.linalg.svdvals(up @ down)[:4]
    torch.testing.assert_close(factor_values(Factors(up, down)), expected, rtol=1e-4, atol=1e-5)


def test_energy_outside_a_thin_bases_span_is_seen():
    base, tuned = torch.zeros(200, 3), torch.zeros(200, 3)
    base[:3], tuned[100:103] = torch.diag(torch.tensor([3.0, 2, 1])), torch.eye(3)
    found = describe(dense_triplets(tuned).top(1), dense_triplets(base), "left")
    assert float(found["out_of_span"][0]) == pytest.approx(1)


def test_bfloat16_checkpoints_are_analysed(tmp_path: Path):
    base = saved(tiny("llama").to(torch.bfloat16), tmp_path / "b")
    tuned = saved(nudged(tiny("llama"), 0.5).to(torch.bfloat16), tmp_path / "t")
    assert values(wb.spectral.intruders(wb.load_pair(base, tuned)), "intruder").sum() > 0


@pytest.mark.parametrize("bad", [{"k": 0}, {"eps": 1.5}])
def test_bad_arguments_are_one_sentence(bad, base: Path):
    with pytest.raises(wb.WorkbenchError, match="Expected"):
        wb.spectral.intruders(wb.load_pair(base, base), **bad)


def test_a_matrix_that_was_zero_has_no_intruders(tmp_path: Path):
    """LLaMA Pro's added blocks begin as zeros: there is nothing that a vector could be new to."""
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").zero_()
    base = saved(model, tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(model), tmp_path / "tuned"))
    for method in ("auto", "decide"):
        found = wb.spectral.intruders(pair, k=3, method=method)
        here = found.table[found.table["layer"].eq(1)]
        assert "mlp.down_proj" not in set(here["component"])
        assert "mlp.up_proj" in set(here["component"])
        assert any("zero in 1.mlp.down_proj" in note for note in found.provenance.notes)


def test_a_trained_spectrum_is_held_against_its_own(tmp_path: Path):
    """A spike beside fifteen weak directions is one intruder wherever it points. Random factors of
    its norm and rank are flat, several new directions of middling strength: another question."""
    w = power_law(160, 200)
    p, q = (torch.linalg.qr(torch.randn(n, 16, generator=torch.Generator().manual_seed(n)))[0]
            for n in (160, 200))  # fmt: skip
    sigma = torch.full((16,), 0.05)
    sigma[0] = 4.0
    base = saved_pair(w, Factors(p * sigma, q.T.contiguous()), tmp_path)
    counts = wb.figures.intruder_counts(wb.spectral.intruders(base)).set_index("arm")
    assert counts.loc["tuned", "count"] == 1
    assert counts.loc["same_spectrum", "count"] == 1
    assert counts.loc["random_lowrank", "count"] > 3
    assert counts.loc["same_spectrum", "low"] <= 1 <= counts.loc["same_spectrum", "high"]
    headline = wb.figures.headline(wb.spectral.intruders(base))
    assert "same spectrum: 1 [0, 2], no more than chance; random BA: " in headline


def saved_pair(base: torch.Tensor, factors: Factors, folder: Path) -> CheckpointPair:
    """A matrix and a LoRA adapter of it, as peft stores them."""
    (folder / "b").mkdir()
    (folder / "a").mkdir()
    save_file({NAME: base.contiguous()}, folder / "b" / "model.safetensors")
    module = f"base_model.model.{NAME.removesuffix('.weight')}"
    parts = {"lora_A": factors.down, "lora_B": factors.up}
    save_file(
        {f"{module}.{name}.weight": part.contiguous() for name, part in parts.items()},
        folder / "a" / "adapter_model.safetensors",
    )
    rank = factors.up.shape[1]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["up_proj"])
    config.save_pretrained(folder / "a")
    return wb.load_pair(folder / "b", f"{folder / 'b'}+{folder / 'a'}")


@pytest.mark.parametrize("method", ["auto", "exact", "decide"])
def test_a_base_of_low_rank_made_longer_has_no_intruder(method: Method, tmp_path: Path):
    u, s, vt = torch.linalg.svd(power_law(160, 200), full_matrices=False)
    low = (u[:, :5] * s[:5]) @ vt[:5]
    found = wb.spectral.intruders(pair_of(low, 1.5 * low, tmp_path), method=method)
    assert values(found, "intruder").tolist() == [0] * 5
    assert any("fewer than 10 singular values" in note for note in found.provenance.notes)


@pytest.mark.parametrize("method", ["auto", "exact", "decide"])
def test_nothing_is_new_in_a_tuned_matrix_of_zeros(method: Method, tmp_path: Path):
    w = power_law(160, 200)
    found = wb.spectral.intruders(pair_of(w, 0 * w, tmp_path), method=method)
    assert not found.has("intruder")
    assert values(found, "changed").tolist() == [1]


@pytest.mark.parametrize("scale", [1e-30, 1e20])
@pytest.mark.parametrize("method", ["auto", "decide"])
def test_the_unit_of_both_sides_makes_no_difference(scale: float, method: Method, tmp_path_factory):
    w = power_law(160, 200)
    p, q = (torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (160, 200))
    tuned = w + 6 * torch.outer(p / p.norm(), q / q.norm())
    ours, theirs = (
        wb.spectral.intruders(pair_of(by * w, by * tuned, tmp_path_factory.mktemp("p")),
                              method=method)
        for by in (scale, 1.0)
    )  # fmt: skip
    assert values(theirs, "intruder").sum() == 1
    for metric in ("intruder", "intruder:random_delta", "intruder_energy"):
        torch.testing.assert_close(values(ours, metric), values(theirs, metric), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        values(ours, "sigma") / scale, values(theirs, "sigma"), rtol=1e-4, atol=0
    )


def test_a_model_without_layers_is_looked_at_and_one_without_matrices_refused(tmp_path: Path):
    w = power_law(40, 50)
    p, q = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.ones(50)
    tuned = w + 10 * torch.outer(p / p.norm(), q / q.norm())
    for name, matrix in (("b", w), ("t", tuned)):
        (tmp_path / name).mkdir()
        save_file(
            {"projector.weight": matrix, "projector.bias": torch.ones(40)},
            tmp_path / name / "model.safetensors",
        )
        (tmp_path / f"{name}0").mkdir()
        save_file({"norm.weight": matrix[0]}, tmp_path / f"{name}0" / "model.safetensors")
    found = wb.spectral.intruders(wb.load_pair(tmp_path / "b", tmp_path / "t"))
    assert values(found, "intruder").sum() == 1
    assert set(found.table["component"]) == {"projector"}
    with pytest.raises(wb.WorkbenchError, match="found none in tuned: of 0 matrices"):
        wb.spectral.intruders(wb.load_pair(tmp_path / "b0", tmp_path / "t0", "tuned"))


def test_shares_are_over_the_matrices_that_changed(tmp_path: Path):
    """One matrix of fourteen adapted: all of its vectors count, and none of the others'."""
    base = saved(tiny("llama"), tmp_path / "b")
    lora = adapter(
        tiny("llama"), tmp_path / "a", target_modules=r".*layers\.1.*q_proj", lora_alpha=500
    )
    pair = wb.load_pair(base, lora, "x")
    result = wb.spectral.intruders(pair, k=3)
    counts = wb.figures.intruder_counts(result).set_index("arm")
    assert values(result, "changed").sum() == 1
    assert counts.loc["tuned", "n"] == 3
    assert (counts.loc["tuned", "count"], counts.loc["same_spectrum", "n"]) == (3, 3)
    assert "x: 3 of 3 (100.0%;" in wb.figures.headline(result)
    assert "1 of 14 matrices changed" in wb.figures.headline(result)
    spectrum = wb.spectral.delta_spectrum(pair)
    assert "(n = 1, ceiling 3, 1 of 14 matrices changed)" in wb.figures.headline(spectrum)
    same = wb.spectral.intruders(wb.load_pair(base, base, "x"), k=3)
    assert "x: no matrix changed" in wb.figures.headline(same)
    assert wb.figures.intruder_counts(same)["n"].tolist() == [0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"lora_alpha": 60}),
        ("llama", {"r": 8, "lora_alpha": 40, "use_rslora": True}),
        ("bert", {"r": 2, "lora_alpha": 200}),
    ],
)
def test_intruders_are_those_that_peft_finds(kind: str, options: dict, tmp_path: Path):
    """peft's mitigation says of every matrix how many it found; asked at every k, which ones."""
    base = saved(tiny(kind), tmp_path / "b")
    lora = adapter(tiny(kind), tmp_path / "a", **options)
    result = wb.spectral.intruders(wb.load_pair(base, lora), nulls=False)
    rows = result.metric("intruder")
    ours = {
        f"{layer}.{component}": own.sort_values("rank")["value"].cumsum().tolist()
        for (layer, component), own in rows.groupby(["layer", "component"])
    }
    theirs: dict[str, list[float]] = {}
    for k in range(1, 11):
        said: list[str] = []
        peft_model = PeftModel.from_pretrained(tiny(kind), str(lora))
        reduce_intruder_dimension(peft_model, top_k=k, logging_sink=said.append)
        for line in said[:-1]:
            module, _, count = line.partition(": ")
            place = re.search(r"layers?\.(.+)", module)
            if place is None:  # a pooler, which lies outside the layers that ours looks at
                continue
            number = re.search(r"\d+", count)
            theirs.setdefault(place[1], []).append(float(number[0]) if number else 0.0)
    assert ours == theirs
    total = sum(counts[-1] for counts in ours.values())
    assert 0 < total < 10 * len(ours)


@pytest.mark.parametrize("rows", [(400, 3), (3, 400)])
def test_a_value_is_nothing_beside_the_longer_side(rows: tuple[int, int]):
    """numpy's matrix_rank: below max(out, in) eps sigma_1, here 400 eps, whichever side is long."""
    out, width = rows
    eps = torch.finfo(torch.float32).eps
    values = torch.tensor([1.0, 500 * eps, 300 * eps])
    found = Triplets(torch.eye(out, 3), values, torch.eye(width, 3), torch.zeros(3)).supported()
    assert found.values.tolist() == values[:2].tolist()
    matrix = torch.eye(out, 3) @ torch.diag(values) @ torch.eye(3, width)
    assert np.linalg.matrix_rank(matrix.numpy()) == 2
