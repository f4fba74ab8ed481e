"""AUC, rank correlation and matched pairs against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from workbench.stats import auc, auc_difference, nearest_pairs, spearman

values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(values, values)
def test_auc_is_the_area_under_the_curve(first, second):
    labels = [1] * len(first) + [0] * len(second)
    assert auc(first, second).value == pytest.approx(roc_auc_score(labels, first + second))


@given(values, values)
def test_auc_turns_over(first, second):
    a, b = auc(first, second), auc(second, first)
    assert a.value == pytest.approx(1 - b.value)


def test_auc_by_hand():
    assert auc([2, 3], [1, 2]).value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(auc([], [1.0]).value)


def test_the_interval_covers_the_truth():
    """Normal groups one deviation apart: AUC = Phi(1 / sqrt 2) = .760."""
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = auc(draw.normal(1, 1, 40), draw.normal(0, 1, 40))
        hits += found.low <= 0.7602 <= found.high
    assert 88 <= hits <= 100


def variance(chance: float, n: int, m: int) -> float:
    """Hanley & McNeil's at a chance, for exponential distributions and the mean of both sizes."""
    q1, q2 = chance / (2 - chance), 2 * chance**2 / (1 + chance)
    more = (n + m) / 2 - 1
    return (chance * (1 - chance) + more * (q1 - chance**2) + more * (q2 - chance**2)) / (n * m)


@pytest.mark.parametrize(
    ("first", "second"), [([3.0, 4, 5], [1.0, 2]), ([1.0, 3, 5, 7], [2.0, 4, 0, 8, 1])]
)
def test_the_ends_lie_1_96_deviations_from_the_chance_found(first, second):
    """Each end, put into the variance, is 1.96 deviations away, found by scipy's root finder."""
    from scipy.optimize import brentq

    found, n, m = auc(first, second), len(first), len(second)

    def away(chance: float) -> float:
        return (chance - found.value) ** 2 - 1.959964**2 * variance(chance, n, m)

    low = brentq(away, 1e-12, found.value - 1e-9)
    assert found.low == pytest.approx(low, abs=1e-6)
    if found.value < 1:
        assert found.high == pytest.approx(brentq(away, found.value + 1e-9, 1 - 1e-12), abs=1e-6)
    else:
        assert found.high == 1


def test_two_against_two_say_nothing():
    """In a third of all orders of four alike values two and two separate."""
    found = auc([3.0, 4.0], [1.0, 2.0])
    assert found.value == 1
    assert found.low < 0.5
    assert np.isnan(auc([3.0], [1.0, 2.0])[1:3]).all()


def delong(a, b) -> np.ndarray:
    """The covariance of two areas from the definition, item by item."""
    n, m = len(a[0]), len(a[1])

    def psi(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    of_first = [[np.mean([psi(x, y) for y in one[1]]) for x in one[0]] for one in (a, b)]
    of_second = [[np.mean([psi(x, y) for x in one[0]]) for y in one[1]] for one in (a, b)]
    return np.cov(of_first) / n + np.cov(of_second) / m


def test_a_difference_of_areas_is_combined_by_delongs_correlation():
    draw = np.random.default_rng(2)
    shared = draw.normal(size=14)
    a = (shared[:8] + 1.0, shared[8:])
    b = (shared[:8] + 0.5 + draw.normal(0, 0.5, 8), shared[8:] + draw.normal(0, 0.5, 6))
    found, (one, other) = auc_difference(*a, *b), (auc(*a), auc(*b))
    table = delong(a, b)
    r = table[0, 1] / np.sqrt(table[0, 0] * table[1, 1])
    assert 0.1 < r < 0.99
    x, y = one.value - one.low, other.high - other.value
    assert found.value == pytest.approx(one.value - other.value)
    assert found.low == pytest.approx(found.value - np.sqrt(x * x - 2 * r * x * y + y * y))
    x, y = one.high - one.value, other.value - other.low
    assert found.high == pytest.approx(found.value + np.sqrt(x * x - 2 * r * x * y + y * y))
    assert found.n == 14


def test_a_measure_beside_itself_differs_by_nothing():
    first, second = np.array([1.0, 4.0, 3.0]), np.array([2.0, 0.0])
    assert auc_difference(first, second, first, second) == (0, 0, 0, 5)
    apart = auc_difference(first + 9, second, first + 5, second)  # both separate perfectly
    assert apart.value == 0
    assert apart.low < 0 < apart.high
    assert np.isnan(auc_difference([1.0], second, [2.0], second)[1:3]).all()


@given(st.integers(0, 999), st.integers(1, 15), st.integers(1, 15))
def test_pairs_agree_and_are_used_once(seed, n, m):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(n, 2)), draw.normal(size=(m, 2))
    ours, theirs = nearest_pairs(first, second, seed=seed)
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)
    within = [side.var(0, ddof=1) for side in (first, second) if len(side) > 1]
    spread = np.sqrt(sum(within) / len(within)) if within else np.zeros(2)
    assert (np.abs(first[ours] - second[theirs]) <= 0.25 * spread + 1e-12).all()


def test_the_caliper_is_of_the_spread_within_the_groups():
    """By hand: variances 1/2 and 2, so sqrt(5 / 4), a quarter of which is .2795; of groups ten
    apart no two items are alike, though all items together vary by five."""
    for apart, pairs in ((0.27, 1), (0.29, 0)):
        ours, theirs = nearest_pairs([[0.0], [1.0]], [[apart], [apart + 2]])
        assert (ours.tolist(), theirs.tolist()) == ([0] * pairs, [0] * pairs)
    first = np.array([[0.0], [1.0], [2.0]])
    assert len(nearest_pairs(first, first + 10, caliper=2)[0]) == 0
    # What varies in neither group must be the same.
    same = np.ones((3, 1))
    assert len(nearest_pairs(same, same)[0]) == 3
    assert len(nearest_pairs(same, same + 0.1)[0]) == 0


def test_matching_removes_what_the_covariate_explains():
    """The measure follows length alone, and the groups differ in it: matched, .5 is left."""
    draw = np.random.default_rng(1)
    long, short = draw.normal(1.5, 1, 300), draw.normal(0, 1, 300)
    noise = 0.02 * draw.normal(size=(2, 300))
    assert auc(long + noise[0], short + noise[1]).value > 0.8
    ours, theirs = nearest_pairs(long[:, None], short[:, None], caliper=0.02)
    larger = (long + noise[0])[ours] > (short + noise[1])[theirs]
    assert 0.35 < larger.mean() < 0.65
    assert len(ours) > 50


def test_spearman_by_hand():
    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(up, np.exp(up)).value == pytest.approx(1)
    assert spearman(up, -up).value == pytest.approx(-1)
    assert spearman(up, np.array([1.0, 3.0, 2.0, 4.0])).value == pytest.approx(0.8)
    assert np.isnan(spearman(up, np.ones(4)).value)
    assert np.isnan(spearman(up[:2], up[:2]).value)
