"""Gaps between groups against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.stats import gaps, spread


def found(before, after, labels, **asked) -> dict[str, dict]:
    return {row["metric"]: row for row in gaps(before, after, np.asarray(labels), **asked)}


def test_a_gap_and_its_interval_by_hand():
    """Groups of 10 with .8 and .3 right: resampled within, by binomials of our own."""
    after = np.repeat([1.0, 0, 1, 0], (8, 2, 3, 7))
    before = np.repeat([1.0, 0, 1, 0], (5, 5, 5, 5))
    rows = found(before, after, np.repeat([0, 1], 10), draws=20_000)
    assert rows["gap"]["value"] == pytest.approx(0.5)
    assert rows["gap"]["baseline"] == 0
    assert rows["gap_change"]["value"] == pytest.approx(0.5)
    draw = np.random.default_rng(7)
    drawn = np.abs(draw.binomial(10, 0.8, 100_000) - draw.binomial(10, 0.3, 100_000)) / 10
    # The smaller group has ten items: Phi(-sqrt(10 / 9) t(9)) is .008551.
    expected = np.quantile(drawn, [0.008551, 1 - 0.008551])
    assert (rows["gap"]["low"], rows["gap"]["high"]) == pytest.approx(tuple(expected), abs=0.051)
    dealt = np.abs(draw.hypergeometric(11, 9, 10, 100_000) / 10 - 0.55) * 2
    assert rows["gap_chance"]["value"] == pytest.approx(dealt.mean(), rel=0.05)
    assert spread(after, np.repeat([0, 1], 10)) == pytest.approx(0.5)


def test_whole_clusters_are_resampled_and_dealt():
    """Every item ten times over, ten a cluster, has the gap's interval of the items once; taken for
    so many items its interval and its chance level are too narrow."""
    draw = np.random.default_rng(1)
    before, after = (draw.random((2, 24)) < 0.5).astype(float)
    labels = np.arange(24) % 2
    once = found(before, after, labels, draws=4000)
    often = [np.repeat(part, 10) for part in (before, after, labels)]
    whole = found(*often, clusters=np.repeat(np.arange(24), 10), draws=4000)
    plain = found(*often, draws=4000)
    for metric in ("gap", "gap_change", "gap_chance"):
        width, own, apart = (
            rows[metric]["high"] - rows[metric]["low"] for rows in (once, whole, plain)
        )
        assert whole[metric]["value"] == pytest.approx(once[metric]["value"], abs=0.02)
        assert own == pytest.approx(width, rel=0.15), metric
        assert apart < 0.6 * width, metric


def test_clusters_across_groups_stay_with_them():
    """Each passage has one question of either group: hard passages lower both, and the gap of the
    resampled passages varies only by what differs within them."""
    level = np.repeat([0.0, 0.3, 0.6, 0.9] * 5, 2)
    scores = level + np.tile([0.0, 0.1], 20)
    labels, passages = np.tile([0, 1], 20), np.repeat(np.arange(20), 2)
    rows = found(scores, scores, labels, clusters=passages)
    assert rows["gap"]["value"] == pytest.approx(0.1)
    assert rows["gap"]["low"] == pytest.approx(0.1)
    assert rows["gap"]["high"] == pytest.approx(0.1)
    # Within a passage either question may be either's: a mean of twenty signs of .1, folded.
    signs = np.abs(np.random.default_rng(2).choice([-0.1, 0.1], (20_000, 20)).mean(1))
    assert rows["gap_chance"]["high"] == pytest.approx(np.quantile(signs, 0.975), abs=0.011)


def test_one_cluster_a_group_has_no_interval():
    rows = found(np.zeros(16), np.ones(16), np.repeat([0, 1], 8), clusters=np.repeat([0, 1], 8))
    assert rows["gap"]["value"] == 0
    assert np.isnan([rows["gap"]["low"], rows["gap"]["high"]]).all()
