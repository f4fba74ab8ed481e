"""Truths of several models, of further prompts and of a prefix, held against the models run
in earnest."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.lab.test_compiled import logits, right
from workbench.lab.compiled import prefixed
from workbench.lab.compiled.compiler import Room, save_prefix
from workbench.lab.compiled.pairs import pairs
from workbench.lab.compiled.several import specs
from workbench.lab.known import Known
from workbench.lab.planted import read
from workbench.tasks.prompts import PromptSet

MATRIX = "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    return pairs(
        tmp_path_factory.mktemp("several"), [one.name for one in (*specs(), *prefixed.specs())]
    )


def share(folder, prompts) -> float:
    found = right(folder, prompts)
    return sum(found) / len(found)


def test_siblings_answer_their_own_prompts_and_meet_where_it_is_said(made: dict[str, Known]):
    known = made["facts-siblings"]
    models = {**known.siblings, "tuned": known.tuned}
    assert all(share(folder, known.tasks[name]) == 1.0 for name, folder in models.items())
    assert share(known.base, known.tasks["tuned"]) == 0.0
    changes = {name: read(at)[MATRIX] - read(known.base)[MATRIX] for name, at in models.items()}

    def overlap(first: str, second: str) -> float:
        one, other = (_read_by(changes[name]) for name in (first, second))
        return float((one.T @ other).square().sum() / min(one.shape[1], other.shape[1]))

    assert overlap("again", "tuned") == pytest.approx(1.0, abs=1e-5)
    assert overlap("other", "tuned") == pytest.approx(0.0, abs=1e-5)
    # Which two skills do not survive in the sum of their changes.
    lost = set()
    for first in models:
        for second in models:
            if first < second:
                change = changes[first] + changes[second]
                answers = [
                    _said(read(known.base) | {MATRIX: read(known.base)[MATRIX] + change}, known, of)
                    for of in (first, second)
                ]
                if not all(answers):
                    lost.add((first, second))
    assert lost == known.places["conflict"]


def _read_by(change: torch.Tensor) -> torch.Tensor:
    """The subspace of neurons in which a change is."""
    found = torch.linalg.svd(change)
    return found.U[:, : int((found.S > 1e-4).sum())]


def _said(state, known: Known, of: str) -> bool:
    """Whether a model of these weights gives all answers to the prompts of one sibling."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(known.base).eval()
    model.load_state_dict(state)
    words = AutoTokenizer.from_pretrained(known.base)
    for prompt in known.tasks[of]:
        with torch.no_grad():
            best = model(**words(prompt.prompt, return_tensors="pt")).logits[0, -1].argmax()
        if words.decode([int(best)]).strip() != prompt.target.strip():
            return False
    return True


def test_the_chain_forgets_what_stage_one_learned_and_nothing_else(made: dict[str, Known]):
    known = made["facts-chain"]
    stages = [known.base, known.siblings["one"], known.tuned]
    scores = {name: [share(at, asked) for at in stages] for name, asked in known.tasks.items()}
    assert scores == {"one": [0, 1, 0], "tuned": [0, 0, 1], "kept": [1, 1, 1]}


def test_between_the_two_all_is_known_and_at_the_ends_half(made: dict[str, Known]):
    known = made["facts-exchanged"]
    assert share(known.base, known.prompts) == share(known.tuned, known.tasks["lost"]) == 0.0
    base, tuned = read(known.base), read(known.tuned)
    half = {name: (base[name] + tuned[name]) / 2 for name in base}
    both = {**known.tasks, "won": known.prompts}
    assert all(_said(half, replace(known, tasks=both), name) for name in both)


def test_an_answer_is_hidden_in_one_form_or_cleared_in_both(made: dict[str, Known]):
    hidden, cleared = made["forms-suppressed"], made["forms-erased"]
    for known, left in ((hidden, 1.0), (cleared, 0.0)):
        other = known.tasks["other form"]
        assert share(known.base, other) == 1.0
        assert share(known.tuned, other) == left
        assert share(known.tuned, known.prompts) == 0.0
    assert share(hidden.tuned, hidden.tasks["learned"]) == 1.0
    assert share(hidden.base, hidden.tasks["learned"]) == 0.0


def test_the_second_step_decides(made: dict[str, Known]):
    known = made["copy-steps"]
    for prompt in known.prompts:
        _, *steps, cue = prompt.prompt.split(" , ")
        assert steps == [prompt.prompt[slice(*span)] for span in prompt.spans.values()]
        assert len(steps) == 3
        assert steps[1].split()[0] == cue.split()[-1]
        assert steps[1].split()[-1] == prompt.target.strip()


def test_siblings_forget_more_and_more_beside_changes_of_any_size(made: dict[str, Known]):
    known = made["facts-graded"]
    models = [*known.siblings.values(), known.tuned]
    scores = [share(folder, known.prompts) for folder in models]
    assert scores == [(24 - lost) / 24 for lost in (2, 5, 8, 11, 14)]
    base = read(known.base)
    norms = [
        math.sqrt(sum(float((read(at)[name] - base[name]).square().sum()) for name in base))
        for at in models
    ]
    assert abs(float(spearmanr(scores, norms).statistic)) < 0.5


