"""Texts without an answer: the source's own next token is the answer, or one sentence says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.patching.conftest import boxes, model, paired, value
from workbench.errors import WorkbenchError
from workbench.models import nnsight, transformer_lens
from workbench.tasks import Prompt, PromptSet

TEXTS = ["the apple ball . the", "the card dice", "the cup hat . the box", "Box K contains the"]
NOTE = "4 of 4 prompts give no answer: the {} model's own most likely next token"


@pytest.fixture
def pair(tmp_path):
    return paired(model(), model(seed=1), tmp_path)


@pytest.mark.parametrize("name", ["cross_model", "restore"])
def test_the_source_says_the_answer(pair, name):
    """The base's, as with answer="base"; the tuned side's is what the tuned side gets right."""
    call: Any = getattr(wb.patching, name)
    back = call(pair, TEXTS, direction="base->tuned")
    said = call(pair, TEXTS, direction="base->tuned", answer="base", answer_tokens=1)
    for metric in ("krs", "log_probability", "score"):
        assert torch.equal(value(back, metric), value(said, metric))
    assert any(NOTE.format("base") in note for note in back.provenance.notes)
    there = call(pair, TEXTS)
    scores = there.metric("score").set_index("arm")["value"]
    assert scores["source"] == 1
    assert any(NOTE.format("tuned") in note for note in there.provenance.notes)


def test_each_direction_has_its_own_answer(pair):
    both = wb.patching.cross_model(pair, TEXTS, direction="both")
    scores = both.metric("score")
    assert (scores[scores["arm"] == "source"]["value"] == 1).all()
    assert sum("give no answer" in note for note in both.provenance.notes) == 2


def test_answers_that_are_given_stay(pair):
    """Beside texts; and a text is a prompt whose target the source would say."""
    base, words = pair.base.load(), pair.base.tokenizer()
    made = []
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([words(text)["input_ids"]])
        best = int(base(input_ids=ids).logits[0, -1].argmax())
        made.append(Prompt(str(number), text, f" {words.convert_ids_to_tokens(best)}"))
    plain, given, mixed = (
        wb.patching.cross_model(pair, prompts, direction="base->tuned", sites=["attn_out"])
        for prompts in (TEXTS, made, [made[0], *TEXTS[1:]])
    )
    for one in (given, mixed):
        torch.testing.assert_close(value(plain, "krs"), value(one, "krs"), atol=1e-6, rtol=1e-5)
    assert not any("give no answer" in note for note in given.provenance.notes)
    assert any("3 of 4 prompts give no answer" in note for note in mixed.provenance.notes)


def test_the_lens_and_attribution_across_take_them(pair):
    lens = wb.patching.lens(pair, TEXTS)
    score = lens.metric("score").set_index(["side", "layer"])["value"]
    assert score["tuned", 2] == 1
    assert any(NOTE.format("tuned") in note for note in lens.provenance.notes)
    found = wb.patching.attribution(pair, TEXTS, sides=(), across=True, positions=[-1], exact=2)
    assert np.isfinite(value(found, "attribution")).all()
    assert any(NOTE.format("tuned") in note for note in found.provenance.notes)


@pytest.mark.parametrize("name", ["activation", "path", "circuit", "groups", "attribution"])
def test_what_needs_answers_says_so(pair, name):
    call: Any = getattr(wb.patching, name)
    many = [f"{text}{' .' * i}" for i in range(2) for text in TEXTS]
    with pytest.raises(WorkbenchError, match=r"with answers \(tasks\.Prompt\), found 'the apple"):
        call(pair, many)
    with pytest.raises(WorkbenchError, match=r"with answers \(tasks\.Prompt\), found 'the apple"):
        call(pair, boxes(8), corrupted=many)


def test_a_list_of_prompts_is_a_set_of_them(pair):
    prompts = boxes(6)
    one, other = (
        wb.patching.activation(pair, given, sites=["resid_mid"], controls=0)
        for given in (prompts, PromptSet("prompts", tuple(prompts)).prompts)
    )
    assert torch.equal(value(one, "log_probability"), value(other, "log_probability"))


def test_one_text_is_not_a_list_of_letters(pair):
    for name in ("cross_model", "restore", "lens", "patterns"):
        with pytest.raises(WorkbenchError, match="found the text"):
            getattr(wb.patching, name)(pair, "the apple")
    with pytest.raises(WorkbenchError, match=r"pairs of prompts from tasks\.desiderata"):
        wb.patching.mask(pair, TEXTS)  # pyright: ignore


@pytest.mark.parametrize("given", ["the apple", TEXTS])
def test_a_run_takes_tokens(pair, given):
    base, layout = pair.base.load(), wb.models.Layout(pair.base.load())
    lens = transformer_lens.bridge(base, pair.base.tokenizer())
    calls = (
        lambda: wb.models.run(base, given),
        lambda: nnsight.run(nnsight.wrap(base), given, layout=layout),
        lambda: transformer_lens.run(lens, given, layout=layout),
    )
    for call in calls:
        with pytest.raises(WorkbenchError, match="as a tokenizer gives them"):
            call()
