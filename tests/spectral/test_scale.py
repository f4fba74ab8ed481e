"""What every arm of intruder scaling adds, and its rows, by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from workbench.loaders import Delta
from workbench.loaders.names import ParameterSite
from workbench.spectral.linalg import Triplets
from workbench.spectral.scale import Found, _rows, direction
from workbench.tasks.measurements import Items

SIGMA = np.array([9.0, 6.0, 5.0, 2.0])
NAME = "model.layers.0.mlp.up_proj.weight"


def made(
    others: tuple[int, ...], moved: float = 5.0
) -> tuple[Found, np.ndarray, np.ndarray, np.ndarray]:
    """A matrix (6, 5) whose triplets 1 and 3 are intruders; its vectors, and its change, of norm
    `moved`."""
    draw = np.random.default_rng(0)
    u = np.linalg.qr(draw.normal(size=(6, 4)))[0]
    v = np.linalg.qr(draw.normal(size=(5, 4)))[0]
    tuned, change = (u * SIGMA) @ v.T, draw.normal(size=(6, 5))
    change *= moved / np.linalg.norm(change)
    whole, base = (torch.from_numpy(m).float() for m in (tuned, tuned - change))
    left, values, right = (torch.from_numpy(m).float() for m in (u, SIGMA, v))
    site = ParameterSite(NAME, 0, "mlp.up_proj")
    triplets = Triplets(left, values, right, torch.zeros(4))
    return Found(Delta(site, base, whole=whole), triplets, (1, 3), others), u, v, change


def of(found: Found, arm: str, seed: int = 0) -> np.ndarray:
    part = direction(found, arm, seed)
    assert part is not None
    return part.numpy()


def test_every_arm_by_hand():
    found, u, v, change = made((0, 2))
    single = [SIGMA[i] * np.outer(u[:, i], v[:, i]) for i in range(4)]
    np.testing.assert_allclose(of(found, "top"), single[1], atol=1e-5)
    np.testing.assert_allclose(of(found, "all"), single[1] + single[3], atol=1e-5)
    # 5 is nearer to 6 than 9 is; without it 9 is what there is, and without both nothing.
    np.testing.assert_allclose(of(found, "neighbour"), single[2], atol=1e-5)
    np.testing.assert_allclose(of(made((0,))[0], "neighbour"), single[0], atol=1e-5)
    assert direction(made(())[0], "neighbour", 0) is None
    # A change of norm 5 is less than the intruder's 6, and moves whole; one of 8 is cut to 6.
    np.testing.assert_allclose(of(found, "shrink"), change, atol=1e-5)
    larger, _, _, change = made((0, 2), moved=8.0)
    np.testing.assert_allclose(of(larger, "shrink"), change * 6 / 8, atol=1e-5)


def test_the_random_arm_is_of_rank_one_and_of_the_intruders_norm():
    found = made((0, 2))[0]
    values = np.linalg.svd(of(found, "random"), compute_uv=False)
    np.testing.assert_allclose(values, [6, 0, 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(of(found, "random"), of(found, "random", 0))
    assert not np.allclose(of(found, "random"), of(found, "random", 1), atol=0.1)


def test_rows_by_hand():
    """Scores of four prompts, losses of two texts of 10 and 30 tokens; changes are in per cent of
    the value at lambda 1, and there are none of nothing."""
    first = {
        ("task", "score"): Items(np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4)),
        ("none", "score"): Items(np.zeros(4), np.ones(4)),
        ("pretraining", "loss"): Items(np.array([2.0, 4.0]), np.array([10.0, 30.0])),
    }
    now = {
        ("task", "score"): Items(np.array([1.0, 1.0, 1.0, 0.0]), np.ones(4)),
        ("none", "score"): Items(np.ones(4), np.ones(4)),
        ("pretraining", "loss"): Items(np.array([3.0, 4.0]), np.array([10.0, 30.0])),
    }
    rows = {(row[3], row[4]): row for row in _rows("full", "top", 0.5, now, first, 0)}
    at_one = {"task": 0.5, "none": 0.0, "pretraining": 3.5}
    for (task, metric), wanted in {
        ("task", "score"): 0.75, ("task", "score_change"): 50.0,
        ("none", "score"): 1.0, ("none", "score_change"): np.nan,
        ("pretraining", "loss"): 3.75, ("pretraining", "loss_change"): 100 * 0.25 / 3.5,
    }.items():  # fmt: skip
        member, arm, x, _, _, value, _, _, n, baseline = rows[task, metric]
        assert (member, arm, x, baseline) == ("full", "top", 0.5, at_one[task])
        assert value == pytest.approx(wanted, nan_ok=True), (task, metric)
        assert n == (2 if task == "pretraining" else 4)


def test_what_the_intruder_changes_beyond_another_arm_by_hand():
    """Text by text: both arms vary much over the texts, and differ by the same on each."""
    texts = np.array([2.0, 4.0, 9.0])
    first = {("pretraining", "loss"): Items(texts, np.array([10.0, 10.0, 20.0]))}
    arm = {("pretraining", "loss"): first["pretraining", "loss"]._replace(values=texts * 1.5)}
    top = {("pretraining", "loss"): first["pretraining", "loss"]._replace(values=texts * 1.5 - 0.6)}
    *_, row = _rows("full", "shrink", 0.5, arm, first, 0, top)
    assert row[:5] == ("full", "shrink", 0.5, "pretraining", "loss_change_of_top_beyond")
    # At lambda 1 the loss is 6 by the tokens, of which 0.6 is 10%.
    assert row[5:8] == pytest.approx((-10, -10, -10))
    assert row[8:] == (3, 0.0)


def test_a_score_that_no_answer_changed_is_no_certain_nought():
    """Of 64 right answers, all right on both sides: Newcombe's interval is Wilson's lower end of
    either side, whose distance from 1 is z^2 / (64 + z^2). The model itself is certain."""
    one = {("task", "score"): Items(np.ones(64), np.ones(64))}
    other = {("task", "score"): Items(np.ones(64), np.ones(64))}
    moved = _rows("full", "top", 0.5, other, one, 0)[1]
    edge = 100 * norm.ppf(0.975) ** 2 / (64 + norm.ppf(0.975) ** 2)
    assert moved[4:8] == ("score_change", 0, pytest.approx(-edge), pytest.approx(edge))
    assert _rows("full", "top", 1.0, one, one, 0)[1][5:8] == (0, 0, 0)
