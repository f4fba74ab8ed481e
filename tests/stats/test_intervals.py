"""Intervals against their definitions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.stats import (
    Interval,
    bootstrap,
    difference,
    edges,
    halves,
    others,
    predicted,
    ratios,
    share_of,
    spearman,
)
from workbench.stats.intervals import _percentiles


def test_ratios_by_hand_and_undefined():
    """Ratios of sums; a vanishing bottom is NaN, never infinite; NaN items leave their ratio."""
    tops = np.array([[1.0, 3.0], [2.0, np.nan], [0.0, 0.0]])
    found = ratios(tops, np.array([2.0, 6.0]))
    assert found.value == pytest.approx([0.5, 1.0, 0.0])
    assert found.n.tolist() == [2, 1, 2]
    assert found.low == pytest.approx([0.5, np.nan, 0.0], nan_ok=True)
    assert np.isnan(ratios(tops, np.array([1.0, -1.0])).value[0])
    assert np.isnan(ratios([1.0, 2.0], [0.0, 0.0])).tolist()[:3] == [[True]] * 3
    means = ratios(tops[:1])
    assert means.value == pytest.approx([2.0])
    assert means.low[0] == 1
    assert means.high[0] == 3


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12), st.integers(0, 3))
def test_a_ratio_of_ones_is_the_mean(values, seed):
    found = ratios(values, np.ones(len(values)), seed=seed)
    assert found.value[0] == pytest.approx(np.mean(values), abs=1e-9)
    assert found.low[0] <= found.value[0] + 1e-9
    assert found.high[0] >= found.value[0] - 1e-9


def level(n: int) -> float:
    """The lower of Hesterberg's two percentiles, as a share, by scipy's distributions."""
    from scipy.stats import norm, t

    return float(norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))


def theirs(statistic, data, seed: int = 0) -> tuple[float, float, float]:
    """(low, high, width) of scipy's percentile bootstrap at the level of the expanded one."""
    from scipy.stats import bootstrap as scipys

    found = scipys(
        data, statistic, paired=True, vectorized=False, n_resamples=4000, method="percentile",
        confidence_level=1 - 2 * level(len(data[0])), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return found.low, found.high, found.high - found.low


def test_intervals_are_those_of_scipys_bootstrap():
    """Within 3% of their width; a 90% interval's ends lie 8% of it further in."""
    draw = np.random.default_rng(3)
    values, weights = draw.gamma(2.0, size=50), draw.uniform(1, 3, 50)
    other = values + draw.normal(0, 1.5, 50)

    def ratio(a, b):
        return (a * b).sum() / b.sum()

    def rank(a, b):
        from scipy.stats import spearmanr

        return spearmanr(a, b).statistic

    for found, statistic, data in (
        (bootstrap(values, draws=20_000), np.mean, (values,)),
        (bootstrap(values, weights, draws=20_000), ratio, (values, weights)),
        (ratios(values * weights, weights, draws=20_000).first, ratio, (values, weights)),
        (spearman(values, other, draws=4000), rank, (values, other)),
    ):
        low, high, width = theirs(statistic, data)
        assert found.low == pytest.approx(low, abs=0.03 * width)
        assert found.high == pytest.approx(high, abs=0.03 * width)
        assert found.n == 50


def test_edges_are_the_expanded_percentiles():
    """Ten items: t(9) at .975 is 2.262157, times sqrt(10 / 9) is 2.384531, Phi(-2.384531) .008551.
    Of very many items they are the middle 95%, of two the whole range."""
    drawn = np.arange(1001.0)
    assert edges(drawn, 10) == pytest.approx((8.551, 991.449), abs=1e-3)
    assert edges(drawn, 10**9) == pytest.approx((25, 975), abs=1e-3)
    assert edges(drawn, 2) == pytest.approx((0, 1000))
    assert np.isnan(edges(drawn, 1)).all()


def test_clusters_are_what_the_interval_counts():
    """Twelve items of four passages: the percentiles are those of four."""
    values = np.repeat([1.0, 2.0, 4.0, 9.0], 3)
    found = bootstrap(values, clusters=np.repeat(list("abcd"), 3))
    picks = np.random.default_rng(0).integers(0, 4, size=(2000, 4))
    means = np.array([1.0, 2.0, 4.0, 9.0])[picks].mean(1)
    assert found[1:3] == pytest.approx(tuple(np.quantile(means, [level(4), 1 - level(4)])))
    assert found.n == 12


def test_items_of_each_ratio_set_its_own_width():
    """A row with five known items has the percentiles of five, beside one of forty."""
    draw = np.random.default_rng(5)
    tops = draw.normal(size=(2, 40))
    tops[1, 5:] = np.nan
    found = ratios(tops, draws=4000)
    times = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=4000)
    means = times[:, :5] @ tops[1, :5] / np.maximum(times[:, :5].sum(1), 1)
    means = means[times[:, :5].sum(1) > 0]
    low, high = np.quantile(means, [level(5), 1 - level(5)])
    assert (found.low[1], found.high[1]) == pytest.approx((low, high))


def test_what_never_differs_is_exactly_nothing():
    assert ratios(np.zeros((2, 9)))[1][0] == ratios(np.zeros((2, 9)))[2][1] == 0
    assert bootstrap(np.zeros(9))[:3] == (0, 0, 0)


