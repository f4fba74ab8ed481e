"""Nulls: of the change's very singular values, in directions that know nothing of the change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.spectral.test_intruders import power_law
from workbench import rotations
from workbench.loaders import Delta
from workbench.loaders.adapters import Factors
from workbench.loaders.names import locate
from workbench.rotations import rotated
from workbench.spectral.linalg import dense_triplets
from workbench.spectral.nulls import DRAWS, null_operators, same_spectrum

NAME = "model.layers.0.mlp.up_proj.weight"
SITE = locate([NAME])[NAME]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lora(rows: int, columns: int, rank: int, seed: int) -> Factors:
    """Factors of a spectrum that falls by halves."""
    noise = seeded(seed)
    up = torch.randn(rows, rank, generator=noise) * 0.5 ** torch.arange(rank)
    return Factors(up, torch.randn(rank, columns, generator=noise))


@given(
    rows=st.integers(4, 60), columns=st.integers(4, 60), rank=st.integers(1, 6),
    dense=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_the_singular_values_are_the_changes_own(rows, columns, rank, dense, seed):
    base, factors = torch.zeros(rows, columns), lora(rows, columns, rank, seed)
    change = factors.product
    delta = Delta(SITE, base, whole=change) if dense else Delta(SITE, base, factors=factors)
    drawn = same_spectrum(delta, base, seeded(seed + 1))
    assert (drawn.factors is None) is dense
    torch.testing.assert_close(
        torch.linalg.svdvals(drawn.formed()), torch.linalg.svdvals(change), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dense", [False, True])
def test_directions_know_nothing_of_the_change(dense: bool):
    """|<u, u'>|^2 of the first vectors is Beta(1/2, (n - 1)/2): of mean 1/n, as for Haar."""
    rows, columns, draws = 24, 30, 400
    factors = lora(rows, columns, 3, 0)
    base = torch.zeros(rows, columns)
    whole = {"whole": factors.product} if dense else {"factors": factors}
    first = dense_triplets(factors.product)
    noise, left, right = seeded(0), [], []
    for _ in range(draws):
        drawn = dense_triplets(same_spectrum(Delta(SITE, base, **whole), base, noise).formed())
        left.append(float(drawn.left[:, 0] @ first.left[:, 0]) ** 2)
        right.append(float(drawn.right[:, 0] @ first.right[:, 0]) ** 2)
    for squares, size in ((left, rows), (right, columns)):
        deviation = math.sqrt(2 * (size - 1) / (size**2 * (size + 2)))
        mean = sum(squares) / draws
        assert abs(mean - 1 / size) < 4 * deviation / math.sqrt(draws)


def test_the_fast_rotation_is_orthogonal_and_spreads_every_vector(monkeypatch):
    monkeypatch.setattr(rotations, "EXACT", 0)
    size = 300
    found = rotated(torch.eye(size), seeded(1))
    torch.testing.assert_close(found.T @ found, torch.eye(size), atol=1e-4, rtol=0)
    # A Gaussian entry in 90,000 of variance 1 / n stays below 5.5 deviations, and has kurtosis 3.
    assert float(found.abs().max()) * math.sqrt(size) < 6
    assert float(found.pow(4).mean()) * size**2 == pytest.approx(3, abs=0.15)


def test_every_null_has_the_changes_norm_and_draws_differ():
    base, factors = power_law(50, 40), lora(50, 40, 4, 2)
    delta = Delta(SITE, base, factors=factors)
    made = {name: one.formed() - base for name, one in null_operators(delta, base, 0)}
    assert list(made) == ["random_delta", "random_lowrank"] + [
        f"same_spectrum:{draw}" for draw in range(1, DRAWS + 1)
    ]
    for change in made.values():
        assert float(change.norm()) == pytest.approx(delta.norm, rel=1e-4)
    assert not torch.allclose(made["same_spectrum:1"], made["same_spectrum:2"], atol=0.1)
    again = dict(null_operators(delta, base, 0))
    assert torch.equal(again["same_spectrum:3"].formed() - base, made["same_spectrum:3"])
