"""The words that states were made of are found; other states are explained no better by words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.forgetting.conftest import erased, knower, no_gradients, nouns, pair, value
from tests.skills.conftest import LAYER
from workbench.errors import WorkbenchError
from workbench.forgetting.vocabulary import explaining, turned, unembedding


def test_words_of_which_states_are_made_are_found_in_the_order_of_their_share():
    draw = np.random.default_rng(0)
    words = draw.standard_normal((200, 30))
    weights = draw.standard_normal((50, 3)) * np.array([9.0, 3.0, 1.0])
    frame, taken = explaining(weights @ words[[17, 5, 80]] + 4.0, words, 8)
    assert taken == [17, 5, 80]  # and no more, since nothing is left
    np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-12)
    inside = frame @ frame.T @ words[[17, 5, 80]].T
    np.testing.assert_allclose(inside, words[[17, 5, 80]].T, atol=1e-9)


def test_each_step_is_the_best_by_brute_force_and_scale_changes_nothing():
    draw = np.random.default_rng(1)
    words, states = draw.standard_normal((40, 12)), draw.standard_normal((25, 12))
    centred, chosen = states - states.mean(0), []
    for _ in range(4):
        explained = [
            np.linalg.norm(centred @ np.linalg.qr(words[[*chosen, i]].T)[0])
            for i in range(len(words))
        ]
        chosen.append(int(np.argmax(explained)))
    sizes = draw.uniform(0.1, 9, size=(40, 1))
    for own in (words, words * sizes):
        assert explaining(states, own, 4)[1] == chosen
    frame, _ = explaining(states, words, 99)
    assert frame.shape == (12, 12)  # all of the width
    assert explaining(np.ones((5, 12)), words, 3)[0].shape == (12, 0)


def test_the_control_has_the_same_norms_and_angles_and_is_the_seeds():
    words = np.random.default_rng(3).standard_normal((40, 12))
    found = turned(words, 0)
    np.testing.assert_allclose(found @ found.T, words @ words.T, atol=1e-5)
    assert (found == turned(words, 0)).all()
    assert not np.allclose(found, turned(words, 1), atol=0.1)


def test_states_that_are_made_of_words_among_noise_are_explained_better_by_words():
    for seed in range(5):
        draw = np.random.default_rng(seed)
        words = draw.standard_normal((200, 20))
        states = 3 * draw.standard_normal((60, 2)) @ words[[3, 70]] / 20**0.5
        states += draw.standard_normal((60, 20))
        shares = [
            np.linalg.norm((states - states.mean(0)) @ explaining(states, own, 2)[0]) ** 2
            for own in (words, turned(words, seed))
        ]
        assert shares[0] > 1.3 * shares[1]
        assert {*explaining(states, words, 2)[1]} == {3, 70}


def test_states_that_are_not_made_of_words_are_explained_no_better_by_words():
    """The null: over many draws of states and words that know nothing of each other, words explain
    as much as their control, and both more than directions that nothing chose."""
    more, chosen = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        words, states = draw.standard_normal((200, 20)), draw.standard_normal((30, 20))
        states -= states.mean(0)
        shares = [
            np.linalg.norm(states @ explaining(states, own, 2)[0]) ** 2 / np.sum(states**2)
            for own in (words, turned(words, seed))
        ]
        more.append(shares[0] - shares[1])
        chosen.append(shares[1] - 2 / 20)
    assert abs(np.mean(more)) < 3 * np.std(more) / 60**0.5
    assert np.mean(chosen) > 10 * np.std(chosen) / 60**0.5


def test_what_the_base_says_stands_in_words_and_one_model_keeps_the_same(tmp_path: Path):
    """Behind LAYER the answer is written where the head reads it: one word of the unembedding
    holds it. Of the erased feature nothing is read through words either."""
    prompts = nouns(0, 80)
    found = wb.forgetting.probe(pair(tmp_path, erased()), prompts, basis="vocabulary", k=1, folds=2)
    assert value(found, "kept", arm="base", layer=LAYER) > 0.95
    # Nothing but the answer varies there, so that any direction near the word's will do as well.
    assert value(found, "kept_beyond_random", arm="base", layer=LAYER) == 0
    assert value(found, "accuracy", arm="tuned, vocabulary", layer=LAYER) < 0.7
    plain = wb.forgetting.probe(pair(tmp_path, erased()), prompts, folds=2)
    kept = found.table[~found.table["arm"].str.contains("vocabulary|random directions")]
    kept = kept[~kept["metric"].str.startswith("kept")]
    assert kept["value"].equals(plain.table["value"].set_axis(kept.index))  # which basis adds to
    with pytest.raises(WorkbenchError, match="Expected basis"):
        wb.forgetting.probe(pair(tmp_path, erased()), prompts, basis="words")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="k of at least 1"):
        wb.forgetting.probe(pair(tmp_path, erased()), prompts, basis="vocabulary", k=0)


def test_the_rows_are_those_of_the_head():
    one = knower()
    assert (unembedding(one) == one.lm_head.weight.double().numpy()).all()


__all__ = ["no_gradients"]
