"""Ends bit for bit; a planted harmful update is found, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import workbench as wb
from tests.models.conftest import write_base, write_member
from tests.skills.conftest import (
    APPLE,
    BOOK,
    PLACES,
    asked,
    mute,
    no_gradients,  # noqa: F401
    planted,
    value,
)
from workbench.skills import rankings
from workbench.skills.graft import count, inside, top
from workbench.skills.restore import (
    ARMS,
    LOST,
    _chosen,
    _orders,
    free,
    most_harmful,
    restore,
    restored,
)
from workbench.skills.scoring import Readout

PROMPTS = asked(PLACES, "apple", 24)
USEFUL, HARMFUL = (APPLE, PLACES), (BOOK, PLACES)


@pytest.fixture(params=["full", "lora"])
def pair(request, tmp_path: Path):
    base = write_base("llama", tmp_path / "base")
    return wb.load_pair(base, write_member("llama", request.param, tmp_path / request.param)).held()


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "random"])
def test_ends_are_the_tuned_model_and_the_base_inside_the_blocks(pair, arm: str):
    scores = getattr(rankings, arm)(pair)
    none, whole = (restored(pair, scores, q).tensors() for q in (0, 1))
    for site in pair.sites("all"):
        base, tuned = pair.delta(site).base, pair.delta(site).tuned
        assert torch.equal(none.get(site.name, base), tuned)
        assert torch.equal(whole.get(site.name, base), tuned if site.layer is None else base)


def test_exactly_q_of_n_are_the_bases_and_they_are_the_largest(pair):
    q, total = 0.1, count(pair)
    edited = restored(pair, rankings.movement(pair), q).tensors()
    back, kept, n = [], [], 0
    for site in inside(pair):
        delta = pair.delta(site)
        same = edited.get(site.name, delta.base) == delta.base
        back.append(delta.change.abs()[same & (delta.change != 0)])
        kept.append(delta.change.abs()[~same])
        n += int((same & (delta.change != 0)).sum())
    assert n == round(q * total)
    assert torch.cat(back).min() >= torch.cat(kept).max()


def test_random_orders_overlap_at_their_density(pair):
    q, total = 0.3, count(pair)
    first, second = (
        top(order, inside(pair), round(q * total)) for order in _orders(pair, "random", 2, 0)
    )
    both = sum(int((first[name] & second[name]).sum()) for name in first) / total
    assert both == pytest.approx(q * q, abs=0.01)


def test_a_harmful_update_is_found(tmp_path: Path):
    """The largest entry makes the tuned model say "book"; without it, it says "apple"."""
    pair = planted(tmp_path, {USEFUL: 3.0, HARMFUL: 4.0})
    one = 1 / count(pair)
    found = restore(pair, PROMPTS, shares=[one, 0.5], arms=["movement", "smallest"])
    assert value(found, "score", arm="tuned") == 0
    assert value(found, "score", arm="movement", x=one) == 1
    rows = found.metric("harmful").set_index("arm")
    assert rows.loc["movement", "x"] == one
    assert rows.loc["movement", ["value", "low", "high"]].eq(1).all()
    assert rows.loc["smallest", ["x", "value"]].eq(0).all()
    assert rows.loc["best", ["x", "value", "chosen"]].tolist() == [one, 1, "movement"]
    assert any("harmful updates found" in note for note in found.provenance.notes)


def test_without_a_harmful_update_none_is_found(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0})
    one = 1 / count(pair)
    found = restore(pair, PROMPTS, shares=[one, 0.5], others=[asked(PLACES, "book", 12)])
    rows = found.metric("harmful")
    assert len(rows) == 2 * len(ARMS) + 2  # and the best of either set
    assert rows[["x", "value", "low"]].eq(0).all(axis=None)
    assert not any("harmful updates found" in note for note in found.provenance.notes)
    assert any("fine-tuning changed" in note for note in found.provenance.notes)
    # One entry does it all: nothing can go from the largest on, half from the smallest on.
    assert value(found, "free", arm="movement") == 0
    assert value(found, "free", arm="smallest") == 0.5
    assert value(found, "cost", arm="smallest") == 0
    assert value(found, "moved") == pytest.approx(one)
    inside_blocks = [p.numel() for n, p in mute().named_parameters() if "layers." in n]
    assert value(found, "N") == sum(inside_blocks)
    assert found.metric("free")["n"].tolist() == [12, 6] * len(ARMS)


def test_a_base_against_itself_has_nothing_to_restore(tmp_path: Path):
    found = restore(planted(tmp_path, {}), PROMPTS, shares=[0.5], arms=["movement"])
    scores = found.metric("log_probability")
    assert scores["value"].nunique() == 1
    assert value(found, "moved") == 0
    assert value(found, "free", arm="movement") == 1


def test_free_by_hand():
    shares = np.array([0.0, 0.1, 0.5, 0.9])
    scores = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1.0]])
    assert free(shares, scores) == 0.5
    assert free(shares, scores, lost=1.0) == 0.9
    assert free(shares[:2], scores[:2]) == 0
    barely = np.stack([np.ones(50), np.r_[np.ones(49), 0]])
    assert LOST == 0.02
    assert free(np.array([0, 0.3]), barely) == 0.3
    worse = np.stack([np.ones(50), np.r_[np.ones(48), 0, 0]])
    assert free(np.array([0, 0.3]), worse) == 0
    assert free(shares, np.stack([scores, scores], axis=1)).tolist() == [0.5, 0.5]


def test_what_is_chosen_on_one_half_and_reported_on_the_other_by_hand(tmp_path: Path):
    """Prompts 0 to 11 choose. There q = 0.5 costs nothing and 0.2 helps most; on the others both
    are something else."""
    readout = Readout.of(planted(tmp_path, {USEFUL: 3.0}).held(), (PROMPTS,), seed=3)

    def right(chooses: int, reports: int) -> tuple[pd.DataFrame]:
        """So many right among the first and the last twelve."""
        half = [np.arange(12) < n for n in (chooses, reports)]
        return (pd.DataFrame({"correct": np.concatenate(half)}),)

    curve = {
        0.0: [right(6, 9)], 0.2: [right(12, 4), right(6, 8)], 0.5: [right(6, 3)],
        0.9: [right(5, 12)], 1.0: [right(0, 12)],
    }  # fmt: skip
    choosing = [{p.id for p in PROMPTS.prompts[:12]}]
    found = {row["metric"]: row for row in _chosen(readout, "random", curve, choosing)}
    assert {(row["arm"], row["task"], row["own"]) for row in found.values()} == {
        ("random", "apple", True)
    }
    assert (found["free"]["value"], found["free"]["n"]) == (0.5, 12)
    cost, harmful = found["cost"], found["harmful"]
    assert (cost["x"], cost["value"]) == (0.5, pytest.approx((3 - 9) / 12))
    assert (harmful["x"], harmful["value"]) == (0.2, pytest.approx((6 - 9) / 12))
    # Of two draws the mean, 12 and 6, beats the tuned model's 6 by 3 of 12.
    assert harmful["choosing"] == pytest.approx(3 / 12)
    for row in (cost, harmful):
        assert row["low"] < row["value"] < row["high"]
        assert (row["n"], row["baseline"]) == (12, 0)
    # Whether q = 0.9 costs anything hangs on whether the one prompt that it loses is drawn.
    assert (found["free"]["low"], found["free"]["high"]) == (0.5, 0.9)


def test_of_several_orders_the_one_that_other_prompts_chose_is_read():
    """Not the largest gain that is reported: the largest on the half that chooses."""
    rows = [
        {"metric": metric, "arm": arm, "own": own, "task": task, "value": value, "choosing": gain}
        for metric, arm, own, task, value, gain in (
            ("harmful", "movement", True, "a", 0.9, 0.1),
            ("harmful", "random", True, "a", 0.2, 0.3),
            ("harmful", "movement", False, "b", 0.1, 0.8),
            ("harmful", "random", False, "c", 0.7, 0.6),
            ("cost", "relative", True, "a", 0.5, 0.99),
        )
    ]  # fmt: skip
    mine, other = most_harmful(rows)
    assert (mine["arm"], mine["chosen"], mine["value"]) == ("best", "random", 0.2)
    assert (other["task"], other["chosen"], other["value"]) == ("b", "movement", 0.1)
    assert not [*most_harmful(rows[-1:])]


@settings(max_examples=50, deadline=None)
@given(arrays(float, (4, 10), elements=st.sampled_from([0.0, 1.0])), st.permutations(range(10)))
def test_free_is_a_share_grows_with_what_may_be_lost_and_ignores_order(scores, order):
    shares = np.array([0.0, 0.2, 0.5, 0.8])
    found = [float(free(shares, scores, lost)) for lost in (0, 0.02, 0.3, 1)]
    assert set(found) <= set(shares)
    assert found == sorted(found)
    assert found[-1] == shares.max()
    assert float(free(shares, scores[:, order])) == found[1]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"shares": [0.0]}, "shares in"),
        ({"shares": []}, "shares in"),
        ({"shares": [1.0]}, "shares in"),
        ({"arms": ["largest"]}, "largest"),
        ({"arms": []}, "found none"),
        ({"random": 0}, "at least 1 seed"),
        ({"others": [asked(PLACES, "book", 5)]}, "at least 12"),
    ],
)
def test_errors_come_first(wrong: dict, told: str, tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0})
    with pytest.raises(wb.WorkbenchError, match=told):
        restore(pair, PROMPTS, **wrong)


def test_batches_change_nothing_and_a_result_comes_back(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0, HARMFUL: 2.0}, noise=0.01)
    ways = [restore(pair, PROMPTS, shares=[0.2, 0.6], batch_size=n).table for n in (5, 32)]
    assert np.allclose(ways[0]["value"], ways[1]["value"], atol=1e-4, equal_nan=True)
    found = restore(pair, PROMPTS, shares=[0.2])
    again = wb.Result.load(found.save(tmp_path / "result"))
    assert again.table["value"].equals(found.table["value"])
