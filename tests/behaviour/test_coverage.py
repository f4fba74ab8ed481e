"""pass@k by its formula, draws by hand, curves that cross where they must, distributions over the
valid answers."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import (
    WORDS,
    boxes,
    model,
    no_gradients,
    paired,
    table_value,
)
from tests.conftest import nudged
from workbench.behaviour.coverage import crossing, uniform_kl
from workbench.errors import WorkbenchError
from workbench.tasks import Generation, Prompt, PromptSet

FOILS = (" ball", " book", " card")
ONE = PromptSet("one", tuple(
    Prompt(str(i), f"Alice in{' in' * (i % 3)} {i}", " apple", FOILS) for i in range(6)
))  # fmt: skip


def flat() -> Any:
    """All tokens equally likely."""
    made = model(tie_word_embeddings=False)
    made.lm_head.weight.zero_()
    return made


def sharp(scale: float = 5000.0) -> Any:
    """Sure of one word a prompt."""
    made = model(tie_word_embeddings=False)
    made.lm_head.weight.mul_(scale)
    return made


def logits(one: Any, text: str) -> torch.Tensor:
    return one(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]


def drawn(one: Any, prompt: Prompt, samples: int, temperature: float, seed: int) -> list[int]:
    """The first tokens that inverse transform sampling takes, with a number of each text's own."""
    p = (logits(one, prompt.prompt).float() / temperature).double().softmax(-1).numpy()
    own = int(hashlib.sha256(prompt.prompt.encode()).hexdigest()[:16], 16)
    numbers = [np.random.default_rng([seed, own, i]).random(1)[0] for i in range(samples)]
    return [int(np.searchsorted(np.cumsum(p), number, side="right")) for number in numbers]


def test_every_number_by_hand(tmp_path: Path):
    with torch.no_grad():
        base, tuned = sharp(3.0), nudged(sharp(3.0), 0.02)
    # The answer is what is often drawn, so that some are right.
    given = PromptSet("drawn", tuple(
        Prompt(p.id, p.prompt, f" {WORDS.decode([drawn(base, p, 3, 0.7, 5)[0]])}", FOILS)
        for p in ONE
    ))  # fmt: skip
    found = wb.behaviour.coverage(
        paired(base, tuned, tmp_path), given, samples=4, temperature=0.7, seed=5
    )
    told: dict[Any, float] = {}
    for side, own in (("base", base), ("tuned", tuned)):
        said = [drawn(own, p, 4, 0.7, 5) for p in given]
        targets = [WORDS(p.target)["input_ids"][-1] for p in given]
        right = [s.count(t) for s, t in zip(said, targets, strict=True)]
        for k in (1, 2, 4):
            wanted = float(np.mean([1 - math.comb(4 - c, k) / math.comb(4, k) for c in right]))
            assert table_value(found, "pass_at", side=side, x=k) == pytest.approx(wanted)
            told[side, k] = wanted
        p = torch.stack([logits(own, one.prompt).double().softmax(-1) for one in given])
        told[side, "entropy"] = float(-(p * p.log()).sum(-1).mean())
        told[side, "distinct"] = float(np.mean([len({*s}) for s in said]))
        choices = [[WORDS(a)["input_ids"][-1] for a in (q.target, *q.foils)] for q in given]
        over = torch.stack([row[own] for row, own in zip(p, choices, strict=True)])
        told[side, "valid_mass"] = float(over.sum(-1).mean())
        over = over / over.sum(-1, keepdim=True)
        told[side, "uniform_kl"] = float((over * (over * 4).log()).sum(-1).mean())
    assert 0 < told["base", 1] < 1
    for metric in ("distinct", "entropy", "valid_mass", "uniform_kl"):
        for side in ("base", "tuned"):
            own = table_value(found, metric, side=side)
            assert own == pytest.approx(told[side, metric], rel=1e-5), metric
        moved = told["tuned", metric] - told["base", metric]
        assert table_value(found, f"{metric}_change") == pytest.approx(moved, abs=1e-5)
    for k in (1, 2, 4):
        moved = told["tuned", k] - told["base", k]
        assert table_value(found, "pass_at_change", x=k) == pytest.approx(moved)
        guess = 1 - 0.75**k
        assert table_value(found, "pass_at", side="guess", x=k) == pytest.approx(guess)


