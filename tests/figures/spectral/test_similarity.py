"""What the picture of cosines keeps, which matrix it shows, and what chance reaches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.synthetic import result
from workbench.figures.spectral.similarity import chance, pooled, weakest


def test_pooling_keeps_a_diagonal():
    assert (np.diag(pooled(np.eye(1000), 100)) == 1).all()


def test_the_weakest_matrix_is_found():
    strong, weak = np.eye(12), np.eye(12)
    weak[0] = 0.1
    made = result(
        "spectral.similarity",
        [{"member": "a", "metric": "max_cosine", "value": 1.0}],
        {"a": {}},
        {"0.q": strong, "1.q": weak},
    )
    assert weakest(made) == "1.q"


def test_chance_is_the_largest_cosine_of_a_random_direction():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(50, 512))
    largest = np.abs(noise / np.linalg.norm(noise, axis=1, keepdims=True)).max(1).mean()
    assert chance(512) == pytest.approx(largest, rel=0.15)
