"""Shares and their changes against published tables and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from workbench.stats import (
    Interval,
    bootstrap,
    change,
    paired_shares,
    proportion,
    ratios,
    share,
    shares,
    wilson,
)


def items(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """(before, after) with so many items of each kind."""
    before = np.repeat([1.0, 1.0, 0.0, 0.0], (both, lost, gained, neither))
    after = np.repeat([1.0, 0.0, 1.0, 0.0], (both, lost, gained, neither))
    return before, after


def theirs(count: int, n: int) -> tuple[float, float]:
    found = binomtest(count, n).proportion_ci(method="wilson")
    return found.low, found.high


@given(st.integers(2, 200), st.floats(0, 1))
def test_a_share_has_wilsons_interval_by_scipy(n, p):
    count = round(p * n)
    right = np.arange(n) < count
    for found in (wilson(count, n), share(right), shares(right).first):
        assert found.value == pytest.approx(count / n)
        assert found[1:3] == pytest.approx(theirs(count, n), abs=1e-12)
        assert found.n == n
    assert np.isnan(wilson(0, 0)[:3]).all()


def test_all_alike_is_no_certain_share():
    """None of 10: up to z^2 / (n + z^2) = 3.8415 / 13.8415. One alone shows no difference."""
    assert share(np.zeros(10))[:3] == pytest.approx((0, 0, 3.841459 / 13.841459), abs=1e-6)
    for found in (
        share([1.0]),
        shares([1.0]).first,
        change([1.0], [0.0]),
        change([1], [1], same=True),
    ):
        assert np.isfinite(found.value)
        assert np.isnan(found[1:3]).all()
        assert found.n == 1
    assert share(np.zeros(10)).low == 0
    assert share(np.ones(10)).high == 1
    assert share([]).n == 0


def test_scores_in_between_are_resampled():
    draw = np.random.default_rng(0)
    scores = draw.random(30)
    assert share(scores) == bootstrap(scores)
    found = shares(np.stack([scores, np.round(scores)]))
    assert found.low[0] == ratios(scores).low[0]
    assert found.high[1] == pytest.approx(theirs(int(np.round(scores).sum()), 30)[1])
    halves = share(np.full(12, 0.5))  # all alike: Wilson's of six of twelve
    assert halves[1:3] == pytest.approx(theirs(6, 12))
    assert share([2.0, 2.0])[:3] == (2, 2, 2)  # no share


def test_shares_leave_out_what_is_not_known():
    found = shares([[1.0, np.nan, 0.0, 1.0], [np.nan] * 4])
    assert (found.low[0], found.high[0]) == pytest.approx(theirs(2, 3))
    assert found.n.tolist() == [3, 0]
    assert np.isnan([found.value[1], found.low[1], found.high[1]]).all()


def test_clusters_are_resampled_and_count_where_all_are_alike():
    """Four passages of five questions: by the bootstrap; all right, Wilson's of four of four."""
    passages = np.repeat(list("abcd"), 5)
    right = np.repeat([1.0, 0.0, 1.0, 1.0], 5)
    assert share(right, clusters=passages) == bootstrap(right, clusters=passages)
    found = share(np.ones(20), clusters=passages)
    assert found[1:3] == pytest.approx(theirs(4, 4))
    assert found.n == 20
    single = share(np.repeat([1.0, 0.0], 10), clusters=np.zeros(20))  # half of one passage
    assert single.value == 0.5
    assert np.isnan(single[1:3]).all()


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe (1998), table III, method 10: both, last alone, first alone, neither.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((1, 97, 1, 1), 0.8736, 0.9850),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((30, 0, 0, 24), -0.0358, 0.0358),
    ],
)
def test_a_paired_change_is_that_of_the_published_table(counts, low, high):
    both, one, other, neither = counts
    after, before = items(both, one, other, neither)  # of those lost from first to last, and back
    found = paired_shares(before, after)
    assert found.value == pytest.approx((one - other) / sum(counts))
    assert found[1:3] == pytest.approx((low, high), abs=1e-4)
    turned = paired_shares(after, before)
    assert turned[1:3] == pytest.approx((-high, -low), abs=1e-4)


def test_a_change_of_independent_sides_is_newcombes_without_correlation():
    """25 of each kind: phi is 0, and both sides are Wilson's of 50 of 100."""
    before, after = items(25, 25, 25, 25)
    low, high = theirs(50, 100)
    assert change(before, after)[1:3] == pytest.approx(
        (-np.sqrt(2) * (0.5 - low), np.sqrt(2) * (high - 0.5))
    )


def test_no_change_is_certain_of_one_model_alone():
    right = np.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    assert change(right, right, same=True) == (0, 0, 0, 8)
    unsure = change(right, right)
    assert unsure.value == 0
    assert unsure.low < 0 < unsure.high
    clustered = change(right, right, clusters=np.arange(8) // 2)
    assert clustered.high > unsure.high  # of four, not of eight
    assert change([], []).n == 0


def test_clusters_of_one_item_each_are_items():
    right = np.array([1.0, 0, 1, 1, 0, 1])
    assert share(right, clusters=np.arange(6)) == share(right)
    assert change(right, right[::-1], clusters=np.arange(6)) == change(right, right[::-1])


def test_changes_of_scores_in_between_and_of_clusters_are_resampled():
    draw = np.random.default_rng(1)
    before, after = draw.random((2, 20))
    assert change(before, after, seed=3) == bootstrap(after - before, seed=3)
    right, later = (draw.random((2, 20)) < 0.5).astype(float)
    of = np.arange(20) // 2
    assert change(right, later, clusters=of) == bootstrap(later - right, clusters=of)


def test_a_proportion_of_all_alike_is_wilsons():
    """None of 10: up to z^2 / (n + z^2) = 3.8415 / 13.8415."""
    found = proportion(Interval(0.0, 0.0, 0.0, 10))
    assert found.low == pytest.approx(0, abs=1e-9)
    assert found.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert proportion(Interval(1.0, np.nan, np.nan, 1)).low == pytest.approx(1 / 4.841459, abs=1e-6)
    wide = Interval(0.4, 0.2, 0.6, 10)
    assert proportion(wide) is wide
    above = Interval(2.0, 2.0, 2.0, 10)
    assert proportion(above) is above
