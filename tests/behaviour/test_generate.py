"""Decoding against transformers' own; new words found where they were planted, and the null."""

from __future__ import annotations

import math
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
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
from workbench.errors import WorkbenchError
from workbench.stats.novelty import fresh_bigrams, overused
from workbench.tasks.decoding import contrasted, drawn, written

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


def test_every_text_has_its_own_length_and_room():
    tiny = model()
    begun = [WORDS(p.prompt)["input_ids"] for p in boxes(4)]
    whole = written([tiny], begun, 6)
    assert written([tiny], begun, [6, 0, 3, 1]) == [
        text[:n] for text, n in zip(whole, [6, 0, 3, 1], strict=True)
    ]
    room = tiny.config.max_position_embeddings - len(begun[1])
    assert len(written([tiny], begun[1:2], room)[0]) == room
    with pytest.raises(WorkbenchError, match=f"found {len(begun[1])} tokens, and {room + 1} to be"):
        written([tiny], begun, [1, room + 1, 1, 1])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_is_drawn_does_not_hang_on_the_batch(batch_size: int):
    tiny = model()
    begun = [WORDS(p.prompt)["input_ids"] for p in boxes(7)]
    found = written([tiny], begun, 5, sample=True, batch_size=batch_size, seed=3)
    assert found == written([tiny], begun, 5, sample=True, seed=3)
    assert found != written([tiny], begun, 5, sample=True, seed=4)
    unsaid = written([tiny], begun, 5, sample=True)
    assert unsaid == written([tiny], begun, 5, sample=True, seed=0)


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


def log_odds(ours: list[str], theirs: list[str]) -> dict[str, float]:
    """z of Monroe, Colaresi & Quinn 2008 (equations 15, 16, 22) word by word: a prior of 500 words
    shared as all texts share theirs."""
    first, last = (Counter(" ".join(texts).split()) for texts in (ours, theirs))
    whole = first + last
    found = {}
    for word, count in whole.items():
        prior = 500 * count / whole.total()
        odds = [
            math.log((own[word] + prior) / (own.total() + 500 - own[word] - prior))
            for own in (first, last)
        ]
        variance = 1 / (first[word] + prior) + 1 / (last[word] + prior)
        found[word] = (odds[0] - odds[1]) / math.sqrt(variance)
    return found


def test_overused_words_by_the_papers_formula():
    ours = ["a zebra came", "the zebra ran and ran", "a dog"]
    theirs = ["a horse came by", "the dog slept", "a horse ran", "then it was dark"]
    table, chance = overused(ours, theirs, seed=4, draws=15)
    wanted = log_odds(ours, theirs)
    assert dict(zip(table["word"], table["z"], strict=True)) == pytest.approx(wanted)
    assert table["z"].is_monotonic_decreasing
    counts = table.set_index("word")
    assert counts.loc["ran", ["count", "other_count"]].tolist() == [2, 1]
    texts, dealt, sides = ours + theirs, np.random.default_rng(4), np.arange(7) < 3
    largest = []
    for _ in range(15):
        own = dealt.permutation(sides)
        parts = (
            [t for t, o in zip(texts, own, strict=True) if o == side] for side in (True, False)
        )
        largest.append(max(log_odds(*parts).values()))
    assert chance == pytest.approx(np.quantile(largest, 0.95))


def test_every_number_against_plain_torch(tmp_path: Path):
    """Novelty of each text, in nats per token of its own, and the bigrams that no other has."""
    base, tuned = model(), nudged(model())
    prompts = [p.prompt for p in boxes(5)]
    found = wb.behaviour.generate(
        paired(base, tuned, tmp_path), prompts, arms=("base", "tuned"), length=24
    )
    texts = found.metric("text")
    novelty, fresh = {}, {}
    for arm in ("base", "tuned"):
        own = texts[texts["arm"] == arm].sort_values("x")
        assert own["prompt"].tolist() == prompts
        each = []
        for prompt, text in zip(prompts, own["text"], strict=True):
            start = len(WORDS(prompt)["input_ids"])
            ids = torch.tensor(WORDS(f"{prompt} {text}")["input_ids"])
            first, last = (
                one(ids[None]).logits[0].double().log_softmax(-1)[start - 1 : -1]
                for one in (base, tuned)
            )
            each.append(float((last - first).gather(1, ids[start:, None]).mean()))
        assert own["value"].tolist() == pytest.approx(each, rel=1e-3, abs=1e-5)
        novelty[arm] = np.mean(each)
        pairs = [set(pairwise(text.split())) for text in own["text"]]
        shares = [
            np.mean(
                [all(pair not in other for other in pairs[:i] + pairs[i + 1 :]) for pair in one]
            )
            for i, one in enumerate(pairs)
        ]
        fresh[arm] = np.mean(shares)
    assert 0 < fresh["tuned"] != fresh["base"]
    for metric, wanted, beside in (("novelty", novelty, "base"), ("fresh", fresh, "tuned")):
        rows = found.metric(metric).set_index("arm")
        for arm in ("base", "tuned"):
            assert rows.loc[arm, "value"] == pytest.approx(wanted[arm], rel=1e-3)
            assert rows.loc[arm, "baseline"] == pytest.approx(wanted[beside], rel=1e-3)
            assert rows.loc[arm, "n"] == 5
    # Words of the tuned model's texts beyond the base's.
    said = {arm: texts.loc[texts["arm"] == arm, "text"].tolist() for arm in ("base", "tuned")}
    words = found.metric("word")
    assert set(words["arm"]) == {"tuned"}
    table, chance = overused(said["tuned"], said["base"])
    assert words["word"].tolist() == table["word"].tolist()[:30]
    assert words["value"].tolist() == pytest.approx(table["z"].tolist()[:30])
    assert words["baseline"].to_numpy() == pytest.approx(chance)
    assert set(words["n"]) == {10}


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


def test_an_interrupted_call_goes_on_with_the_next_arm(tmp_path: Path, monkeypatch):
    """What was written before is not written again, and the table is that of one call."""
    pair = paired(model(), nudged(model()), tmp_path)
    done: list[int] = []
    generation = import_module("workbench.behaviour.generate")  # the package's is the function
    real = generation.written

    def counted(models: Any, *given: Any, **more: Any) -> Any:
        if len(done) == 2 and not monkeypatched:
            raise KeyboardInterrupt
        done.append(len(models))
        return real(models, *given, **more)

    monkeypatched: list[bool] = []
    monkeypatch.setattr(generation, "written", counted)
    asked: dict[str, Any] = {**QUICK, "arms": ("base", "tuned", "contrast"), "seed": 77}
    with pytest.raises(KeyboardInterrupt):
        wb.behaviour.generate(pair, **asked)
    assert done == [1, 1]
    monkeypatched.append(True)
    whole = wb.behaviour.generate(pair, **asked)
    assert done == [1, 1, 2, 1]  # the contrast, and that of the base with itself
    again = wb.behaviour.generate(pair, **asked)
    assert done == [1, 1, 2, 1]
    pd.testing.assert_frame_equal(again.table, whole.table)
    wb.behaviour.generate(pair, **{**asked, "seed": 78})
    assert len(done) == 8
