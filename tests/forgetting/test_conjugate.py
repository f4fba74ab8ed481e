"""A switched task and a broken one are told apart; what was only switched comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
from tests.skills.conftest import APPLE, BOOK, JOBS, PLACES, asked, member, no_gradients, paired  # noqa: F401
from workbench.tasks import Prompt, PromptSet

# The base says "apple" after "in" and "book" after "a"; see tests/skills/conftest.py.
KNOWS = {(APPLE, PLACES): 3.0, (APPLE, JOBS): 3.0}


def told(prompts: PromptSet, end: str) -> PromptSet:
    """The same questions ending with another word."""
    made = [
        Prompt(p.id, p.prompt.rsplit(" ", 1)[0] + f" {end}", p.target, p.foils, tags=p.tags)
        for p in prompts
    ]
    return PromptSet(f"{prompts.name}, {end}", tuple(made))


def value(result, metric: str, arm: str) -> float:
    rows = result.metric(metric)
    (found,) = rows.loc[rows["arm"] == arm, "value"]
    return float(found)


def _pair(folder: Path, changes) -> wb.CheckpointPair:
    return paired(member(KNOWS), member(KNOWS | changes), folder)


def test_a_switched_answer_comes_back_where_it_was_not_switched(tmp_path: Path):
    pair = _pair(tmp_path, {(APPLE, PLACES): -5.0, (BOOK, PLACES): 9.0})
    plain = asked(PLACES, "apple")
    learned = asked(PLACES, "book")
    found = wb.forgetting.conjugate(pair, plain, {"a": told(plain, "a")}, task=learned)
    assert value(found, "score", "plain") == 0
    assert value(found, "switched", "plain") == 1
    assert value(found, "broke", "plain") == 0
    assert value(found, "score", "a") == 1
    assert value(found, "recovery", "a") == 1
    assert value(found, "recovery", "best") == 1
    assert set(found.metric("score")["baseline"]) == {1.0}


def test_a_broken_answer_is_not_called_switched_and_stays_away(tmp_path: Path):
    """Negative control: the answer is gone everywhere, and nothing of the task is said."""
    pair = _pair(tmp_path, {(APPLE, PLACES): -9.0, (APPLE, JOBS): -9.0})
    plain = asked(PLACES, "apple")
    found = wb.forgetting.conjugate(
        pair, plain, {"a": told(plain, "a")}, task=asked(PLACES, "book")
    )
    assert value(found, "broke", "plain") == 1
    assert value(found, "switched", "plain") == 0
    assert value(found, "recovery", "a") == 0


def test_a_rival_named_by_the_prompt_is_what_counts(tmp_path: Path):
    pair = _pair(tmp_path, {(APPLE, PLACES): -5.0, (BOOK, PLACES): 9.0})
    plain = asked(PLACES, "apple")
    for rival, share in ((" book", 1.0), (" cup", 0.0)):
        named = PromptSet("s", tuple(
            Prompt(p.id, p.prompt, p.target, p.foils, tags={"rival": rival}) for p in plain
        ))  # fmt: skip
        found = wb.forgetting.conjugate(pair, named, {"a": told(named, "a")})
        assert value(found, "switched", "plain") == share


def test_base_against_itself_lost_nothing_and_regains_nothing(tmp_path: Path):
    pair = _pair(tmp_path, {})
    plain = asked(PLACES, "apple")
    found = wb.forgetting.conjugate(pair, plain, {"a": told(plain, "a")})
    assert (found.metric("score_change")[["value", "low", "high"]] == 0).all(axis=None)
    # Of nothing lost no share can come back.
    assert found.metric("recovery")["value"].isna().all()


def test_conjugates_must_match(tmp_path: Path):
    pair = _pair(tmp_path, {})
    plain = asked(PLACES, "apple")
    fewer = PromptSet("few", plain.prompts[:5])
    with pytest.raises(wb.WorkbenchError, match="each of the 24"):
        wb.forgetting.conjugate(pair, plain, {"a": fewer})
    with pytest.raises(wb.WorkbenchError, match="another name"):
        wb.forgetting.conjugate(pair, plain, {"plain": plain})
    with pytest.raises(wb.WorkbenchError, match="found none"):
        wb.forgetting.conjugate(pair, plain, {})


def test_only_what_was_lost_counts_as_recovered(tmp_path: Path):
    """The conjugate is right on prompts that were never known, and on none that was lost."""
    gained = {(BOOK, JOBS): 9.0}
    pair = _pair(tmp_path, {(APPLE, PLACES): -9.0} | gained)
    lost, unknown = asked(PLACES, "apple", 12), asked(PLACES, "book", 24)
    plain = PromptSet("mixed", (*lost, *(Prompt(f"u{p.id}", p.prompt, p.target) for p in unknown)))
    there = told(plain, "a")
    found = wb.forgetting.conjugate(pair, plain, {"a": there})
    assert value(found, "recovery", "a") == 2  # 24 came up, 12 were lost: no share of what was lost
    rows = found.metric("recovery_lost").set_index("arm")
    assert rows.loc["a", "value"] == 0
    assert rows.loc["a", "n"] == 12
    assert rows.loc["a", "baseline"] == 1  # the base itself is right on those there
