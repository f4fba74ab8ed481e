"""Marginal homogeneity against its closed form, McNemar's exact test, and its own null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency

from workbench.stats import homogeneity, paired_counts


def test_chi_squared_of_three_kinds_by_its_formula():
    """Fleiss & Everitt (1971): of three kinds the inverse can be written out."""
    counts = np.array([[35, 5, 0], [15, 20, 5], [10, 5, 5]])
    found = homogeneity(counts)
    d = counts.sum(1) - counts.sum(0)
    half = (counts + counts.T) / 2
    a, b, c = half[1, 2], half[0, 2], half[0, 1]
    value = (a * d[0] ** 2 + b * d[1] ** 2 + c * d[2] ** 2) / (2 * (a * b + a * c + b * c))
    assert value == pytest.approx(14.0)  # d = -20, 10, 10; 5, 5 and 10
    assert found[:2] == (pytest.approx(value), 2)
    assert found.changed == 40
    assert found.p < 0.005


def test_two_kinds_are_mcnemars_exact_test():
    for lost, gained in ((3, 1), (9, 2), (12, 12), (6, 0)):
        found = homogeneity(np.array([[20, lost], [gained, 7]]))
        assert found.chi2 == pytest.approx((lost - gained) ** 2 / (lost + gained))
        exact = binomtest(lost, lost + gained, 0.5).pvalue
        assert found.p == pytest.approx(exact, abs=0.015)


def test_nothing_changed_and_kinds_without_items_say_nothing():
    assert homogeneity(np.diag([4, 0, 9])) == (0.0, 0, 1.0, 0)
    table = np.array([[5, 7, 0], [1, 8, 0], [0, 0, 0]])
    assert homogeneity(table)[:3] == homogeneity(table[:2, :2])[:3]


def test_p_is_uniform_where_sides_are_exchangeable_and_no_test_of_independence():
    """Of few items, where the chi-squared distribution does not hold."""
    draw, found = np.random.default_rng(0), []
    for _ in range(300):
        before, after = draw.integers(0, 3, size=(2, 18))
        found.append(homogeneity(paired_counts(before, after, 3), draws=199).p)
    share = np.mean(np.array(found) <= 0.1)
    assert abs(share - 0.1) < 0.05
    counts = 20 * np.eye(3, dtype=int) + 1  # the sides go together, and no margin moves
    assert homogeneity(counts).p == 1.0
    assert chi2_contingency(counts).pvalue < 1e-6


def test_counts_are_of_pairs():
    found = paired_counts(np.array([0, 0, 1, 2]), np.array([1, 1, 0, 2]), 3)
    assert found.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 1]]