def test_ratios_in_parts_are_ratios_at_once(monkeypatch):
    """The same draws, whatever the parts; memory does not grow with draws times items."""
    tops = np.random.default_rng(1).normal(size=(3, 50))
    whole = ratios(tops)
    monkeypatch.setattr("workbench.stats.intervals.PICKS", 7 * 50 + 3)
    parts = ratios(tops)
    assert np.concatenate(parts) == pytest.approx(np.concatenate(whole), rel=1e-12)
    monkeypatch.undo()
    tracemalloc.start()
    ratios(tops.repeat(200, axis=1), draws=1000)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("n", [2, 7, 1001, 3000])
def test_bootstrap_in_parts_is_bootstrap_at_once(n, monkeypatch):
    """The same picks of one stream, whatever the parts; memory does not grow with the draws."""
    rng = np.random.default_rng(n)
    scores, weights = rng.random(n), rng.integers(1, 9, n).astype(float)
    picks = np.random.default_rng(0).integers(0, n, size=(2000, n))
    means = (scores * weights)[picks].sum(1) / weights[picks].sum(1)
    low, high = np.quantile(means, [level(n), 1 - level(n)])
    for at_once in (1, 5 * n + 3, 1 << 20):
        monkeypatch.setattr("workbench.stats.intervals.PICKS", at_once)
        assert bootstrap(scores, weights)[1:3] == pytest.approx((low, high), rel=1e-12)
    tracemalloc.start()
    bootstrap(rng.random(14_042))
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_bootstrap_by_hand():
    assert bootstrap([1.0, 5.0, 9.0], [1, 3, 0])[0::3] == (4.0, 2)  # (1 + 15) / 4, of two items
    assert bootstrap([2.0])[0::3] == (2.0, 1)
    assert np.isnan(bootstrap([2.0])[1:3]).all()
    assert bootstrap([])[3] == 0


def test_items_without_a_bottom_leave_the_ratio():
    found = ratios([[2.0, 4.0, 6.0]], [1.0, np.nan, 2.0])
    assert found.value[0] == pytest.approx(8 / 3)
    assert found.n[0] == 2


def test_a_share_of_what_may_be_nothing_is_not_told():
    tops, sure = np.array([1.0, 2.0, 3.0, 2.0]), np.array([4.0, 5.0, 4.0, 3.0])
    assert share_of(tops, sure).value == pytest.approx(0.5)
    assert share_of(tops, sure).low > 0
    maybe = np.array([4.0, -5.0, 4.0, -2.0])
    assert np.isnan([share_of(tops, maybe).value, *share_of(tops, -sure)[:3]]).all()
    assert share_of(tops, maybe).n == 4


@given(st.integers(2, 40), st.integers(0, 99))
def test_halves_share_nothing_and_are_drawn(n, seed):
    first, second = halves(n, seed)
    assert sorted([*first, *second]) == list(range(n))
    assert len(first) == n // 2
    again = halves(n, seed)
    assert (first == again[0]).all()
    assert n < 12 or any((halves(n, seed + i)[0] != first).any() for i in (1, 2))


def test_a_difference_by_hand():
    """Zou & Donner: 5 - 2 with ends 3 and 8, 1 and 6: 3 - sqrt(4 + 16), 3 + sqrt(9 + 1)."""
    found = difference(Interval(5, 3, 8, 20), Interval(2, 1, 6, 10))
    assert found == pytest.approx((3, 3 - 20**0.5, 3 + 10**0.5, 10))


def test_one_more_draw_by_hand():
    """Mean 5, variance 4, five draws: t(4) at .975 is 2.7764; 2.7764 sqrt(4 * 1.2) = 6.0828."""
    low, high = predicted(5.0, 4.0, 5)
    assert (float(low), float(high)) == pytest.approx((5 - 6.0828, 5 + 6.0828), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_others_are_taken_once_and_never_the_item_itself(n):
    found = others(n, 3)
    assert sorted(found) == list(range(n))
    assert n == 1 or all(own != place for place, own in enumerate(found))
    assert n < 7 or found != others(n, 4)


@pytest.mark.filterwarnings("error")
def test_percentiles_are_numpys_whatever_is_missing():
    """Column by column; a column without any draw has none, and nothing is said of it."""
    drawn = np.random.default_rng(0).standard_normal((50, 4))
    drawn[:7, 1] = np.nan
    drawn[:, 2] = np.nan
    at = (0.025, 0.975)
    expected = [np.quantile(own[~np.isnan(own)], at) for own in drawn[:, [0, 1, 3]].T]
    found = _percentiles(drawn, at)
    np.testing.assert_array_equal(found[:, [0, 1, 3]].T, expected)
    assert np.isnan(found[:, 2]).all()
    np.testing.assert_array_equal(_percentiles(drawn[:, [0, 3]], at).T, [expected[0], expected[2]])


def test_resamples_that_are_kept_are_those_of_their_seed():
    """Whatever was asked between, and however many columns are asked of at once."""
    tops = np.random.default_rng(0).standard_normal((3, 12))
    first = ratios(tops, seed=1)
    assert ratios(tops, seed=2).low.tolist() != first.low.tolist()
    ratios(tops[:, :5], seed=1)
    for row, one in enumerate(tops):
        again = ratios(one, seed=1)
        assert (again.low[0], again.high[0]) == pytest.approx((first.low[row], first.high[row]))
