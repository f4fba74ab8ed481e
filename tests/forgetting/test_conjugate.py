"""A switched task and a broken one are told apart; what was only switched comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.skills.conftest import APPLE, BOOK, JOBS, PLACES, asked, member, no_gradients, paired  # noqa: F401
from workbench.forgetting.conjugate import _best, _rows
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


def outcomes(right: list[int], switched: list[float]) -> dict[str, np.ndarray]:
    """Eight prompts, four times over, so that a loss has an interval above 0."""
    score, other = np.tile(np.array(right, float), 4), np.tile(np.array(switched, float), 4)
    return {"score": score, "switched": other, "broke": 1 - score - other}


def test_every_number_by_hand():
    """Eight prompts: the tuned model keeps the first, loses five, learns one and misses one."""
    base = {
        "plain": outcomes([1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0]),
        "a": outcomes([1, 1, 0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0]),
    }
    tuned = {
        "plain": outcomes([1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0, 0, 0]),
        "a": outcomes([1, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]),
    }
    plain, there = (
        {row["metric"]: row for row in _rows(arm, base, tuned, slice(None), 0)} for arm in base
    )
    for rows, metric, value, baseline in (
        (plain, "score", 2 / 8, 6 / 8),
        (plain, "switched", 3 / 8, 1 / 8),
        (plain, "broke", 3 / 8, 1 / 8),
        (plain, "score_change", 2 / 8 - 6 / 8, 6 / 8),
        (there, "score", 5 / 8, 7 / 8),
        (there, "switched", 2 / 8, 1 / 8),
        (there, "broke", 1 / 8, 0),
        (there, "score_change", 5 / 8 - 7 / 8, 7 / 8),
        (there, "regained", 5 / 8 - 2 / 8, 7 / 8 - 6 / 8),
        (there, "recovery", (5 - 2) / (6 - 2), 0),
        # Of the five that were lost two are right there, and four of the base's.
        (there, "recovery_lost", 2 / 5, 4 / 5),
        # Of the six that the base knows one is right on plain prompts, and three there.
        (there, "recovery_net", (3 - 1) / (6 - 1), 0),
    ):
        assert rows[metric]["value"] == pytest.approx(value), metric
        assert rows[metric]["baseline"] == pytest.approx(baseline), metric
        assert rows[metric]["n"] == {"recovery_lost": 20, "recovery_net": 24}.get(metric, 32)
    assert not {"recovery", "recovery_net"} & set(plain)


def test_what_comes_back_by_asking_again_is_no_net_recovery():
    """The tuned model errs on one question in five, on others in each wording: four in five of the
    lost answers are right there, and as many go wrong. Nothing comes back."""
    n = 100

    def told(wrong: range) -> dict[str, np.ndarray]:
        right = np.array([float(i not in wrong) for i in range(n)])
        return {"score": right, "switched": 0 * right, "broke": 1 - right}

    base = {"plain": told(range(0)), "a": told(range(0))}
    tuned = {"plain": told(range(20)), "a": told(range(16, 36))}
    rows = {row["metric"]: row for row in _rows("a", base, tuned, slice(None), 0)}
    assert rows["recovery_lost"]["value"] == 16 / 20
    assert rows["recovery_net"]["value"] == 0
    assert rows["recovery_net"]["low"] < 0 < rows["recovery_net"]["high"]
    # Hidden from the plain wording alone, all of it comes back.
    tuned["a"] = told(range(0))
    rows = {row["metric"]: row for row in _rows("a", base, tuned, slice(None), 0)}
    assert rows["recovery_net"]["value"] == rows["recovery_net"]["low"] == 1


def test_the_best_is_chosen_on_one_half_and_reported_on_the_other():
    """One conjugation is right where it is chosen and nowhere else: the report is of elsewhere."""
    n, seed = 40, 3
    choose = np.isin(np.arange(n), np.random.default_rng(seed).permutation(n)[: n // 2])

    def told(right: np.ndarray) -> dict[str, np.ndarray]:
        return {"score": right.astype(float), "switched": 0.0 * right, "broke": 1.0 - right}

    base = {name: told(np.ones(n)) for name in ("plain", "a", "b")}
    tuned = {"plain": told(np.zeros(n)), "a": told(choose), "b": told(~choose)}
    rows = _best(["a", "b"], base, tuned, n, seed)
    assert {row["chosen"] for row in rows} == {"a"}
    assert {row["arm"] for row in rows} == {"best"}
    found = {row["metric"]: row["value"] for row in rows}
    assert found["score"] == found["recovery"] == found["recovery_lost"] == 0
    assert {row["n"] for row in rows} == {n // 2}


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