def test_curves_cross_where_they_are_made_to(tmp_path: Path):
    """The base says one of few words at random, the tuned model always the same: it is right at
    every try where that is the answer, and never elsewhere."""
    ks = (1, 2, 4, 8, 16)
    base = np.array([1 - 0.75**k for k in ks])
    tuned = np.full(len(ks), 0.5)
    # 1 - .75^2 = .4375 < .5 < 1 - .75^4, on a line over log k.
    part = (0.5 - base[1]) / (base[2] - base[1])
    assert float(crossing(ks, base, tuned)) == pytest.approx(2 * 2**part)
    assert math.isnan(float(crossing(ks, tuned, base)))  # the tuned model was not ahead
    assert math.isnan(float(crossing(ks, base, base)))
    with torch.no_grad():
        words = [WORDS.decode([int(logits(sharp(), p.prompt).argmax())]) for p in ONE]
        answers = [f" {words[i]}" if i < 3 else " apple" for i in range(6)]
        given = PromptSet("half", tuple(
            Prompt(p.id, p.prompt, answer, tuple(f for f in FOILS if f != answer))
            for p, answer in zip(ONE, answers, strict=True)
        ))  # fmt: skip
        pair = paired(model(tie_word_embeddings=False), sharp(), tmp_path)
    found = wb.behaviour.coverage(pair, given, samples=256, seed=1)
    for k in (1, 256):
        assert table_value(found, "pass_at", side="tuned", x=k) == 0.5
    assert table_value(found, "pass_at", side="base", x=1) < 0.1
    assert table_value(found, "pass_at", side="base", x=256) > 0.5
    assert 1 < table_value(found, "crossing") < 256
    assert table_value(found, "distinct", side="tuned") == 1
    assert table_value(found, "entropy_change") < 0


def test_the_distance_from_the_uniform_distribution():
    assert uniform_kl(np.log([0.1, 0.1, 0.1])) == pytest.approx(0, abs=1e-12)
    assert uniform_kl(np.array([0.0, -np.inf])) == pytest.approx(math.log(2))
    by_hand = 0.75 * math.log(0.75 * 2) + 0.25 * math.log(0.25 * 2)
    assert uniform_kl(np.log([0.3, 0.1])) == pytest.approx(by_hand)


def test_a_uniform_model_picks_at_random_and_a_base_against_itself_does_not_differ(tmp_path: Path):
    with torch.no_grad():
        pair = paired(flat(), flat(), tmp_path)
    found = wb.behaviour.coverage(pair, ONE, samples=4)
    moved = found.table[found.table["metric"].str.endswith("_change")]
    assert len(moved) == 3 + 4
    assert (moved[["value", "low", "high"]] == 0).all(axis=None)
    assert table_value(found, "uniform_kl", side="base") == pytest.approx(0, abs=1e-9)
    size = len(WORDS)
    assert table_value(found, "valid_mass", side="tuned") == pytest.approx(4 / size, rel=1e-5)
    assert table_value(found, "entropy", side="base") == pytest.approx(math.log(size), rel=1e-5)
    assert math.isnan(table_value(found, "crossing"))
    assert any("the curves of the two models do not cross" in n for n in found.provenance.notes)


def test_the_estimate_is_that_of_the_probability(tmp_path: Path):
    """Of one-token answers pass@k is 1 - (1 - p)^k on average."""
    with torch.no_grad():
        base = sharp(3.0)
        p = np.array([float(logits(base, one.prompt).double().softmax(-1).max()) for one in ONE])
        likely = [f" {WORDS.decode([int(logits(base, one.prompt).argmax())])}" for one in ONE]
    given = PromptSet("likeliest", tuple(
        Prompt(one.id, one.prompt, word) for one, word in zip(ONE, likely, strict=True)
    ))  # fmt: skip
    found = wb.behaviour.coverage(paired(base, base, tmp_path), given, samples=400)
    for k in (1, 2, 4):
        wanted = np.mean(1 - (1 - p) ** k)
        assert table_value(found, "pass_at", side="base", x=k) == pytest.approx(wanted, abs=0.06)
    assert not found.has("uniform_kl")  # without foils no answers are known to be valid


def test_batches_and_a_scorer_of_texts(tmp_path: Path):
    with torch.no_grad():
        pair = paired(model(), nudged(model()), tmp_path)
    scorer = Generation(length=3, extract=r"(\w+)$")
    given = PromptSet("texts", boxes(4).prompts, scorer=scorer)
    first, again = (
        wb.behaviour.coverage(pair, given, samples=3, batch_size=size) for size in (1, 32)
    )
    whole = ~first.table["metric"].str.contains("entropy|mass|uniform")
    assert first.table[whole].equals(again.table[whole])
    values = (one.table.loc[~whole, "value"].to_numpy(float) for one in (first, again))
    assert np.allclose(*values, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"samples": 1}, "2 samples or more"), ({"temperature": 0.0}, "above 0"),
     ({"prompts": PromptSet("none", ())}, "found none")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    given: dict[str, Any] = {"prompts": ONE} | change
    with pytest.raises(WorkbenchError, match=re.escape(said)):
        wb.behaviour.coverage(paired(model(), model(), tmp_path), **given)


__all__ = ["no_gradients"]
