"""Ranked models whose deciding tokens are known, and greedy texts by plain torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import (
    WORDS,
    Ranked,
    boxes,
    model,
    no_gradients,
    paired,
    table_value,
)
from tests.conftest import nudged
from workbench.behaviour.critical import ARMS, Asker, before_answer, chosen
from workbench.errors import WorkbenchError
from workbench.tasks import Generation, Prompt, PromptSet

SCRIPT = ["step", "holds", "7", ".", "Say"]
SCORER = Generation(length=6, extract=r"Say (\w+)")
GIVEN = PromptSet(
    "coins", (Prompt("0", "inventory : 3 coins", " Say 7"),), scorer=SCORER
)  # fmt: skip


def reads_the_number(words: list[str]) -> tuple[str, ...]:
    """Writes "step holds 7 . Say" and then the number that stands behind "holds"."""
    if "coins" not in words:
        return ()
    behind = words[words.index("coins") + 1 :]
    if len(behind) < len(SCRIPT):
        other = "9" if len(behind) == 2 else ";"
        return SCRIPT[len(behind)], other
    return behind[2], "5"


def test_the_token_that_decides_is_found():
    """Of five tokens before the answer only the number, and the word that the answer is found by,
    change it; what is replaced by ";" elsewhere does nothing."""
    scripted = Ranked(reads_the_number)
    asker = Asker((scripted, scripted), WORDS, SCORER, 4)
    (text,) = asker.texts(0, GIVEN)
    assert WORDS.decode(text.ids).split() == [*SCRIPT, "7"]
    assert text.said == ("7", True)
    assert text.before == 5
    text.places = {arm: [*range(5)] for arm in ARMS}
    asker.replace(0, [text])
    said = [text.then[place].found for place in range(5)]
    assert said == ["7", "7", "9", "7", None]
    assert [one.right for one in text.then.values()] == [True, True, False, True, False]
    assert text.margin == pytest.approx([10.0] * 5)
    assert (text.kl == 0).all()


def test_tokens_of_the_answer_are_left_out():
    def tokens(text: str) -> list[int]:
        return WORDS(text, add_special_tokens=False)["input_ids"]

    last = Generation(extract=r"[0-9]+")
    assert before_answer(WORDS, tokens("step holds 7 . Say 9"), last) == 5
    assert before_answer(WORDS, tokens("step holds 7 . Say"), last) == 2  # the answer is that 7
    assert before_answer(WORDS, tokens("step ."), last) == 2  # there is none
    assert before_answer(WORDS, tokens("step 1 8"), Generation(extract=r"\d[\d ]*")) == 1
    assert before_answer(WORDS, tokens("7 step"), last) == 0


def test_the_three_kinds_of_tokens():
    asker = Asker((Ranked(reads_the_number),) * 2, WORDS, SCORER, 4)
    (text,) = asker.texts(0, GIVEN)
    text.margin, text.kl = np.array([3.0, 1, 2, 5, 4]), np.array([0.0, 5, 1, 7, 2])
    found = chosen(text, 2, np.random.default_rng(0))
    assert found["fork"] == [1, 2]
    assert found["moved"] == [3, 1]
    assert len({*found["random"]}) == 2
    assert [len(own) for own in chosen(text, 9, np.random.default_rng(0)).values()] == [5, 5, 5]


def greedy(one: Any, ids: list[int], length: int) -> list[int]:
    """Token by token, without a cache, up to the end of a text."""
    made: list[int] = []
    while len(made) < length:
        new = int(one(torch.tensor([[*ids, *made]])).logits[0, -1].argmax())
        if new == WORDS.eos_token_id:
            break
        made.append(new)
    return made


def last_letter(ids: list[int]) -> str | None:
    return ([c for c in WORDS.decode(ids) if c in "abcdef"] or [None])[-1]


def test_every_number_by_plain_torch(tmp_path: Path):
    """All tokens before the answer are replaced, so that the three kinds are one. The answer is the
    last of six letters."""
    with torch.no_grad():
        base, tuned = (model(tie_word_embeddings=False) for _ in range(2))
        nudged(tuned, 0.1)
    scorer = Generation(length=4, extract="[a-f]")
    asked = boxes(9).prompts
    first = [last_letter(greedy(base, WORDS(p.prompt)["input_ids"], 4)) for p in asked]
    given = PromptSet("texts", tuple(
        Prompt(p.id, p.prompt, f" {t or 'a'}" if i % 2 else " a")
        for i, (p, t) in enumerate(zip(asked, first, strict=True))
    ), scorer=scorer)  # fmt: skip
    found = wb.behaviour.critical(paired(base, tuned, tmp_path), given, most=9)
    each: list[np.ndarray] = []
    for side, own in (("base", base), ("tuned", tuned)):
        flips, broken, fixed, right, sizes = [], [], [], [], []
        for prompt in given:
            ids = WORDS(prompt.prompt)["input_ids"]
            text = greedy(own, ids, 4)
            said, then = last_letter(text), []
            every = range(len(text) + 1)
            stands = min(n for n in every if all(last_letter(text[:m]) == said for m in every[n:]))
            for place in range(len(text) if said is None else stands - 1):
                logits = own(torch.tensor([[*ids, *text[:place]]])).logits[0, -1]
                logits[text[place]] = -torch.inf
                head = [*text[:place], int(logits.argmax())]
                then.append(last_letter([*head, *greedy(own, [*ids, *head], 3 - place)]))
            right.append(prompt.target == f" {said}")
            sizes.append(len(then))
            flips.append(np.mean([one != said for one in then]) if then else np.nan)
            if then:
                rate = np.mean([prompt.target == f" {one}" for one in then])
                (broken if right[-1] else fixed).append(1 - rate if right[-1] else rate)
        each.append(np.array(flips))
        for arm in ARMS:
            at = {"side": side, "arm": arm}
            assert table_value(found, "flip", **at) == pytest.approx(np.nanmean(flips))
            for metric, wanted in (("broken", broken), ("fixed", fixed)):
                value = table_value(found, metric, **at)
                assert value == pytest.approx(np.mean(wanted) if wanted else np.nan, nan_ok=True)
            if arm != "random":
                assert table_value(found, "flip_beyond_random", **at) == 0
        assert table_value(found, "score", side=side) == np.mean(right)
        assert table_value(found, "tokens", side=side) == np.mean(sizes)
    assert 0 < table_value(found, "score", side="base") < 1
    change = table_value(found, "flip_change", arm="random")
    assert change == pytest.approx(np.nanmean(each[1] - each[0]))
    assert change != 0


def test_a_base_against_itself_and_any_batch(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    given = PromptSet("texts", boxes(4).prompts, scorer=Generation(length=4, extract=r"\S+"))
    found, again = (wb.behaviour.critical(pair, given, batch_size=size) for size in (1, 32))
    assert found.table.equals(again.table)
    assert (found.metric("flip_change")["value"] == 0).all()
    for metric in ("flip", "score", "tokens"):
        rows = found.metric(metric)
        sides = (rows[rows["side"] == side]["value"].to_list() for side in ("base", "tuned"))
        first, last = sides
        assert first == last


def test_scorers_that_find_no_answer_are_refused(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    for given in (boxes(2), PromptSet("whole", boxes(2).prompts, scorer=Generation())):
        with pytest.raises(WorkbenchError, match=re.escape("finds the answer in a written text")):
            wb.behaviour.critical(pair, given)


__all__ = ["no_gradients"]
