"""What a reading is summed up to, by hand; how prompts are parted; what edits are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss

import workbench as wb
from tests.skills.conftest import (
    APPLE,
    PLACES,
    asked,
    no_gradients,  # noqa: F401
    planted,
)
from workbench.models import edit
from workbench.skills.scoring import Readout, split

FIRST, SECOND = asked(PLACES, "apple", 16, "first"), asked(PLACES, "book", 12, "second")


def answered(n: int, seed: int, right: float) -> pd.DataFrame:
    """Random answers, `right` of them correct."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "said": draw.integers(0, 3, n),
            "correct": draw.random(n) < right,
            "log_probability": -draw.random(n),
            "confidence": draw.random(n),
            "first_correct": draw.random(n) < 0.5,
        }
    )


@pytest.fixture
def readout(tmp_path: Path) -> Readout:
    return Readout.of(planted(tmp_path, {(APPLE, PLACES): 3.0}).held(), (FIRST, SECOND))


def test_rows_by_hand(readout: Readout):
    """Two readings (random masks) are averaged prompt by prompt before anything is summed."""
    sizes = (16, 12)
    readout.base, readout.tuned = (
        tuple(answered(n, seed, right) for n in sizes) for seed, right in ((0, 0.1), (1, 0.9))
    )
    one, two = (tuple(answered(n, seed, 0.5) for n in sizes) for seed in (2, 3))
    found = pd.DataFrame(readout.rows(one, two, arm="random", x=0.5))
    assert found["arm"].eq("random").all()
    assert found["x"].eq(0.5).all()
    assert found["own"].eq(found["task"] == "first").all()
    for place, (task, own) in enumerate(found.groupby("task", sort=False)):
        own = own.set_index("metric")
        base, tuned = readout.base[place], readout.tuned[place]
        both = [one[place], two[place]]
        correct = np.mean([frame["correct"] for frame in both], axis=0)
        gain = (correct - base["correct"]).sum() / (
            tuned["correct"].astype(int) - base["correct"].astype(int)
        ).sum()
        brier = [brier_score_loss(frame["first_correct"], frame["confidence"]) for frame in both]
        perfect = [(frame["confidence"] * (1 - frame["confidence"])).mean() for frame in both]
        expected = {
            "score": (correct.mean(), base["correct"].mean()),
            "gain": (gain, 0),
            "agreement": (
                np.mean([(frame["said"] == tuned["said"]).mean() for frame in both]),
                (base["said"] == tuned["said"]).mean(),
            ),
            "log_probability": (
                np.mean([frame["log_probability"].mean() for frame in both]),
                base["log_probability"].mean(),
            ),
            "brier": (np.mean(brier), np.mean(perfect)),
        }
        for metric, (value, baseline) in expected.items():
            row = own.loc[metric]
            assert (row["value"], row["baseline"]) == pytest.approx((value, baseline)), metric
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] == sizes[place]
        for metric, width in (("ece", True), ("ece_mass", False)):
            measured = []
            for frame in both:
                sure, right = frame["confidence"].to_numpy(), frame["first_correct"].to_numpy()
                parts = np.linspace(0, 1, 11)
                parts = parts if width else np.quantile(sure, parts)
                bins = np.searchsorted(parts[1:-1], sure)
                gaps = [abs((sure - right)[bins == b].sum()) for b in range(10)]
                measured.append(sum(gaps) / len(sure))
            assert own.loc[metric, "value"] == pytest.approx(np.mean(measured)), (task, metric)
            assert own.loc[metric, "n"] == sizes[place]
            assert 0 < own.loc[metric, "baseline"] < 1


@pytest.mark.parametrize(("more", "known"), [(5, False), (16, True)])
def test_a_gain_that_may_be_none_has_no_shares(readout: Readout, more: int, known: bool):
    """5 of 16 right after, 3 before and other ones: the interval of the gain holds 0."""
    before, after = np.zeros(16), np.zeros(16)
    before[-3:], after[:more] = 1, 1
    found = readout._gain(np.ones(16), after - before).first
    assert found.n == 16
    edges = np.array(found[:3])
    assert np.isfinite(edges).all() == known
    if known:
        assert found.value == pytest.approx(16 / 13)


def test_an_edit_is_read_as_the_model_it_makes(readout: Readout):
    """The base before and after; the tuned side's own model under an edit of everything."""
    words = readout.words
    plain = [wb.tasks.answers(readout.pair.base.load(), words, one) for one in readout.sets]
    tuned = [wb.tasks.answers(readout.pair.tuned.load(), words, one) for one in readout.sets]
    for reading, wanted in (
        (readout.base, plain),
        (readout.tuned, tuned),
        (readout.read(edit(readout.pair)), tuned),
        (readout.read(None), plain),
    ):
        for own, frame in zip(reading, wanted, strict=True):
            pd.testing.assert_frame_equal(own, frame)
    # A pair whose matrices are read anew for every edit gives the same.
    lazy = Readout.of(wb.load_pair(readout.pair.base, readout.pair.tuned), readout.sets)
    for own, frame in zip((*lazy.base, *lazy.tuned), (*plain, *tuned), strict=True):
        pd.testing.assert_frame_equal(own, frame)
    assert plain[0]["correct"].sum() == 0
    assert tuned[0]["correct"].all()


def test_parts_of_the_prompts_by_hand():
    """12 in parts of 1/2, 1/4, 1/4: 6, 3 and 3 of them, each once, in their order."""
    prompts = asked(PLACES, "apple", 12)
    parts = split(prompts, (0.5, 0.25, 0.25), 0)
    assert [len(part) for part in parts] == [6, 3, 3]
    ids = [[p.id for p in part] for part in parts]
    assert sorted(one for own in ids for one in own) == sorted(p.id for p in prompts)
    assert all(own == sorted(own, key=int) for own in ids)
    assert {part.name for part in parts} == {prompts.name}
    assert [[p.id for p in part] for part in split(prompts, (2, 1, 1), 0)] == ids
    assert [[p.id for p in part] for part in split(prompts, (2, 1, 1), 1)] != ids
    with pytest.raises(wb.WorkbenchError, match="has 11 prompts; at least 12"):
        split(asked(PLACES, "apple", 11), (1, 1), 0)


def test_sets_without_prompts_or_names_are_refused(tmp_path: Path):
    pair = planted(tmp_path, {(APPLE, PLACES): 3.0})
    with pytest.raises(wb.WorkbenchError, match="different names"):
        Readout.of(pair, (FIRST, FIRST))
    with pytest.raises(wb.WorkbenchError, match="no set has none"):
        Readout.of(pair, ())
    empty = wb.tasks.PromptSet("empty", ())
    with pytest.raises(wb.WorkbenchError, match="'empty'"):
        Readout.of(pair, (FIRST, empty))
