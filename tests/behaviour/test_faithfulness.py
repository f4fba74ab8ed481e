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
from workbench.behaviour.faithfulness import SHARES, Asker, _chance, _filled, area, worked
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
    "filler": _filled(";"),
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
