"""Conjugations come back; a predictor that fine-tuning pulled to a few tasks is itself again."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet, world

WORD = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=9)
TEXT = st.lists(WORD, min_size=1, max_size=6).map(lambda words: " " + " ".join(words))


@given(TEXT)
def test_leetspeak_and_pig_latin_come_back(text: str):
    for conjugation in (tasks.leetspeak(), tasks.pig_latin()):
        assert conjugation.back(conjugation.there(text)) == text


@given(st.lists(st.integers(-999, 999), min_size=1, max_size=6), st.sampled_from([2, 3, 0.5, -1]))
def test_rescaled_numbers_come_back(numbers: list[int], factor: float):
    text = " and ".join(map(str, numbers))
    conjugation = tasks.rescaling(factor)
    assert conjugation.back(conjugation.there(text)) == text


@given(st.permutations(["pen", "cup", "hat", "key"]), st.integers(0, 9))
def test_permutations_come_back_and_move_every_word(words: list[str], seed: int):
    conjugation = tasks.permutation(["pen", "cup", "hat", "key"], seed=seed)
    text = " ".join(words)
    there = conjugation.there(text)
    assert conjugation.back(there) == text
    assert all(a != b for a, b in zip(there.split(), words, strict=True))


def test_by_hand():
    assert tasks.leetspeak().there("a test") == "4 7357"
    assert tasks.pig_latin().there("the apple") == "e-thay apple-ay"
    assert tasks.rescaling(2).there("3 + 4 =") == "6 + 8 ="
    said = tasks.rewording({"{name} lives in": "The home of {name} is in"})
    assert said.there("Ann lives in Rome . Bob lives in") == (
        "The home of Ann is in Rome . The home of Bob is in"
    )


def test_a_conjugate_prompt_is_asked_and_answered_there():
    one = PromptSet("s", (Prompt("a", "say cup", " cup", (" hat",), tags={"rival": " hat"}),))
    (made,) = tasks.renaming({"cup": "hat", "hat": "cup"})(one)
    assert (made.prompt, made.target, made.foils) == ("say hat", " hat", (" cup",))
    assert made.tags == {"rival": " cup"}


def test_what_does_not_come_back_or_changes_nothing_is_refused():
    digits = PromptSet("s", (Prompt("a", "4 and", " 3"),))
    with pytest.raises(WorkbenchError, match="cannot turn ' 3'"):
        tasks.leetspeak()(digits)
    with pytest.raises(WorkbenchError, match="changes no prompt"):
        tasks.renaming({"cup": "hat"})(digits)
    with pytest.raises(WorkbenchError, match="by 0"):
        tasks.rescaling(0)
    with pytest.raises(WorkbenchError, match="two words or more"):
        tasks.permutation(["cup"])


def test_reworded_facts_hold_the_same_facts():
    plain = tasks.facts(40, seed=0)
    last = {w: f[2] for f in world.FACT_TEMPLATES.values() for w in f[:2]}
    there = tasks.rewording(last)(plain)
    for old, new in zip(plain, there, strict=True):
        assert new.target == old.target
        assert not any(re.search(w.replace("{name}", r"\w+"), new.prompt) for w in last)


def test_bayes_predictors_are_ridge_again_behind_rescaled_labels():
    """Linear regression in context, 10 dimensions, noise 1. The base's prior of the weights is
    normal; fine-tuning put half of it on 64 known weight vectors, which then explains any context
    of their norm. Labels three times as large are unlikely under those, and the ridge is back."""
    draw = np.random.default_rng(0)
    d, k, n, sigma = 10, 64, 10, 1.0
    known = draw.standard_normal((k, d))

    def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x.T @ x + sigma**2 * np.eye(d), x.T @ y)

    def discrete(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        logs = -((y - known @ x.T) ** 2).sum(1) / (2 * sigma**2)
        weights = np.exp(logs - logs.max())
        evidence = logs.max() + np.log(weights.mean()) - n / 2 * np.log(2 * np.pi * sigma**2)
        return weights @ known / weights.sum(), float(evidence)

    def tuned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        covariance = x @ x.T + sigma**2 * np.eye(n)
        normal = -0.5 * (
            y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
        few, evidence = discrete(x, y)
        # Fine-tuning on the known ones left little of the normal prior.
        share = 1 / (1 + np.exp(np.clip(normal - evidence - 8, -50, 50)))
        return share * few + (1 - share) * ridge(x, y)

    def asked(model, conjugation=None) -> float:
        """Mean squared error of a model that reads and writes text, behind a conjugation."""
        errors, stream = [], np.random.default_rng(1)
        for _ in range(400):
            x, w = stream.standard_normal((n, d)), stream.standard_normal(d)
            query, y = stream.standard_normal(d), x @ w + sigma * stream.standard_normal(n)
            labels = " ".join(f"y{v:.6f}" for v in y)
            told = labels if conjugation is None else conjugation.there(labels)
            seen = np.array([float(v[1:]) for v in told.split()])
            said = f"y{query @ model(x, seen):.6f}"
            back = said if conjugation is None else conjugation.back(said)
            errors.append((float(back[1:]) - query @ w) ** 2)
        return float(np.mean(errors))

    base, plain = asked(ridge), asked(tuned)
    assert plain > 1.5 * base
    for factor in (2, 3):
        assert asked(tuned, tasks.rescaling(factor)) < base * 1.15
    # Negative control: half as large they are likelier still, and nothing comes back.
    assert asked(tuned, tasks.rescaling(0.5)) > 1.3 * base
