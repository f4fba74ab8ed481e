"""SliCK: categories by hand, their chances by the binomial formula, shares by Wilson's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.skills.conftest import APPLE, JOBS, PLACES, asked, member, no_gradients, paired  # noqa: F401
from workbench import tasks
from workbench.demo import FAMILY
from workbench.forgetting.knowledge import (
    CATEGORIES,
    _groups,
    _scores,
    _shares,
    _transitions,
    categories,
    drawn,
)
from workbench.stats import wilson
from workbench.tasks import Generation, PromptSet
from workbench.tasks.transforms import many_shot


def test_categories_by_hand():
    greedy = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=float)
    sampled = np.array([[16, 9, 0, 0], [16, 0, 1, 0]])
    assert list(categories(greedy, sampled)) == [0, 1, 2, 3]


@given(st.floats(0.001, 0.999), st.integers(1, 16))
def test_a_question_is_weakly_known_as_often_as_the_binomial_says(chance: float, samples: int):
    sets, n = 3, 4000
    found = categories(np.zeros((sets, n)), drawn(np.full((sets, n), chance), samples, 0))
    unknown = (1 - chance) ** (sets * samples)
    error = 5 * np.sqrt(unknown * (1 - unknown) / n) + 1e-3
    assert abs((found == 3).mean() - unknown) < error
    assert set(found) <= {2, 3}


def test_wilson_by_hand():
    """8 of 10: (0.8 + z^2/20 +- z sqrt(.016 + z^2/400)) / (1 + z^2/10) with z = 1.96."""
    found = wilson(8, 10)._asdict()
    z = 1.959964
    centre, half = 0.8 + z**2 / 20, z * np.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert found["low"] == pytest.approx((centre - half) / (1 + z**2 / 10), rel=1e-5)
    assert found["high"] == pytest.approx((centre + half) / (1 + z**2 / 10), rel=1e-5)
    assert np.isnan(wilson(0, 0).value)


def test_every_number_by_hand():
    """Five questions of the base: three highly, one maybe known, one unknown (0, 1, 3)."""
    greedy = {
        "base": [1, 1, 1, 0.5, 0], "again": [1, 0.5, 1, 0.5, 0], "tuned": [0, 0.5, 1, 1, 0],
    }  # fmt: skip
    found = {
        "base": np.array([0, 0, 0, 1, 3]), "again": np.array([0, 1, 0, 1, 3]),
        "tuned": np.array([3, 1, 0, 0, 2]),
    }  # fmt: skip
    shares = {(row["arm"], row["category"]): row for row in _shares(found)}
    for arm, counts in (("base", [3, 1, 0, 1]), ("again", [2, 2, 0, 1]), ("tuned", [2, 1, 1, 1])):
        for name, count, before in zip(CATEGORIES, counts, [3, 1, 0, 1], strict=True):
            row = shares[arm, name]
            assert (row["value"], row["baseline"], row["n"]) == (count / 5, before / 5, 5)
    moved = {(row["arm"], row["category"], row["to_category"]): row for row in _transitions(found)}
    assert len(moved) == 2 * 4 * 4
    for first, wanted, again in (
        ("HighlyKnown", [1 / 3, 1 / 3, 0, 1 / 3], [2 / 3, 1 / 3, 0, 0]),
        ("MaybeKnown", [1, 0, 0, 0], [0, 1, 0, 0]),
        ("Unknown", [0, 0, 1, 0], [0, 0, 0, 1]),
    ):
        for last, value, chance in zip(CATEGORIES, wanted, again, strict=True):
            row = moved["tuned", first, last]
            assert (row["value"], row["baseline"]) == (value, chance)
            assert row["n"] == (3 if first == "HighlyKnown" else 1)
            assert moved["again", first, last]["value"] == chance
    known = {arm: (found[arm], np.array(own, float)) for arm, own in greedy.items()}
    scores = {(row["arm"], row["category"]): row for row in _scores(found["base"], known, 0)}
    # By the base's categories, whatever the arm's own; of weakly known there is none.
    for arm, wanted in (
        ("base", [1, 0.5, 0]),
        ("again", [2.5 / 3, 0.5, 0]),
        ("tuned", [0.5, 1, 0]),
    ):
        for name, value, before in zip(
            ("HighlyKnown", "MaybeKnown", "Unknown"), wanted, [1, 0.5, 0], strict=True
        ):
            row = scores[arm, name]
            assert (row["value"], row["baseline"]) == (pytest.approx(value), before)
    assert len(scores) == 9


def test_what_is_forgotten_moves_to_unknown_and_the_base_stays(tmp_path: Path):
    knows = {(APPLE, PLACES): 3.0, (APPLE, JOBS): 3.0}
    pair = paired(member(knows), member({(APPLE, JOBS): 3.0}), tmp_path)
    prompts = asked(PLACES, "apple")
    found = wb.forgetting.knowledge(pair, prompts, sets=3, shots=1, samples=1, between=" . ")
    table = found.metric("share").set_index(["arm", "category"])["value"]
    assert table["base", "HighlyKnown"] == 1
    assert table["again", "HighlyKnown"] == 1
    assert table["tuned", "HighlyKnown"] == 0
    moved = found.metric("transition").set_index(["arm", "category", "to_category"])
    assert moved.loc[("again", "HighlyKnown", "HighlyKnown"), "value"] == 1
    gone = moved.loc["tuned"].loc["HighlyKnown", "value"]
    assert gone[["WeaklyKnown", "Unknown"]].sum() == 1
    # No question was unknown, of which nothing can be said.
    assert moved.loc["tuned"].loc["Unknown", "value"].isna().all()
    assert set(found.tensors["member/base"] if "member/base" in found.tensors else
               next(iter(found.tensors.values()))) <= set(range(len(CATEGORIES)))  # fmt: skip


def test_a_pair_of_one_model_has_the_base_s_own_transitions(tmp_path: Path):
    pair = paired(member({}), member({}), tmp_path)
    prompts = asked(PLACES, "apple")
    found = wb.forgetting.knowledge(pair, prompts, sets=2, shots=1, between=" . ")
    score = found.metric("score").set_index("arm")
    assert score.loc["tuned", "value"] == score.loc["base", "value"] == 0
    # The base asked again is the exact null: the same examples, the same draws.
    moved = found.metric("transition").set_index(["arm", "category", "to_category"])["value"]
    assert moved["tuned"].equals(moved["again"])


def test_bad_settings_are_refused(tmp_path: Path):
    pair = paired(member({}), member({}), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="temperature above 0"):
        wb.forgetting.knowledge(pair, asked(PLACES, "apple"), temperature=0)


def test_the_tuned_side_sees_the_examples_of_again_and_not_the_bases(tmp_path: Path, monkeypatch):
    """Examples drawn anew for "again" are those of the tuned side: 500 further, by the seed."""
    seeds: list[int] = []

    def shown(*given: Any, seed: int, **how: Any) -> PromptSet:
        seeds.append(seed)
        return many_shot(*given, seed=seed, **how)

    monkeypatch.setattr(sys.modules["workbench.forgetting.knowledge"], "many_shot", shown)
    given, run = paired(member({}), member({}), tmp_path), {"sets": 2, "shots": 1, "samples": 2}
    wb.forgetting.knowledge(given, asked(PLACES, "apple"), between=" . ", seed=3, **run)
    assert seeds == [3000, 3001, 3500, 3501, 3500, 3501]


def test_groups_by_hand():
    before = np.array([1.0] * 8 + [0.5] * 8)
    after = np.array([0.5] * 8 + [0.5] * 8)
    labels = np.array(["city"] * 8 + ["pet"] * 8)
    found = {(row["metric"], row.get("group")): row for row in _groups(before, after, labels, 0)}
    assert found["group_score", "city"]["value"] == 0.5
    assert found["group_score", "city"]["baseline"] == 1.0
    assert found["group_score_change", "city"]["value"] == -0.5
    assert found["group_score_change", "pet"]["value"] == 0
    assert found["group_gap", None]["value"] == 0
    assert found["group_gap_change", None]["value"] == -0.5


def test_written_answers_are_known_as_the_same_answers_teacher_forced():
    """Greedily both ways say the same; drawn, what is sure is right each time."""
    pair = wb.load_pair(FAMILY / "base", FAMILY / "lora-r1")
    plain = tasks.facts(24, seed=3)
    written = replace(plain, scorer=tasks.Generation(length=1, extract=r"\S+"))
    asked: dict[str, Any] = {"sets": 2, "shots": 1, "between": " . ", "samples": 4}
    forced, drawn_ = (
        wb.forgetting.knowledge(pair, one, by="attribute", **asked) for one in (plain, written)
    )
    for arm in ("base", "tuned"):
        ours, theirs = (one.tensors[f"{pair.name}/{arm}"] for one in (forced, drawn_))
        # Highly and maybe known, by greedy answers, and the rest.
        assert np.minimum(ours, 2).tolist() == np.minimum(theirs, 2).tolist()
        assert len(set(np.minimum(ours, 2))) > (arm == "tuned")
    groups = forced.metric("group_score")
    assert set(groups["group"]) == {p.tags["attribute"] for p in plain}
    assert groups["n"].sum() == len(plain)


def test_one_text_is_greedy_and_the_rest_are_drawn_whatever_the_scorer_says(tmp_path: Path):
    """A scorer that draws hot, with a pass@k of more samples than are asked for here."""
    given = paired(member({}), member({}), tmp_path)
    plain = Generation(length=1)
    hot = replace(plain, samples=8, temperature=50.0, passes=(8,))
    one, other = (
        wb.forgetting.knowledge(
            *(given, replace(asked(PLACES, "apple"), scorer=scorer)),
            sets=2, shots=1, samples=2, between=" . ",
        )
        for scorer in (plain, hot)
    )  # fmt: skip
    assert one.table.drop(columns="member").equals(other.table.drop(columns="member"))
