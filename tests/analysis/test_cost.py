"""What will run, and for how long, is said before it begins, where it is long."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.analysis import cost as costs
from workbench.analysis.record import Analysis
from workbench.study.catalogue import ANALYSES


def test_every_analysis_has_a_cost():
    """By passes, by a plan of its own, or by the decompositions of its matrices."""
    for analysis in ANALYSES:
        runs = ("spectral.scale", "spectral.explained")
        weighed = analysis.key.startswith("spectral.") and analysis.key not in runs
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
    matrices = costs.size(pair).matrices
    assert (
        f"spectral.delta_spectrum of tuned: {matrices} matrices, takes about a minute "
        "on this machine" in capsys.readouterr().err
    )


def test_a_short_one_says_what_it_will_run_where_that_is_asked_for(base, tuned, capsys):
    pair = wb.load_pair(base, tuned)
    asked = wb.tasks.ledger(5, seed=1)
    with costs.told():
        costs.tell("forgetting.some", 2, {"pair": pair, "prompts": [asked], "texts": ["a", "b"]})
        costs.tell("behaviour.some", None, {"pair": pair, "prompts": asked})
        costs.tell("results.some", None, {"results": []})
    costs.tell("forgetting.some", 2, {"pair": pair, "prompts": [asked], "texts": ["a", "b"]})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "forgetting.some of tuned: 5 prompts and 2 texts about 2 times, takes less "
        "than half a minute"
    )
    assert second.startswith(
        "behaviour.some of tuned: 5 prompts, and the time cannot be estimated;"
    )


def test_pairs_of_prompts_are_counted(base, tuned, capsys):
    pair = wb.load_pair(base, tuned)
    asked = wb.tasks.desiderata("object value", 6, count=4)
    with costs.told():
        costs.tell("patching.some", 3, {"pair": pair, "pairs": asked})
    assert "patching.some of tuned: 6 prompts about 3 times" in capsys.readouterr().err


def test_what_is_foretold_is_of_what_will_run():
    """The passes of the quick arguments, and of any other those of the defaults."""
    one = Analysis("a.b", "?", print, passes=120, quick={"sets": 3, "x": (0, 1)}, quick_passes=36)
    assert one.foretold({"sets": 3, "x": (0, 1)}) == 36
    assert one.foretold({"sets": 3, "x": np.array([0, 2])}) == 120
    assert one.foretold({"sets": 10, "x": (0, 1)}) == 120
    assert Analysis("a.b", "?", print, passes=2).foretold({}) == 2
    assert Analysis("a.b", "?", print, passes=2, quick={"n": 1}).foretold({"n": 1}) == 2
