"""Gains by plain autograd and by the real step, and a change that one example wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import WORDS, boxes, model, paired, table_value
from tests.conftest import nudged
from workbench.behaviour.gain import _others, written
from workbench.errors import WorkbenchError
from workbench.models.gradient_step import answer_gradients, moved
from workbench.tasks import Prompt, PromptSet, facts

HELD = boxes(4)
LESSONS = PromptSet("lessons", facts(5, seed=2, split="train").prompts)
MATRIX = {"llama": "model.layers.1.mlp.up_proj.weight", "gpt2": "transformer.h.1.mlp.c_fc.weight"}


def loss(one: Any, prompts: list[Prompt]) -> torch.Tensor:
    """Mean of -log p(answer), a prompt at a time."""
    total = torch.zeros(())
    for prompt in prompts:
        ids = torch.tensor([WORDS(prompt.text)["input_ids"]])
        start = len(WORDS(prompt.prompt)["input_ids"])
        said = one(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        total = total - said.gather(1, ids[0, start:, None]).sum()
    return total / len(prompts)


def slopes(one: Any, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    one.zero_grad()
    with torch.enable_grad():
        loss(one, prompts).backward()
    return {n: p.grad.clone() for n, p in one.named_parameters() if p.grad is not None}


def inner(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(sum((first[n] * second[n]).sum() for n in first))


def test_every_number_by_plain_autograd(tmp_path: Path):
    base, tuned = model(), nudged(model(), 0.02)
    found = wb.behaviour.gain(
        paired(base, tuned, tmp_path), HELD, LESSONS, lr=0.01, checked=3, directions=2, seed=4
    )
    held = slopes(base, list(HELD))
    mixed = _others(LESSONS, 4)
    told: dict[str, list[float]] = {"given": [], "answers of others": []}
    for arm, of in (("given", LESSONS), ("answers of others", mixed)):
        for one in of:
            told[arm].append(0.01 * inner(slopes(base, [one]), held))
            value = table_value(found, "gain", arm=arm, prompt=one.id)
            assert value == pytest.approx(told[arm][-1], rel=1e-4, abs=1e-8)
    for arm, values in told.items():
        rows = found.metric("gain")
        rows = rows[(rows["arm"] == arm) & rows["prompt"].isna()]
        assert rows["value"].item() == pytest.approx(np.mean(values), rel=1e-4)
        control = np.mean(told["answers of others"])
        assert rows["baseline"].item() == pytest.approx(control, rel=1e-4)
    beyond = np.subtract(told["given"], told["answers of others"]).mean()
    assert table_value(found, "gain_beyond_others") == pytest.approx(beyond, rel=1e-4)
    # The real steps, taken by hand.
    rows = found.metric("real_gain")
    assert len(rows) == 3
    measured, products = [], []
    for name in rows["prompt"]:
        one = next(p for p in LESSONS if p.id == name)
        own = slopes(base, [one])
        other = model()
        with torch.no_grad():
            for key, parameter in other.named_parameters():
                parameter -= 0.01 * own[key]
            measured.append(float(loss(base, list(HELD)) - loss(other, list(HELD))))
        products.append(0.01 * inner(own, held))
        value = table_value(found, "real_gain", prompt=name)
        assert value == pytest.approx(measured[-1], rel=1e-2, abs=2e-6)
    agreement = sum(measured) / sum(products)
    assert table_value(found, "agreement") == pytest.approx(agreement, rel=1e-2)
    order = [sorted(part).index(v) for part in (measured, products) for v in part]
    ranks = np.corrcoef(order[:3], order[3:])[0, 1]
    assert table_value(found, "rank_agreement") == pytest.approx(ranks)
    # Directions: the largest singular values of all matrices of the change.
    changes = {
        n: (dict(tuned.named_parameters())[n] - p).detach() for n, p in base.named_parameters()
        if p.ndim == 2 and "layers" in n
    }  # fmt: skip
    parts = {n: torch.linalg.svd(c, full_matrices=False) for n, c in changes.items()}
    most = sorted(((float(s[r]), n, r) for n, (_, s, _) in parts.items() for r in range(2)))[-2:]
    assert sorted(found.metric("sigma")["value"]) == pytest.approx(
        [v for v, _, _ in most], rel=1e-4
    )
    for _, name, rank in most:
        u, _, vh = parts[name]
        layer, component = int(name.split(".")[2]), ".".join(name.split(".")[3:5])
        at = {"layer": layer, "component": component, "rank": rank}
        values = []
        for one in LESSONS:
            own = slopes(base, [one])[name]
            values.append(-float(u[:, rank] @ own @ vh[rank]) / float(own.norm()))
            value = table_value(found, "written", prompt=one.id, **at)
            assert value == pytest.approx(values[-1], abs=1e-5)
        mean = found.metric("written")
        mean = mean[mean["prompt"].isna()]
        for column, wanted in at.items():
            mean = mean[mean[column] == wanted]
        assert mean["value"].item() == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize("kind", MATRIX)
def test_the_example_that_wrote_a_change_is_found(kind: str, tmp_path: Path):
    """The member is the base after one step on the third example, of one matrix alone."""
    base, tuned = model(kind), model(kind)
    step = -slopes(base, [LESSONS[2]])[MATRIX[kind]]
    with torch.no_grad():
        dict(tuned.named_parameters())[MATRIX[kind]].add_(step)
    found = wb.behaviour.gain(paired(base, tuned, tmp_path), HELD, LESSONS, checked=0, directions=1)
    values = torch.linalg.svdvals(step)
    share = float(values[0] / step.norm())
    assert table_value(found, "sigma") == pytest.approx(float(values[0]), rel=1e-3)
    rows = found.metric("written").dropna(subset=["prompt"]).set_index("prompt")["value"]
    assert rows.abs().idxmax() == LESSONS[2].id
    assert rows[LESSONS[2].id] == pytest.approx(share, abs=1e-3)
    random = found.metric("written").dropna(subset=["prompt"])["baseline"].abs()
    assert random.max() < share / 2


def test_a_small_step_gains_what_the_product_tells(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    off = [
        abs(table_value(wb.behaviour.gain(pair, HELD, LESSONS, lr=lr), "agreement") - 1)
        for lr in (0.3, 0.001)
    ]
    assert off[1] < 0.05 < off[0]


def test_without_a_change_and_with_one_answer_there_is_nothing_to_tell(tmp_path: Path):
    """No direction changed; and where all examples have one answer, others' answers are theirs."""
    pair = paired(model(), model(), tmp_path)
    alike = PromptSet("alike", tuple(replace(p, target=" apple") for p in LESSONS))
    found = wb.behaviour.gain(pair, HELD, alike, checked=0)
    assert not found.has("written")
    rows = found.metric("gain_beyond_others")[["value", "low", "high"]]
    assert (rows == 0).all(axis=None)


def test_the_model_is_as_it_was(tmp_path: Path):
    one = model()
    before = {name: p.detach().clone() for name, p in one.named_parameters()}
    one.train()
    total, own = answer_gradients(one, WORDS, list(HELD), batch_size=2)
    assert one.training
    assert total == pytest.approx(float(loss(one.eval(), list(HELD)).detach()), rel=1e-5)
    with moved(one, lambda name, _: -own[name]):
        assert any(not torch.equal(p, before[n]) for n, p in one.named_parameters())
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in one.named_parameters())
    assert all(p.grad is None for p in one.parameters())


def test_written_by_hand():
    gradient = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    e = torch.eye(2)
    assert written(gradient, e[0], e[0]) == pytest.approx(-3 / 5)
    assert written(gradient, -e[1], e[1]) == pytest.approx(4 / 5)
    assert np.isnan(written(torch.zeros(2, 2), e[0], e[1]))


def test_too_few_examples_are_refused(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    for given in ({"lessons": LESSONS[:1]}, {"lr": 0.0}, {"prompts": HELD[:0]}):
        with pytest.raises(WorkbenchError, match=re.escape("2 examples or more")):
            wb.behaviour.gain(pair, **({"prompts": HELD, "lessons": LESSONS} | given))
