"""AUC, rank correlation and matched pairs against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from workbench.stats import auc, nearest_pairs, spearman

values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(values, values)
def test_auc_is_the_area_under_the_curve(first, second):
    labels = [1] * len(first) + [0] * len(second)
    assert auc(first, second, draws=10).value == pytest.approx(
        roc_auc_score(labels, first + second)
    )


@given(values, values)
def test_auc_turns_over(first, second):
    a, b = auc(first, second, draws=10), auc(second, first, draws=10)
    assert a.value == pytest.approx(1 - b.value)


def test_auc_by_hand():
    assert auc([2, 3], [1, 2]).value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(auc([], [1.0]).value)


def test_the_interval_covers_the_truth():
    """Normal groups one deviation apart: AUC = Phi(1 / sqrt 2) = .760."""
    draw = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        found = auc(draw.normal(1, 1, 40), draw.normal(0, 1, 40), seed=seed, draws=400)
        hits += found.low <= 0.7602 <= found.high
    assert 88 <= hits <= 100


@given(st.integers(0, 999), st.integers(1, 15), st.integers(1, 15))
def test_pairs_agree_and_are_used_once(seed, n, m):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(n, 2)), draw.normal(size=(m, 2))
    ours, theirs = nearest_pairs(first, second, seed=seed)
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)
    spread = np.concatenate([first, second]).std(0)
    assert (np.abs(first[ours] - second[theirs]) <= 0.25 * spread + 1e-12).all()


def test_matching_removes_what_the_covariate_explains():
    """The measure follows length alone, and the groups differ in it: matched, .5 is left."""
    draw = np.random.default_rng(1)
    long, short = draw.normal(1.5, 1, 300), draw.normal(0, 1, 300)
    noise = 0.02 * draw.normal(size=(2, 300))
    assert auc(long + noise[0], short + noise[1], draws=10).value > 0.8
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
