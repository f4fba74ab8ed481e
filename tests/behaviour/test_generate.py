"""Decoding against transformers' own; new words found where they were planted, and the null."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn

import workbench as wb
from tests.behaviour.conftest import (
    APPLE,
    BOOK_TEXTS,
    PLACES,
    WORDS,
    boxes,
    member,
    model,
    mute,
    no_gradients,
    paired,
    table_value,
)
from tests.conftest import nudged
from workbench.behaviour.decoding import drawn, written
from workbench.behaviour.generate import contrasted
from workbench.behaviour.novelty import fresh_bigrams, overused
from workbench.errors import WorkbenchError

QUICK: dict[str, Any] = {"n": 12, "length": 8}


class Forgetful(nn.Module):
    """A model that hands out no cache."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.inner(input_ids, use_cache=False).logits)


def test_greedy_is_transformers_own_with_and_without_a_cache():
    tiny = model()
    begun = [WORDS(p.prompt)["input_ids"] for p in boxes(5)]
    found = written([tiny], begun, 6, batch_size=2)
    for ids, said in zip(begun, found, strict=True):
        given = torch.tensor([ids])
        whole = tiny.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=6, do_sample=False,
            eos_token_id=-1, pad_token_id=0,
        )  # fmt: skip
        assert said == whole[0, len(ids) :].tolist()
    assert written([Forgetful(tiny)], begun, 6) == found


def test_a_text_ends_before_the_stop_token():
    tiny = model()
    begun = [WORDS(p.prompt)["input_ids"] for p in boxes(3)]
    whole = written([tiny], begun, 6)
    stop = whole[0][3]
    for cut, full in zip(written([tiny], begun, 6, stop=stop), whole, strict=True):
        assert cut == (full[: full.index(stop)] if stop in full else full)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_is_drawn_does_not_hang_on_the_batch(batch_size: int):
    tiny = model()
    begun = [WORDS(p.prompt)["input_ids"] for p in boxes(7)]
    found = written([tiny], begun, 5, sample=True, batch_size=batch_size, seed=3)
    assert found == written([tiny], begun, 5, sample=True, seed=3)
    assert found != written([tiny], begun, 5, sample=True, seed=4)


def test_draws_follow_the_distribution():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    chances = torch.from_numpy(np.random.default_rng(0).random(4000))
    said = drawn(p.log().expand(4000, 4), chances)
    counts = np.bincount(said.numpy(), minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], 4000 * np.array([0.5, 0.3, 0.2])).pvalue > 1e-3


def test_the_contrast_is_taken_among_plausible_tokens_alone():
    base = torch.tensor([[0.7, 0.2, 0.1, 1e-6]]).log()
    tuned = torch.tensor([[0.5, 0.4, 0.09, 1e-2]]).log()
    # The last token rises most, but no one would say it: 0.01 < 0.1 * 0.5.
    assert contrasted(0.1)([base, tuned], None).item() == 1
    assert contrasted(0.01)([base, tuned], None).item() == 3
    assert contrasted(1.0)([base, tuned], None).item() == 0


def test_the_planted_word_is_the_newest(tmp_path: Path):
    with torch.no_grad():
        pair = paired(mute(), member({(APPLE, PLACES): 9.0}), tmp_path)
    found = wb.behaviour.generate(pair, ["Alice in", "Bob in", "Maria in"], length=1)
    texts = found.metric("text").set_index(["arm", "x"])["text"]
    assert (texts["base"] == "coin").all()
    for arm in ("tuned", "contrast", "iterative"):
        assert (texts[arm] == "apple").all()
        words = found.metric("word")
        words = words[words["arm"] == arm].sort_values("x")
        assert words["word"].iloc[0] == "apple"
    assert table_value(found, "novelty", arm="contrast") > 2
    assert table_value(found, "novelty", arm="base") < 0


def test_base_against_itself_has_no_novelty(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    found = wb.behaviour.generate(pair, **QUICK)
    assert (found.metric("novelty")["value"] == 0).all()
    texts = found.metric("text").set_index(["arm", "x"])["text"]
    assert (texts["base"] == texts["tuned"]).all()
    own = found.metric("word")
    # The contrast draws alike from all that is plausible: another base text, but nothing new.
    assert set(own["arm"]) == {"tuned", "contrast", "iterative"}
    assert (own.loc[own["arm"] != "iterative", "value"] == 0).all()
    assert (own["value"] <= own["baseline"]).all()


def test_a_contrast_is_newer_than_a_sample(tmp_path: Path):
    found = wb.behaviour.generate(paired(model(), nudged(model()), tmp_path), n=40, length=10)
    novelty = found.metric("novelty").set_index("arm")
    assert novelty.loc["base", "value"] < 0 < novelty.loc["tuned", "value"]
    assert novelty.loc["contrast", "low"] > novelty.loc["tuned", "high"]


def test_the_models_handed_in_stay_as_they_were(tmp_path: Path):
    base, tuned = model(), nudged(model())
    before = [p.clone() for one in (base, tuned) for p in one.parameters()]
    pair = paired(base, tuned, tmp_path)
    wb.behaviour.generate(pair, arms=("base", "iterative"), **QUICK)
    after = [p for one in (pair.base, pair.tuned) for p in one.load("cpu").parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_overused_words_and_their_chance():
    ours = [*BOOK_TEXTS, *["a zebra came by"] * 20]
    theirs = [*BOOK_TEXTS, *["a horse came by"] * 20]
    table, chance = overused(ours, theirs)
    assert table["word"].iloc[0] == "zebra"
    assert table["z"].iloc[0] > chance > 0
    z, back = table.set_index("word")["z"], overused(theirs, ours)[0].set_index("word")["z"]
    assert z["came"] == pytest.approx(0, abs=1e-9)
    assert z["zebra"] == pytest.approx(-back["zebra"])
    null, _ = overused(BOOK_TEXTS, BOOK_TEXTS)
    assert (null["z"].abs() < 1e-9).all()
    assert overused([""], [""])[0].empty


def test_fresh_bigrams_by_hand():
    found = fresh_bigrams([[1, 2, 3], [2, 3, 4], [9, 9], [7]])
    assert found[:3].tolist() == [0.5, 0.5, 1.0]
    assert np.isnan(found[3])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=6), min_size=1, max_size=6))
def test_twice_the_texts_leave_nothing_fresh(texts: list[list[int]]):
    assert (fresh_bigrams(texts + texts) == 0).all()


@pytest.mark.parametrize(
    ("more", "what"),
    [({"arms": ["other"]}, "Expected arms"), ({"alpha": 0}, "alpha"), ({"n": 0}, "n must be")],
)
def test_bad_requests_are_said(tmp_path: Path, more: dict[str, Any], what: str):
    with pytest.raises(WorkbenchError, match=what):
        wb.behaviour.generate(paired(model(), model(), tmp_path), **more)


__all__ = ["no_gradients"]