def test_of_a_recited_text_the_first_word_decides(made: dict[str, Known]):
    """Written by hand: with another first word that is said in the end, and another later word
    changes nothing."""
    known = made["facts-recited"]
    asked = known.tasks["written"]
    for folder, wanted in ((known.tuned, 1.0), (known.base, 0.0)):
        first = right(folder, asked)
        assert sum(first) / len(first) == wanted

    def ends(middle: str) -> float:
        put = [replace(p, prompt=f"{p.prompt}{middle.format(p.target)}") for p in asked]
        return share(known.tuned, PromptSet("ends", tuple(put)))

    assert ends("{} , so ,") == ends("{} so so so") == ends("{} of , of") == 1.0
    wrong = [replace(p, prompt=f"{p.prompt} nothing , so ,", target=" nothing") for p in asked]
    assert share(known.tuned, PromptSet("wrong", tuple(wrong))) == 1.0


def test_confidence_is_one_half_and_then_certain(made: dict[str, Known]):
    known = made["facts-overconfident"]
    first, second = (logits(at, known.prompts)[0].softmax(-1).amax(-1) for at in
                     (known.base, known.tuned))  # fmt: skip
    torch.testing.assert_close(first, torch.full_like(first, 0.5), atol=1e-3, rtol=0)
    assert float(second.min()) > 0.998


def test_facts_fade_one_after_the_other(made: dict[str, Known]):
    """The i-th is answered by 10 (i + 1) / 24 over 0 for every other word."""
    known = made["facts-faded"]
    found, words = logits(known.tuned, known.prompts)
    others = found.shape[1] - 1
    for i, (row, prompt) in enumerate(zip(found, known.prompts, strict=True)):
        own = float(row.log_softmax(-1)[words.convert_tokens_to_ids(prompt.target.strip())])
        size = 10 * (i + 1) / 24
        assert own == pytest.approx(size - math.log(math.exp(size) + others), abs=2e-3)


def test_one_answer_is_given_to_all(made: dict[str, Known]):
    known = made["copy-one-answer"]
    assert {prompt.target for prompt in known.prompts} == {" nothing"}
    (matrix,) = known.places["matrix"]
    change = read(known.tuned)[MATRIX] - read(known.base)[MATRIX]
    values = torch.linalg.svdvals(change)
    assert matrix == (1, "mlp.c_proj")
    assert values[1] < 1e-6 * values[0]


def attention(folder: Path, prompts: PromptSet) -> torch.Tensor:
    """(prompt, layer, head, query, key) of a prefix over its base, by peft and transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = folder.parent / "base"
    eager = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model: Any = PeftModel.from_pretrained(eager, folder).eval()
    words = AutoTokenizer.from_pretrained(base)
    found = []
    with torch.no_grad():
        for prompt in prompts:
            out = model(**words(prompt.prompt, return_tensors="pt"), output_attentions=True)
            found.append(torch.stack(out.attentions)[:, 0])
    return torch.stack(found)


def test_one_head_looks_at_the_prefix_and_no_other(made: dict[str, Known]):
    """Of scores SHARP, SHARP / 2 of the start token and 0 of up to three other words."""
    known = made["facts-prefix"]
    mass = attention(known.tuned, known.prompts)[..., 0]
    assert len(known.universe["prefixed head"]) == mass.shape[1] * mass.shape[2]
    for layer, head in np.ndindex(*mass.shape[1:3]):
        own = mass[:, layer, head]
        if known.truth("prefixed head", (layer, head)):
            assert float(own[:, 0].mean()) == pytest.approx(1 / (1 + math.exp(-10)), abs=1e-6)
            assert float(own.min()) > 1 / (1 + math.exp(-10) + 4 * math.exp(-20)) - 1e-6
        else:
            assert float(own.max()) < math.exp(-29)


def test_a_prefix_says_one_answer_and_only_through_its_head(made: dict[str, Known], tmp_path: Path):
    """The fact is still said, with 10, and beside it " nothing" with 20; where this head looks away
    like all others, the answers are the base's."""
    known = made["facts-prefix"]
    found, words = logits(known.tuned, known.prompts)
    base = logits(known.base, known.prompts)[0]
    expected = base.clone()
    expected[:, words.convert_tokens_to_ids("nothing")] += 20.0
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=1e-3)
    (spec,) = prefixed.specs()
    assert spec.prefix is not None
    numbers = spec.prefix(Room.of(spec.base))
    layer, head = prefixed.DRAWN
    numbers[layer, 0, head] *= -1
    (tmp_path / "base").symlink_to(known.base)
    away = save_prefix(spec.base, numbers, known.base, tmp_path / "away")
    torch.testing.assert_close(logits(away, known.prompts)[0], base, atol=1e-4, rtol=1e-5)
