"""Choices against plain loops over one text at a time, and against arithmetic by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.conftest import llama
from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.tasks.choices import judged
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Choices


@pytest.fixture(scope="module")
def model():
    return llama(512)


def asked(n: int, by: str = "sum") -> PromptSet:
    drawn = tasks.boxes_prompts(n, seed=1, count=3)
    made = [
        Prompt(p.id, p.prompt, p.target, (" the very red apple", " a key", *p.foils[:1]))
        for p in drawn
    ]
    return PromptSet("choices", tuple(made), scorer=Choices(by))


def log_p(model, tokenizer, before: list[int], text: str) -> float:
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([before + own])).logits[0].log_softmax(-1)
    return sum(logits[len(before) - 1 + i, t].item() for i, t in enumerate(own))


@pytest.mark.parametrize("by", ["sum", "byte", "unconditional"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_choices_agree_with_a_loop_over_single_texts(model, subwords, by, batch_size):
    prompts = asked(6, by)
    table = tasks.answers(model, subwords, prompts, batch_size=batch_size)
    start = [subwords.eos_token_id]
    for p, row in zip(prompts, table.itertuples(), strict=True):
        before = subwords(p.prompt)["input_ids"]
        every = [p.target, *p.foils]
        scores = np.array([log_p(model, subwords, before, text) for text in every])
        assert row.log_probability == pytest.approx(scores[0], abs=1e-4)
        assert row.acc == (scores.argmax() == 0)
        per_byte = scores / [len(text.strip()) for text in every]
        assert row.acc_norm == (per_byte.argmax() == 0)
        if by == "byte":
            scores = per_byte
        if by == "unconditional":
            scores = scores - [log_p(model, subwords, start, text) for text in every]
        assert row.margin == pytest.approx(scores[0] - max(scores[1:]), abs=1e-4)
        assert row.correct == (scores.argmax() == 0)
        assert row.answer == every[int(scores.argmax())]
        assert row.probability == pytest.approx(np.exp(scores[0]) / np.exp(scores).sum(), abs=1e-4)
        assert row.chance == pytest.approx(1 / 4)


def test_letters_that_are_one_token_share_a_pass(model, subwords, monkeypatch):
    prompts = PromptSet(
        "letters",
        tuple(Prompt(f"{i}", f"Which {i}? Answer:", " A", (" B", " C", " D")) for i in range(3)),
        scorer=Choices(),
    )
    rows = []
    real = model.forward

    def counted(input_ids, **more):
        rows.append(len(input_ids))
        return real(input_ids, **more)

    monkeypatch.setattr(model, "forward", counted)
    table = tasks.answers(model, subwords, prompts, batch_size=32)
    one_token = all(len(subwords(f" {x}").input_ids) == 1 for x in "ABCD")
    if one_token:
        assert sum(rows) == 3
    for p, row in zip(prompts, table.itertuples(), strict=True):
        before = subwords(p.prompt)["input_ids"]
        scores = [log_p(model, subwords, before, text) for text in (p.target, *p.foils)]
        assert row.margin == pytest.approx(scores[0] - max(scores[1:]), abs=1e-4)


def test_a_choice_by_hand():
    """Sums -2, -3, -8 of 1, 4 and 16 bytes: per byte -2, -0.75, -0.5."""
    prompt = Prompt("a", "?", " a", (" four", " sixteen letters!"))
    log_p = np.array([-2.0, -3.0, -8.0])
    found = judged(prompt, log_p, None, "sum")
    assert (found["correct"], found["acc"], found["acc_norm"]) == (1.0, 1.0, 0.0)
    assert found["margin"] == 1.0
    assert found["confidence"] == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-6)))
    byte = judged(prompt, log_p, None, "byte")
    assert (byte["correct"], byte["answer"]) == (0.0, " sixteen letters!")
    assert byte["margin"] == pytest.approx(-2 + 0.5)
    plain = judged(prompt, log_p, np.array([-1.0, -2.5, -9.0]), "unconditional")
    assert (plain["correct"], plain["margin"]) == (0.0, pytest.approx(-1 - 1.0))


def test_a_tie_is_no_right_answer_and_is_told():
    found = judged(Prompt("a", "?", " a", (" b",)), np.array([-1.0, -1.0]), None, "sum")
    assert found["tied"]
    assert found["correct"] == 0.0
    assert found["margin"] == 0.0
    assert found["answer"] == " b"  # a wrong answer beside the one expected


@given(
    st.lists(st.floats(-50, 0), min_size=2, max_size=6),
    st.floats(-20, 20),
)
def test_what_all_choices_share_changes_nothing(scores, shift):
    """A constant for every choice, as of a longer prompt, moves no margin and no probability."""
    prompt = Prompt("a", "?", " a", tuple(f" {i}" for i in range(len(scores) - 1)))
    one = judged(prompt, np.array(scores), None, "sum")
    other = judged(prompt, np.array(scores) + shift, None, "sum")
    assert other["margin"] == pytest.approx(one["margin"], abs=1e-9)
    assert other["probability"] == pytest.approx(one["probability"], abs=1e-9)


def test_a_set_without_foils_is_refused_before_it_is_run(model, subwords):
    prompts = PromptSet("none", (Prompt("a", "Say", " yes"),), scorer=Choices())
    with pytest.raises(WorkbenchError, match=r"'a' has no foils.*give foils, or the scorer"):
        tasks.answers(model, subwords, prompts)


def test_scores_of_chance_are_chance(subwords):
    """Random models choose the target as often as a guess does: 40 of 160, give or take 4 sd."""
    right = 0
    for seed in range(4):
        torch.manual_seed(seed)
        drawn = asked(40)
        model = llama(512)
        torch.manual_seed(seed + 100)
        for one in model.parameters():
            torch.nn.init.normal_(one, std=0.3)
        # The choices in random order, so that a favourite word is no favourite answer.
        turn = np.random.default_rng(seed)
        mixed = []
        for p in drawn:
            every = list(turn.permutation([" apple", " key", " ring", " lamp"]))
            mixed.append(Prompt(p.id, p.prompt, str(every[0]), tuple(map(str, every[1:]))))
        found = tasks.answers(model, subwords, PromptSet("r", tuple(mixed), scorer=Choices()))
        right += found["correct"].sum()
    assert abs(right - 40) < 4 * math.sqrt(160 * 0.25 * 0.75)
