"""Advantages by plain torch, models that read one step alone, and the sum over steps."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import WORDS, model, no_gradients, paired, table_value
from tests.behaviour.test_faithfulness import prompts
from tests.conftest import nudged
from workbench.behaviour.advantage import _asked, _rows
from workbench.behaviour.worked import worked
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet


def probability(one: torch.nn.Module, prompt: Prompt) -> float:
    """Of the answer, word by word."""
    ids = WORDS(prompt.text)["input_ids"]
    start = len(WORDS(prompt.prompt)["input_ids"])
    p = one(torch.tensor([ids])).logits[0].double().softmax(-1)
    return float(np.prod([float(p[at - 1, ids[at]]) for at in range(start, len(ids))]))


def test_every_number_by_plain_torch(tmp_path: Path):
    """Prompts of four steps and of two, whose answers have one word or two."""
    with torch.no_grad():
        base, tuned = (model(tie_word_embeddings=False) for _ in range(2))
        for one in (base, tuned):
            one.lm_head.weight.mul_(5)
        nudged(tuned, 0.02)
    full = prompts(5)
    short = [p.prompt.split(" .") for p in full]
    given = PromptSet("steps", tuple(
        Prompt(p.id, " .".join([*s[: 3 if i % 2 else 5], s[-1]]), p.target + " 7" * (i % 2))
        for i, (p, s) in enumerate(zip(full, short, strict=True))
    ))  # fmt: skip
    found = wb.behaviour.advantage(paired(base, tuned, tmp_path), given, between=" .", seed=2)
    parts = [p.prompt.split(" .") for p in given]
    order = np.random.default_rng(2).permutation(5).tolist()
    after = dict(pairwise([*order, order[0]]))
    told = {}
    for side, own in (("base", base), ("tuned", tuned)):
        chance, other = np.full((5, 5), np.nan), np.full((5, 5), np.nan)
        for i, (first, *steps, cue) in enumerate(parts):
            theirs = parts[after[i]][1:-1]
            for k in range(len(steps) + 1):
                text = " .".join([first, *steps[:k], cue])
                chance[k, i] = probability(own, Prompt("", text, given[i].target))
                if k:
                    wrong = theirs[min(k, len(theirs)) - 1]
                    text = " .".join([first, *steps[: k - 1], wrong, cue])
                    other[k, i] = probability(own, Prompt("", text, given[i].target))
        for k in range(5):
            value = table_value(found, "probability", side=side, x=k)
            assert value == pytest.approx(np.nanmean(chance[k]), rel=1e-4)
        for k in range(1, 5):
            at = {"side": side, "x": k}
            rise, control = chance[k] - chance[k - 1], other[k] - chance[k - 1]
            for metric, wanted, more in (
                ("advantage", rise, {"arm": "given"}),
                ("advantage", control, {"arm": "another prompt's step"}),
                ("advantage_beyond_other", rise - control, {}),
            ):
                value = table_value(found, metric, **at, **more)
                assert value == pytest.approx(np.nanmean(wanted), rel=1e-3, abs=1e-7)
            told[side, k] = rise
        last = [len(own) - 2 for own in parts]
        told[side, 0] = chance[last, range(5)] - chance[0]
        assert table_value(found, "total", side=side) == pytest.approx(
            told[side, 0].mean(), rel=1e-3
        )
    for k in range(1, 5):
        moved = np.nanmean(told["tuned", k] - told["base", k])
        value = table_value(found, "advantage_change", x=k)
        assert value == pytest.approx(moved, rel=1e-3, abs=1e-7)
    moved = (told["tuned", 0] - told["base", 0]).mean()
    assert table_value(found, "total_change") == pytest.approx(moved, rel=1e-3, abs=1e-7)


def test_a_model_that_reads_the_last_step_gains_all_by_it():
    """Its answer is right where the last step before the cue is the prompt's own last."""
    given = prompts(6)
    parts = [worked(p, " .") for p in given]
    chance = np.full((2, 2, 5, 6), np.nan)
    for arm, k, number, asked in _asked(given, parts, " .", 0):
        step = worked(asked, " .").steps[-1] if k else ""
        chance[:, arm, k, number] = float(step == parts[number].steps[-1])
    rows = [*_rows(chance, [4] * 6, 0)]
    at = {(r["metric"], r.get("side"), r.get("arm"), r.get("x")): r["value"] for r in rows}
    for k in range(1, 5):
        assert at["advantage", "base", "given", k] == (k == 4)
        assert at["advantage", "base", "another prompt's step", k] == 0
    assert at["total", "tuned", None, None] == 1


def test_advantages_add_up_and_one_model_differs_nowhere(tmp_path: Path):
    found = wb.behaviour.advantage(paired(model(), model(), tmp_path), prompts(), between=" .")
    rows = found.metric("advantage")
    rows = rows[(rows["arm"] == "given") & (rows["side"] == "tuned")]
    assert rows["value"].sum() == pytest.approx(table_value(found, "total", side="tuned"))
    for metric in ("advantage_change", "total_change"):
        assert (found.metric(metric)[["value", "low", "high"]] == 0).all(axis=None)


def test_one_prompt_and_prompts_without_steps_are_refused(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    with pytest.raises(WorkbenchError, match=re.escape("2 prompts or more")):
        wb.behaviour.advantage(pair, prompts(1), between=" .")
    with pytest.raises(WorkbenchError, match="give the text between"):
        wb.behaviour.advantage(pair, prompts(3), between=" ;; ")


__all__ = ["no_gradients"]
