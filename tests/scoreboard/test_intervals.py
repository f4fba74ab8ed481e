"""Stated intervals are held against a mean that is known: 95% ones cover about as often, too narrow
ones do not, and what is certain is not counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.lab.known import Known
from workbench.scoreboard import Method, intervals, ours
from workbench.stats import bootstrap
from workbench.tasks import Prompt, PromptSet

VALUES = np.random.default_rng(0).normal(size=24)
DRAWS = 80
PROMPTS = PromptSet(
    "numbers", tuple(Prompt(str(i), f"{v:.6f}", " y") for i, v in enumerate(VALUES))
)


def stated(width: float) -> Method:
    """A method whose value of a prompt is the number it reads, with an interval of that width, and
    a row that is the same whatever is read."""

    def states(base: Any, tuned: Any, prompts: PromptSet, corrupted: Any) -> pd.DataFrame:
        found = bootstrap(np.array([float(p.prompt) for p in prompts]))
        half = width * (found.high - found.low) / 2
        middle = (found.high + found.low) / 2
        told = {"metric": "mean", "value": found.value, "low": middle - half, "high": middle + half}
        certain = {"metric": "certain", "value": 1.0, "low": 2.0, "high": 3.0}
        return pd.DataFrame([told, certain])

    return Method("mine", lambda base, tuned, prompts: {}, states=states)


def covered(width: float) -> dict[str, Any]:
    known = Known("numbers", "compiled", Path("b"), Path("t"), PROMPTS)
    (row,) = intervals.coverage(stated(width), known, DRAWS, 0)
    return row


def test_a_bootstrap_covers_and_half_of_it_does_not():
    """Half as wide a normal interval covers 0.67; nothing at all covers nothing."""
    whole = covered(1.0)
    assert whole["value"] == pytest.approx(0.93, abs=0.06)
    assert whole["low"] < whole["value"] < whole["high"]
    assert whole["n"] == DRAWS
    assert covered(0.5)["value"] == pytest.approx(0.67, abs=0.12)
    assert covered(0.0)["value"] == 0.0


def test_an_interval_that_was_not_stated_neither_covers_nor_misses():
    """Of every second sample there is none; what is left covers as before."""
    whole, asked = stated(1.0), []

    def states(*given: Any) -> pd.DataFrame:
        assert whole.states is not None
        asked.append(given)
        found = whole.states(*given)
        return found.assign(low=np.nan, high=np.nan) if len(asked) % 2 else found

    known = Known("numbers", "compiled", Path("b"), Path("t"), PROMPTS)
    method = Method("mine", lambda base, tuned, prompts: {}, states=states)
    (row,) = intervals.coverage(method, known, DRAWS, 0)
    assert row["n"] == DRAWS // 2
    assert row["value"] == pytest.approx(0.93, abs=0.08)


def test_partners_are_drawn_with_their_prompts():
    known = Known("numbers", "compiled", Path("b"), Path("t"), PROMPTS, PROMPTS)
    clean, dirty = intervals._sample(known, 3, 0)
    assert dirty is not None
    assert [p.prompt for p in clean] == [p.prompt for p in dirty]
    assert len({p.id for p in clean}) == intervals.SIZE
    assert [p.prompt for p in intervals._sample(known, 4, 0)[0]] != [p.prompt for p in clean]


def test_some_analyses_state_intervals_for_means_over_prompts():
    assert sum(method.states is not None for method in ours.METHODS) >= 10
