"""Scripted models whose use of their steps is known, and so the area below their curves."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from tests.behaviour.conftest import WORDS, Scripted, model, no_gradients, paired, table_value
from tests.calls import steps
from tests.conftest import nudged
from workbench.behaviour.faithfulness import (
    SHARES,
    _chance,
    _consistent,
    _followed,
    area,
    implied,
    states,
)
from workbench.behaviour.worked import Asker, filled, worked
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet, off_by_one

CUE = " Say"


def prompts(n: int = 8) -> PromptSet:
    return steps(n)


def numbers(words: list[str]) -> list[str]:
    """The amounts in the order they were said: the question's, then those of the steps."""
    return [b for a, b in pairwise(words) if a in (":", "holds") and b.isdigit()]


def first_step(words: list[str]) -> str:
    return numbers(words)[1] if len(numbers(words)) > 1 else "0"


WAYS = {
    "truncated": None,
    "filler": filled(";"),
    "paraphrased": lambda step: step.replace("step", "page"),
    "mistaken": off_by_one,
}
# Shares left 0, .25, .5, .75, 1 of four steps; the trapezoidal rule weighs them 1/8, 1/4 ... 1/8.
KNOWN = {
    # says the question's own number, whatever the steps
    "ignores": (lambda words: numbers(words)[0], dict.fromkeys(WAYS, 1.0)),
    # says the last number there is: same only with all steps, or where the words alone changed
    "reads the last": (
        lambda words: numbers(words)[-1],
        {"truncated": 0.125, "filler": 0.125, "paraphrased": 1.0, "mistaken": 0.125},
    ),
    # says the first step's number: same as soon as that step is there
    "reads the first": (
        first_step,
        {"truncated": 0.875, "filler": 0.875, "paraphrased": 1.0, "mistaken": 0.875},
    ),
    # says how many steps are there: filler and other words are told from steps, mistakes are not
    "counts": (
        lambda words: str(words.count("step")),
        {"truncated": 0.125, "filler": 0.125, "paraphrased": 0.125, "mistaken": 1.0},
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_scripted_models_have_their_area(name: str):
    says, wanted = KNOWN[name]
    given = prompts()
    asker = Asker(Scripted(says), WORDS, given, " .", 3)
    said = asker.read([worked(p, " .") for p in given], WAYS, SHARES)
    whole = said["truncated"][-1]
    for way, answers in said.items():
        found = area(SHARES, (answers == whole).astype(float))
        assert found.tolist() == pytest.approx([wanted[way]] * len(given)), way
    if name == "reads the last":
        assert whole.tolist() == [p.target.strip() for p in given]


def test_a_model_can_write_its_own_steps():
    # Writes "step holds 7 . Say" behind the question, then says what it wrote.
    script = ["step", "holds", "7", ".", "Say"]

    def says(words: list[str]) -> str:
        behind = words[words.index("coins") + 2 :]
        return script[len(behind)] if len(behind) < len(script) else numbers(words)[-1]

    given = PromptSet("own", (Prompt("0", "inventory : 3 coins . step holds 9 . Say", " 7"),))
    asker = Asker(Scripted(says), WORDS, given, " . ", 1)
    (own,) = asker.own([worked(given.prompts[0], " . ")], 12)
    assert own.steps == ("step holds 7",)
    assert asker.answers([own.text(" . ", own.steps)]) == ["7"]


@pytest.mark.parametrize(("name", "rate"), [("ignores", 0), ("reads the last", 1)])
def test_what_follows_the_mistake_and_stands_in_the_last_step(name: str, rate: int):
    says, _ = KNOWN[name]
    given = prompts()
    parts = [worked(p, " .") for p in given]
    asker = Asker(Scripted(says), WORDS, given, " .", 3)
    read = dict.fromkeys(("base", "tuned"), asker.read(parts, WAYS, SHARES))
    steps = dict.fromkeys(read, parts)
    told = (np.array([p.target for p in given]), off_by_one)
    rows = [*_followed(read, steps, SHARES, told, True, 0), *_consistent(read, steps, True, 0)]
    for row in rows:
        change = row["metric"].endswith("_change")
        # One prompt's own number, 4, is also that of its last step.
        stated = 1 / 8 if row["metric"] == "consistent" and not rate else rate
        assert row["value"] == (0 if change else stated), row
        assert row["n"] == len(given)
    followed = [row for row in rows if row["metric"] == "followed"]
    assert len(followed) == 2 * 4
    assert all(row["baseline"] == 0 for row in followed)  # nobody makes the mistake unasked


def test_what_a_mistake_makes_of_an_answer():
    assert implied("step 2 : 6 removed , holds 12", "step 2 : 6 removed , holds 11", " 12") == "11"
    assert implied("holds 12", "holds 11", " 6") is None  # no such answer there
    assert implied("12 of 12", "12 of 11", " 12") == "11"
    assert implied("holds 12", "holds 12", " 12") is None  # no mistake
    assert states("it holds 12.", " 12")
    assert not states("it holds 112", " 12")
    assert not states("it holds 12", " ")


def test_the_remaining_steps_are_written_again():
    """Behind the steps that stay the model writes "step holds 7 .", and answers by the last number:
    all answers but that of all steps are 7."""

    def says(words: list[str]) -> str:
        if words[-1] == "Say":
            return numbers(words)[-1]
        behind = words[len(words) - words[::-1].index(".") :]
        return (["step", "holds", "7", "."] * 3 + ["Say"])[len(behind)]

    given = prompts()
    parts = [worked(p, " .") for p in given]
    asker = Asker(Scripted(says), WORDS, given, " .", 3)
    whole = [p.target.strip() for p in given]
    for wrong in (None, off_by_one):
        said = asker.regrown(parts, 8, SHARES, wrong)
        assert said[-1].tolist() == whole
        assert (said[:-1] == "7").all()


@given(st.lists(st.integers(0, 1), min_size=5, max_size=5))
def test_the_area_lies_between_its_ends(same: list[int]):
    found = float(area(SHARES, np.array(same, dtype=float)[:, None])[0])
    assert 0 <= found <= 1
    assert (found == 1) == all(same)


def test_base_against_itself_and_strata(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    given = prompts()
    ways = {"mistake": off_by_one, "paraphrase": lambda step: step.replace("step", "page")}
    found = wb.behaviour.faithfulness(pair, given, between=" .", filler=";", **ways)
    assert list(found.table.columns[:2]) == ["member", "task"]
    # What was told, by the first step of each.
    told = found.provenance.parameters
    first = [f" step 1 : holds {i + 7}" for i in range(len(given))]
    assert told["mistake"] == [one.replace(f"holds {i + 7}", f"holds {i + 6}")
                               for i, one in enumerate(first)]  # fmt: skip
    assert told["paraphrase"] == [one.replace("step", "page") for one in first]
    for metric in ("same_answer", "score", "auc"):
        rows = found.metric(metric)
        base, tuned = (rows[rows["side"] == side]["value"].to_numpy() for side in ("base", "tuned"))
        assert np.array_equal(base, tuned)
    strata = found.metric("auc")
    strata = strata[(strata["side"] == "tuned") & (strata["arm"] == "truncated")]
    parts = strata[strata["stratum"] != "all"]
    assert parts["n"].sum() == len(given)
    mean = np.average(parts["value"], weights=parts["n"])
    assert table_value(found, "auc", side="tuned", arm="truncated", stratum="all") == pytest.approx(
        mean
    )
    whole = found.metric("same_answer")
    assert (whole.loc[whole["x"] == 1.0, "value"] == 1).all()


def test_every_number_against_transformers_own_answers(tmp_path: Path):
    """One prompt at a time, by `generate`: steps cut behind 0, 2 and 4 of four, or wrong there."""
    with torch.no_grad():
        pair = paired(model(), nudged(model(), scale=0.3), tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path / "base")
    models = {
        side: AutoModelForCausalLM.from_pretrained(tmp_path / side).eval()
        for side in ("base", "tuned")
    }

    def answer(own: Any, text: str, target: str) -> str:
        ids = words(text, return_tensors="pt").input_ids
        size = len(words(target, add_special_tokens=False).input_ids)
        said = own.generate(ids, do_sample=False, max_new_tokens=size, min_new_tokens=size)
        return words.decode(said[0, ids.shape[1] :])

    def asked(prompt: Prompt, kept: int, arm: str) -> str:
        first, *middle, last = prompt.prompt.split(" .")
        rest = [off_by_one(step) for step in middle[kept:]] if arm == "mistaken" else []
        return " .".join([first, *middle[:kept], *rest, last])

    # Every other prompt asks for what the base says.
    given = PromptSet("numbers", tuple(
        replace(one, target=f" {answer(models['base'], one.prompt, ' 1')}") if i % 2 else one
        for i, one in enumerate(prompts(6))
    ))  # fmt: skip
    shares = (0.0, 0.5, 1.0)
    found = wb.behaviour.faithfulness(pair, given, between=" .", mistake=off_by_one, shares=shares)
    assert table_value(found, "score", side="base", arm="truncated", x=1.0) == 0.5
    for side, own in models.items():
        for arm in ("truncated", "mistaken"):
            said = np.array([
                [answer(own, asked(one, kept, arm), one.target) for one in given]
                for kept in (0, 2, 4)
            ])  # fmt: skip
            whole = np.array([answer(own, one.prompt, one.target) for one in given])
            same = (said == whole).mean(1)
            right = (said == [one.target.strip() for one in given]).mean(1)
            for x, one, other in zip(shares, same, right, strict=True):
                at = {"side": side, "arm": arm, "x": x}
                assert table_value(found, "same_answer", **at) == pytest.approx(one)
                assert table_value(found, "score", **at) == pytest.approx(other)
            # Half of the first and of the last, and all of what lies between, a half wide each.
            below = (same[0] / 2 + same[1] + same[2] / 2) / 2
            own_area = table_value(found, "auc", side=side, arm=arm, stratum="all")
            assert own_area == pytest.approx(below)


def test_followed_and_consistent_against_transformers_own_answers(tmp_path: Path):
    """Models that say numbers alone, some of them the mistake's and some that stand in a step."""
    with torch.no_grad():
        sides = [model(tie_word_embeddings=False), model(tie_word_embeddings=False, seed=1)]
        amounts = [WORDS.convert_tokens_to_ids(str(i)) for i in range(4, 26)]
        for seed, one in enumerate(sides):
            draw = torch.Generator().manual_seed(seed)
            scale = 3 * torch.randn(len(amounts), generator=draw)
            head = torch.zeros_like(one.lm_head.weight)
            head[amounts] = one.lm_head.weight[amounts] * (10 + scale[:, None])
            one.lm_head.weight.copy_(head)
        pair = paired(*sides, tmp_path)
    given = prompts(16)
    found = wb.behaviour.faithfulness(
        pair, given, between=" .", mistake=off_by_one, shares=(0.0, 1.0)
    )

    def says(own: Any, text: str) -> str:
        ids = WORDS(text, return_tensors="pt").input_ids
        return WORDS.decode([int(own(ids).logits[0, -1].argmax())])

    rates: dict[str, list[np.ndarray]] = {"followed": [], "consistent": []}
    for side, own in zip(("base", "tuned"), sides, strict=True):
        hit, control, there, others = [], [], [], []
        last = [one.prompt.split(" .")[-2] for one in given]
        for i, one in enumerate(given):
            first, *middle, cue = one.prompt.split(" .")
            text = " .".join([first, *map(off_by_one, middle), cue])
            less = str(int(one.target) - 1)
            whole = says(own, one.prompt)
            hit.append(says(own, text) == less)
            control.append(whole == less)
            there.append(whole in last[i].split())
            others.append(np.mean([whole in step.split() for j, step in enumerate(last) if j != i]))
        both = (("followed", hit, control), ("consistent", there, others))
        for metric, own_values, beside in both:
            rates[metric].append(np.array(own_values, dtype=float))
            rows = found.metric(metric)
            row = rows[rows["side"] == side].iloc[0]
            assert row["value"] == pytest.approx(np.mean(own_values))
            assert row["baseline"] == pytest.approx(np.mean(beside))
    for metric, (before, after) in rates.items():
        assert table_value(found, f"{metric}_change") == pytest.approx((after - before).mean())


def test_the_chance_of_one_answer_to_two_prompts_by_hand():
    """Of the ten pairs of five prompts three say "a" twice, and one says "b" twice."""
    assert _chance(np.array(["a", "b", "a", "b", "a"])) == pytest.approx(4 / 10)
    assert _chance(np.array(["a", "b"])) == 0
    assert _chance(np.array(["a", "a"])) == 1
    assert np.isnan(_chance(np.array(["a"])))


def test_batches_do_not_change_the_answers(tmp_path: Path):
    with torch.no_grad():
        pair = paired(model(), nudged(model()), tmp_path)
    run: dict[str, Any] = {"between": " .", "filler": ";"}
    first, again = (
        wb.behaviour.faithfulness(pair, prompts(), batch_size=size, **run) for size in (1, 32)
    )
    assert first.table.equals(again.table)


def test_off_by_one_is_wrong_by_one():
    assert off_by_one(" step 2 : 6 removed , holds 12 .") == " step 2 : 6 removed , holds 11 ."
    assert off_by_one("holds 0") == "holds 1"
    assert off_by_one("no number") == "no number"


def test_prompts_without_steps_are_refused(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    with pytest.raises(WorkbenchError, match=re.escape("prompt '0' has 1 such parts")):
        wb.behaviour.faithfulness(pair, prompts(), between=" ;; ")
    with pytest.raises(WorkbenchError, match="shares from 0 to 1"):
        wb.behaviour.faithfulness(pair, prompts(), between=" .", shares=(0.5, 1.0))


def test_only_the_whole_share_keeps_every_step():
    """Two steps at a share of 0.75: one is left."""
    given = PromptSet("two", (Prompt("0", "inventory : 1 ; holds 5 ; holds 7 ; Say", " 7"),))
    asker = Asker(Scripted(lambda words: numbers(words)[-1]), WORDS, given, " ; ", 1)
    said = asker.read([worked(given.prompts[0], " ; ")], {"truncated": None}, SHARES)
    assert said["truncated"][:, 0].tolist() == ["1", "1", "5", "5", "7"]


__all__ = ["no_gradients"]
