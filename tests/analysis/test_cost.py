"""What will run, and for how long, is said before it begins, where it is long."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.analysis import cost as costs
from workbench.study.catalogue import ANALYSES


def test_every_analysis_has_a_cost():
    """By passes, by a plan of its own, or by the decompositions of its matrices."""
    for analysis in ANALYSES:
        weighed = analysis.key.startswith("spectral.") and analysis.key != "spectral.scale"
        assert (analysis.passes == 0) == weighed, analysis.key
        assert analysis.passes is not None
        assert analysis.passes >= 0
        # `analysis` knows an analysis by its module.
        assert analysis.function.__module__ == f"workbench.{analysis.key}"


def test_minutes_by_hand(monkeypatch):
    """Two passes of 1e6 weights over 300 tokens at 1e9 a second; 2e9 of an SVD at 1e8."""
    monkeypatch.setattr(costs, "speeds", lambda: (1e8, 1e9))
    own = costs.Size(matrices=1, weights=10**6, largest=10**6, cubic=10**9, vocabulary=50_000)
    assert costs.minutes(2, own, 300) == pytest.approx(1.2 / 60)
    assert costs.minutes(0, own, 300) == pytest.approx(20 / 60)
    # Two copies of 1e6 weights, and 32 texts of 50 tokens with 50,000 logits each, twice.
    assert costs.memory(own, models=2, width=2, longest=50) == 4 * 10**6 + 640 * 10**6
    assert costs.memory(own, models=1, width=4, longest=0) == 4 * 10**6
    assert costs.memory(own, models=0, width=4, longest=50) == 24 * 10**6
    assert costs.tokens_of([], ["four" * 100], sampled=True) == 100
    assert costs.tokens_of([], None, sampled=True) == 6400
    assert costs.tokens_of([], None, sampled=False) == 0


def test_a_long_analysis_says_so_before_it_begins(base, tuned, capsys, monkeypatch):
    pair = wb.load_pair(base, tuned)
    wb.spectral.delta_spectrum(pair)
    assert "minutes" not in capsys.readouterr().err
    monkeypatch.setattr(costs, "SHORT", 0.0)
    wb.spectral.delta_spectrum(pair)
    assert (
        "spectral.delta_spectrum of tuned: about a minute on this machine"
        in capsys.readouterr().err
    )
