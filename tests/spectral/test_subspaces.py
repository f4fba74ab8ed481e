"""Subspaces of changes: planted shared factors, exact nulls, gauge freedom, siblings by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.numerics import chance, cosines
from workbench.spectral.linalg import Triplets
from workbench.spectral.subspaces import stock_ratio, together

NAME = "model.layers.0.mlp.up_proj.weight"


def family_of(base: torch.Tensor, members: dict[str, torch.Tensor], folder: Path) -> wb.Family:
    for name, matrix in {"base": base, **members}.items():
        (folder / name).mkdir()
        save_file({NAME: matrix.contiguous()}, folder / name / "model.safetensors")
    return wb.load_family(folder / "base", {name: folder / name for name in members})


def frame(d: int, r: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, r, generator=torch.Generator().manual_seed(seed)))[0]


def one(result: wb.Result, metric: str, **where) -> float:
    rows = result.metric(metric)
    for column, value in where.items():
        rows = rows[rows[column].isna()] if value is None else rows[rows[column] == value]
    (found,) = rows["value"]
    return float(found)


def test_every_number_by_numpy(tmp_path: Path):
    """Two full changes, against scipy's principal angles and numpy's sums in float64."""
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(24, 18, generator=noise)
    changes = {
        name: 0.1 * torch.randn(24, 18, generator=noise).cumsum(0) for name in ("a", "b", "c")
    }
    changes["c"] = changes["c"] * (torch.rand(24, 18, generator=noise) < 0.5)
    family = family_of(base, {n: base + change for n, change in changes.items()}, tmp_path)
    found = wb.spectral.subspaces(family, k=3)
    exact = {n: ((base + change).double() - base.double()).numpy() for n, change in changes.items()}
    sides = {}
    for name, change in exact.items():
        u, s, vt = np.linalg.svd(change)
        sides[name] = {"input": (vt[:3].T, vt.T, s), "output": (u[:, :3], u, s)}
    for side in ("input", "output"):
        a, b = (sides[n][side][0] for n in ("a", "b"))
        angles = np.sort(np.degrees(subspace_angles(a, b)))
        rows = found.metric("angle").query("first == 'a' and second == 'b' and side == @side")
        assert rows.sort_values("rank")["value"].to_numpy() == pytest.approx(angles, abs=0.02)
        overlap = np.linalg.norm(a.T @ b) ** 2 / 3
        assert one(found, "overlap", first="a", second="b", side=side) == pytest.approx(overlap)
        gram = sum(
            (x := sides[n][side])[1][:, :3] * x[2][:3] ** 2 @ x[1][:, :3].T / (x[2][:3] ** 2).sum()
            for n in ("b", "c")
        )
        top = np.linalg.eigh(gram)[1][:, -3:]
        inside = exact["a"] @ top if side == "input" else top.T @ exact["a"]
        share = np.linalg.norm(inside) ** 2 / np.linalg.norm(exact["a"]) ** 2
        assert one(found, "replicated", first="a", side=side) == pytest.approx(share, rel=1e-4)
    flat = {n: change.ravel() for n, change in exact.items()}
    mean = []
    for x, y in (("a", "b"), ("a", "c"), ("b", "c")):
        cosine = flat[x] @ flat[y] / np.linalg.norm(flat[x]) / np.linalg.norm(flat[y])
        mean.append(cosine)
        both = (flat[x] != 0) & (flat[y] != 0)
        signs = np.mean(np.sign(flat[x][both]) == np.sign(flat[y][both]))
        for layer in (0, None):
            at = {"first": x, "second": y, "layer": layer}
            assert one(found, "cosine", **at) == pytest.approx(cosine, rel=1e-5)
            assert one(found, "sign_agreement", **at) == pytest.approx(signs)
    for layer in (0, None):
        norm = np.linalg.norm(flat["a"])
        assert one(found, "norm", first="a", layer=layer) == pytest.approx(norm, rel=1e-6)
    c = float(np.mean(mean))
    assert one(found, "stock") == pytest.approx(max(0, 3 * c / (1 + 2 * c)))


def test_the_centre_of_siblings_by_hand():
    """Model Stock: two orthogonal changes stay at the base, two equal ones at their mean; at 60
    degrees t = 2 (1/2) / (3/2)."""
    assert stock_ratio(0.0, 2) == 0
    assert stock_ratio(1.0, 5) == 1
    assert stock_ratio(0.5, 2) == pytest.approx(2 / 3)


def test_a_change_against_itself_and_against_what_is_orthogonal(tmp_path: Path):
    base = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    left, right = frame(20, 4, 2), frame(16, 4, 3)
    own, other = left[:, :2] @ right[:, :2].T, left[:, 2:] @ right[:, 2:].T
    family = family_of(base, {"a": base + own, "twin": base + own, "far": base + other}, tmp_path)
    found = wb.spectral.subspaces(family, k=2)
    for side in ("input", "output"):
        assert one(found, "overlap", first="a", second="twin", side=side) == pytest.approx(1)
        far = one(found, "overlap", first="a", second="far", side=side)
        assert far == pytest.approx(0, abs=1e-4)
    assert one(found, "cosine", first="a", second="twin", layer=0) == pytest.approx(1)
    assert one(found, "sign_agreement", first="a", second="twin", layer=0) == 1
    assert one(found, "cosine", first="a", second="far", layer=0) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("d", "r", "s"), [(12, 1, 1), (12, 1, 5), (30, 4, 4), (9, 6, 7)])
def test_chance_is_that_of_drawn_subspaces(d: int, r: int, s: int):
    """Mean and range of 4,000 pairs of Haar-random subspaces."""
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        a, b = (np.linalg.qr(draw.standard_normal((d, size)))[0] for size in (r, s))
        drawn.append(np.linalg.norm(a.T @ b) ** 2 / min(r, s))
    mean, low, high = chance(d, r, s)
    assert mean == pytest.approx(max(r, s) / d)
    assert np.mean(drawn) == pytest.approx(mean, abs=0.01)
    assert np.mean((np.array(drawn) > low) & (np.array(drawn) < high)) == pytest.approx(
        0.95, abs=0.015
    )


def test_a_shared_a_is_found_and_factors_have_no_gauge(tmp_path: Path):
    """Two adapters with the same A and other B: input directions 1, output directions near chance;
    B G and G^-1 A in place of B and A change nothing."""
    base = saved(tiny("llama"), tmp_path / "base")
    folders = [adapter(tiny("llama"), tmp_path / n, seed=s) for n, s in (("a", 2), ("b", 5))]
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    shared = {n: first[n] if "lora_A" in n else t for n, t in second.items()}
    save_file(shared, folders[1] / "adapter_model.safetensors")
    members = {"a": folders[0], "b": folders[1]}
    found = wb.spectral.subspaces(wb.load_family(base, members)).metric("overlap")
    inputs, outputs = (found[found["side"] == side] for side in ("input", "output"))
    assert inputs["value"].min() == pytest.approx(1, abs=1e-4)
    assert outputs["value"].mean() == pytest.approx(outputs["baseline"].mean(), abs=0.05)
    mix = torch.tensor([[2.0, 1, 0], [0, 1, 3], [1, 0, 1]])
    turned = {n: mix.inverse() @ t if "lora_A" in n else t @ mix for n, t in shared.items()}
    save_file(turned, folders[1] / "adapter_model.safetensors")
    again = wb.spectral.subspaces(wb.load_family(base, members)).metric("overlap")
    assert again["value"].to_numpy() == pytest.approx(found["value"].to_numpy(), abs=1e-4)


def test_a_is_compared_with_its_start_and_another_seed_is_no_start(tmp_path: Path):
    """A trained adapter whose A is its start's: overlap 1; of another seed's start about r / d."""
    base = saved(tiny("llama"), tmp_path / "base")
    starts = {
        n: adapter(tiny("llama"), tmp_path / f"start-{n}", seed=s, init_lora_weights=True)
        for n, s in (("a", 2), ("b", 5))
    }
    for name in starts:
        grown = load_file(starts[name] / "adapter_model.safetensors")
        assert all((t == 0).all() for n, t in grown.items() if "lora_B" in n)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(
            (starts[name] / "adapter_config.json").read_bytes()
        )
        noise = torch.Generator().manual_seed(0)
        grown = {
            n: torch.randn(t.shape, generator=noise) if "lora_B" in n else t
            for n, t in grown.items()
        }
        save_file(grown, folder / "adapter_model.safetensors")
    family = wb.load_family(base, {n: tmp_path / n for n in starts})
    own = wb.spectral.subspaces(family, starts={n: str(f) for n, f in starts.items()})
    rows = own.metric("overlap").query("second == 'start'")
    assert set(rows["side"]) == {"input"}
    assert rows["value"].min() == pytest.approx(1, abs=1e-4)
    crossed = wb.spectral.subspaces(family, starts={"a": str(starts["b"])})
    rows = crossed.metric("overlap").query("second == 'start'")
    assert rows["value"].mean() == pytest.approx(rows["baseline"].mean(), abs=0.06)
    with pytest.raises(wb.WorkbenchError, match="There is no model 'c'"):
        wb.spectral.subspaces(family, starts={"c": str(starts["a"])})


def test_what_several_share_comes_first_and_each_counts_as_one():
    """Two changes that share one direction, one of them a thousand times larger."""
    shared, own, other = torch.eye(6)[:, :1], torch.eye(6)[:, 1:2], torch.eye(6)[:, 2:3]

    def change(direction: torch.Tensor, size: float) -> Triplets:
        columns = torch.cat([shared, direction], 1)
        values = size * torch.tensor([1.0, 0.9])
        return Triplets(columns, values, columns, torch.zeros(2))

    found = together([change(own, 1000.0), change(other, 1.0)], "input", 3)
    assert float((found[:, :1].T @ shared).abs()) == pytest.approx(1, abs=1e-5)
    assert found.shape == (6, 3)
    assert cosines(found, torch.cat([own, other], 1)).min() == pytest.approx(1, abs=1e-5)


def test_a_model_that_changed_nothing_has_no_directions_and_one_alone_is_refused(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "base")
    tuned = saved(nudged(tiny("llama")), tmp_path / "tuned")
    found = wb.spectral.subspaces(wb.load_family(base, {"a": tuned, "none": base}))
    assert not found.has("overlap")
    assert one(found, "norm", first="none") == 0
    assert any("none: no matrix changed" in note for note in found.provenance.notes)
    with pytest.raises(wb.WorkbenchError, match="at least two fine-tuned models"):
        wb.spectral.subspaces(wb.load_family(base, {"a": tuned}))


def test_the_null_of_equal_signs_is_that_of_flipped_rows_and_columns():
    """Signs of rows and columns drawn at random, of two rank-one changes with a common pattern."""
    draw = np.random.default_rng(0)
    u, v = draw.standard_normal(30), draw.standard_normal(40)
    change = np.sign(np.outer(u, v))
    shares = []
    for _ in range(2000):
        rows, columns = (draw.choice([-1, 1], size) for size in (30, 40))
        shares.append(np.mean(change * rows[:, None] * columns == change))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.003)
    assert np.std(shares) == pytest.approx(0.5 / math.sqrt(1200), rel=0.1)
