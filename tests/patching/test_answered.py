"""Choices in patching: right where the answer beats its foils, whatever else would be said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import tasks
from workbench.demo import FAMILY
from workbench.errors import WorkbenchError
from workbench.patching.answered import answered
from workbench.tasks import Choices, Generation, Loss, Prompt, PromptSet

BASE, FULL = FAMILY / "base", FAMILY / "lora-r1"


@pytest.fixture(scope="module")
def pair() -> wb.CheckpointPair:
    return wb.load_pair(BASE, FULL)


def chosen(n: int = 24) -> PromptSet:
    """Questions about facts, each with words of the same kind to choose from."""
    return replace(tasks.facts(n, seed=3), scorer=Choices())


def test_the_ends_of_a_patch_are_the_choices_of_the_two_models(pair: wb.CheckpointPair):
    prompts, words = chosen(), pair.base.tokenizer()
    found = wb.patching.cross_model(pair, prompts, sites=["resid_post"], positions=[-1])
    table = found.table
    seen = 0
    for side, checkpoint in (("base", pair.base), ("tuned", pair.tuned)):
        truth = tasks.answers(checkpoint.load(dtype=torch.float32), words, prompts)
        for direction in dict.fromkeys(table["direction"].dropna()):
            arm = "source" if direction.startswith(side) else "destination"
            own = table[(table["arm"] == arm) & (table["direction"] == direction)]
            own = own.set_index("metric")["value"]
            assert own["score"] == pytest.approx(truth["correct"].mean())
            assert own["logit_difference"] == pytest.approx(truth["margin"].mean(), abs=1e-4)
            seen += 1
    assert seen >= 2


def test_what_the_model_would_rather_say_does_not_count(pair: wb.CheckpointPair):
    """Words that are never said: no greedy answer is right, some choices are."""
    words = pair.base.tokenizer()
    never = [
        Prompt(p.id, p.prompt, " pasta", (" brown", " snake")) for p in tasks.facts(30, seed=4)
    ]
    own = PromptSet("never", tuple(never), scorer=Choices())
    scores = {}
    for name, one in (("choices", own), ("plain", PromptSet("never", tuple(never)))):
        found = wb.patching.lens(pair, one).table
        rows = found[(found["metric"] == "score") & found["side"].eq("base")]
        scores[name] = rows["value"].to_numpy()[-1]
    model = pair.base.load(dtype=torch.float32)
    assert tasks.answers(model, words, own)["correct"].mean() > scores["plain"]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (replace(tasks.facts(4, seed=0), scorer=Generation()), "is scored by generation"),
        (replace(tasks.facts(4, seed=0), scorer=Loss()), "is scored by loss"),
        (
            PromptSet("long", (Prompt("a", "Vera has", " a pet snake", (" a pet",)),),
                      scorer=Choices()),
            "prompt 'a' ' a pet snake' has several",
        ),
        (
            PromptSet("same", (Prompt("a", "Vera has", " snake", (" snake",)),), scorer=Choices()),
            "two answers are the same",
        ),
    ],
)  # fmt: skip
def test_what_one_run_does_not_tell_is_refused(pair: wb.CheckpointPair, prompts, said: str):
    with pytest.raises(WorkbenchError, match=said):
        answered(pair.base.tokenizer(), prompts)


def test_shares_of_choices_are_between_the_two_models(pair: wb.CheckpointPair):
    found = wb.patching.restore(pair, chosen()).table
    scores = found[found["metric"] == "score"]["value"].to_numpy(float)
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 1)).all()
