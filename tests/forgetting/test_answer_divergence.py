"""KL(base || tuned) of answers, against transformers' own logits in float64, one prompt a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from workbench import tasks
from workbench.demo import FAMILY
from workbench.forgetting import answer_divergence
from workbench.forgetting.answer_divergence import divergences, with_divergence
from workbench.forgetting.side_answers import both
from workbench.tasks import Choices, Generation, PromptSet

BASE, MEMBER = FAMILY / "base", FAMILY / "lora-r1"


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    """Targets of one to several tokens, behind prompts of unequal length."""
    sums, facts = tasks.arithmetic(6, seed=5), tasks.facts(6, seed=5)
    return replace(facts, prompts=(*sums.prompts, *facts.prompts))


@pytest.fixture(scope="module")
def by_hand(prompts: PromptSet) -> np.ndarray:
    """(prompts, 2): KL(base || tuned) and KL(tuned || base), the mean over the target's tokens."""
    words = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE).double().eval()
    own = AutoModelForCausalLM.from_pretrained(BASE)
    tuned = PeftModel.from_pretrained(own, MEMBER).double().eval()
    found = []
    for one in prompts:
        ids = words(one.prompt + one.target, return_tensors="pt").input_ids
        start = words(one.prompt, return_tensors="pt").input_ids.shape[1]
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, start - 1 : -1].softmax(-1) for m in (base, tuned))
        p, q = p.numpy(), q.numpy()
        each = (p * np.log(p / q)).sum(-1), (q * np.log(q / p)).sum(-1)
        found.append([part.mean() for part in each])
    return np.array(found)


def kl(prompts: PromptSet, batch_size: int = 32, member: Any = MEMBER) -> np.ndarray:
    sides = both(wb.load_pair(BASE, member), batch_size, "cpu", "float32")
    return with_divergence(*sides, prompts)[1]["kl"].to_numpy()


def test_the_row_is_transformers_own(prompts: PromptSet, by_hand: np.ndarray):
    pair = wb.load_pair(BASE, MEMBER)
    found = wb.forgetting.retention(pair, [prompts], texts=["Now ."]).metric("answer_kl").iloc[0]
    assert found["task"] == prompts.name
    assert found["value"] == pytest.approx(by_hand[:, 0].mean(), rel=1e-4)  # prompts count alike
    assert found["value"] != pytest.approx(by_hand[:, 1].mean(), rel=0.05)  # not the reverse
    assert found["baseline"] == 0
    assert found["n"] == len(prompts) == 12
    assert found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_neither_padding_nor_batches_change_it(
    prompts: PromptSet, by_hand: np.ndarray, batch_size: int
):
    assert kl(prompts, batch_size) == pytest.approx(by_hand[:, 0], rel=1e-3, abs=1e-7)


def test_whatever_scores_the_answers(prompts: PromptSet, by_hand: np.ndarray, monkeypatch):
    """Choices beside the target, texts that are written, and logits too many to keep."""
    chosen = tuple(replace(one, foils=(" red",)) for one in prompts)
    for given in (
        replace(prompts, prompts=chosen, scorer=Choices()),
        replace(prompts, scorer=Generation(length=3)),
    ):
        assert kl(given) == pytest.approx(by_hand[:, 0], rel=1e-3, abs=1e-7)
    monkeypatch.setattr(answer_divergence, "ROOM", 1000)
    monkeypatch.setattr(answer_divergence, "_KEPT", {})
    assert kl(prompts) == pytest.approx(by_hand[:, 0], rel=1e-3, abs=1e-7)


def test_the_base_is_read_once_and_each_member_once(prompts: PromptSet, monkeypatch):
    read = []
    own = answer_divergence.Side.watched
    monkeypatch.setattr(answer_divergence, "_KEPT", {})
    monkeypatch.setattr(
        answer_divergence.Side, "watched",
        lambda side, *given: read.append(side.checkpoint.adapter) or own(side, *given),
    )  # fmt: skip
    monkeypatch.setattr(answer_divergence, "side_by_side", None)
    for member in (MEMBER, FAMILY / "lora-r4"):
        kl(prompts, member=member)
    assert [str(one) for one in read] == ["None", str(MEMBER), str(FAMILY / "lora-r4")]


def test_old_logits_make_room(prompts: PromptSet, monkeypatch):
    monkeypatch.setattr(answer_divergence, "_KEPT", {})
    kl(prompts)
    (size,) = map(answer_divergence._bytes, answer_divergence._KEPT.values())
    monkeypatch.setattr(answer_divergence, "ROOM", size)
    kl(replace(prompts, prompts=prompts.prompts[:11]))
    ((_, kept),) = answer_divergence._KEPT.values()
    assert kept is not None
    assert len(kept) == 11


def test_base_against_itself_is_exactly_nothing(prompts: PromptSet):
    found = wb.forgetting.retention(wb.load_pair(BASE, BASE), [prompts], texts=["Now ."])
    row = found.metric("answer_kl").iloc[0]
    assert row[["value", "low", "high"]].eq(0).all()


def test_by_hand_and_where_something_is_impossible():
    """(1/2, 1/2) against (1/4, 3/4), and an entry that neither model ever says, or only the tuned
    one; a column that one side alone has is left out."""
    base, tuned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    told = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergences(base, tuned).tolist() == [pytest.approx(told)]
    never = torch.full((1, 1), -torch.inf)
    assert divergences(torch.cat([base, never], 1), torch.cat([tuned, never], 1)).tolist() == [
        pytest.approx(told)
    ]
    third = torch.tensor([[1 / 3, 1 / 3, 1 / 3]]).log()
    assert divergences(torch.cat([base, never], 1), third).tolist() == [
        pytest.approx(np.log(3 / 2))
    ]
    assert divergences(base, torch.cat([tuned, tuned], 1)).tolist() == [pytest.approx(told)]
    assert divergences(third, torch.cat([base, never], 1)).tolist() == [np.inf]
