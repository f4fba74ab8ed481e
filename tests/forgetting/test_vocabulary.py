"""The words that states were made of are found; what words cannot say is kept through none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.forgetting.conftest import erased, knower, no_gradients, nouns, pair, value
from tests.skills.conftest import LAYER
from workbench.errors import WorkbenchError
from workbench.forgetting.vocabulary import at_random, explaining, unembedding


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


def test_random_directions_are_orthonormal_and_the_seeds():
    found = at_random(12, 4, 0)
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-12)
    assert (found == at_random(12, 4, 0)).all()
    assert not (found == at_random(12, 4, 1)).all()


def test_what_the_base_says_stands_in_words_and_one_model_keeps_the_same(tmp_path: Path):
    """Behind LAYER the answer is written where the head reads it: one word of the unembedding
    holds it. Of the erased feature nothing is read through words either."""
    prompts = nouns(0, 80)
    found = wb.forgetting.probe(pair(tmp_path, erased()), prompts, basis="vocabulary", k=1, folds=2)
    assert value(found, "kept", arm="base", layer=LAYER) > 0.95
    assert value(found, "kept_beyond_random", arm="base", layer=LAYER) > 0.1
    assert value(found, "accuracy", arm="tuned, vocabulary", layer=LAYER) < 0.7
    plain = wb.forgetting.probe(pair(tmp_path, erased()), prompts, folds=2)
    kept = found.table[~found.table["arm"].str.contains("vocabulary|random directions")]
    kept = kept[~kept["metric"].str.startswith("kept")]
    assert kept["value"].equals(plain.table["value"].set_axis(kept.index))  # which basis adds to
    with pytest.raises(WorkbenchError, match="k of at least 1"):
        wb.forgetting.probe(pair(tmp_path, erased()), prompts, basis="vocabulary", k=0)


def test_the_rows_are_those_of_the_head():
    one = knower()
    assert (unembedding(one) == one.lm_head.weight.double().numpy()).all()


__all__ = ["no_gradients"]
