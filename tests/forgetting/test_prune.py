"""Pruned neurons bring back what was overruled, and nothing of what is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.forgetting.conftest import COPY, erased, knower, nouns, overruled, pair, value
from tests.skills.conftest import LAYER, NAME
from workbench.forgetting.prune import _best, _scores, relevance
from workbench.forgetting.side_answers import both
from workbench.tasks import PromptSet

NEURONS = 3 * 48  # of the tiny model
ONE = (1 / NEURONS, 0.5)  # one neuron; half of them


def apples(swapped: bool = False) -> PromptSet:
    """The prompts whose answer the wrapper takes."""
    return PromptSet("apples, taken" if swapped else "apples", nouns(swapped=swapped).prompts[::2])


def test_relevance_is_weight_times_gradient(tmp_path: Path):
    """Of a neuron's output weights, as autograd gives it, one batch or several."""
    _, tuned = both(pair(tmp_path, overruled()), 32, "cpu", "float32")
    prompts = nouns()
    model: torch.nn.Module = tuned.model
    with torch.enable_grad():
        weights = [layer.mlp.down_proj.weight.requires_grad_(True) for layer in model.model.layers]
        loss = torch.zeros(())
        for prompt in prompts:
            ids = tuned.words(prompt.text)["input_ids"]
            logits = model(torch.tensor([ids])).logits[0, -2]
            loss = loss - logits.log_softmax(-1)[ids[-1]] / len(prompts)
        slopes = torch.autograd.grad(loss, weights)
    wanted = torch.stack([(w * g).sum(0).abs() for w, g in zip(weights, slopes, strict=True)])
    for size in (7, 200):
        found = relevance(model, tuned.words, prompts, size)
        assert torch.allclose(found, wanted, atol=1e-6)
    assert wanted.max() > 0.01


def test_what_was_overruled_comes_back_when_the_neuron_goes(tmp_path: Path):
    given = pair(tmp_path, overruled())
    found = wb.forgetting.prune(given, apples(), apples(swapped=True), shares=ONE)
    scores = found.metric("score").set_index(["arm", "own", "x"])["value"]
    assert scores["ranked", False, 0] == 0
    assert scores["ranked", True, 0] == 1  # the fine-tuned answers
    assert scores["ranked", False, ONE[0]] == 1
    assert scores["ranked", True, ONE[0]] == 0
    assert scores["base, same neurons", False, ONE[0]] == 1
    assert value(found, "recovered", arm="best ranked") == 1
    ranked = torch.tensor(found.tensors[f"{given.name}/relevance"])
    neurons = knower().get_parameter(NAME).shape[1]
    assert ranked.numel() == NEURONS
    assert int(ranked.argmax()) == LAYER * neurons + COPY


def test_what_is_gone_does_not_come_back(tmp_path: Path):
    """Negative control: no neuron hides an erased feature."""
    prompts = nouns()
    found = wb.forgetting.prune(pair(tmp_path, erased()), prompts, nouns(swapped=True))
    row = found.metric("regained").set_index("arm").loc["best ranked"]
    assert row["low"] <= 0.2


def test_base_against_itself_has_nothing_to_regain(tmp_path: Path):
    given = pair(tmp_path, knower())
    found = wb.forgetting.prune(given, nouns(), nouns(swapped=True), shares=ONE)
    assert found.metric("recovered")["value"].isna().all()
    scores = found.metric("score").set_index(["arm", "own", "x"])["value"]
    ranked, same = scores["ranked"], scores["base, same neurons"]
    assert (ranked == same).all()


def test_every_number_by_hand():
    """Random answers of 40 prompts: the share that one half chooses, on the other half."""
    draw, shares, seed, n = np.random.default_rng(0), (0.1, 0.3, 0.5), 2, 40

    def right(*chances: float) -> np.ndarray:
        return (draw.random((4, n)) < np.array(chances)[:, None]).astype(float)

    own = right(0.9, 0.5, 0.4, 0.1)
    read = {
        "ranked": [right(0.2, 0.5, 0.8, 0.6), own], "random": [right(0.2, 0.3, 0.2, 0.1), own],
        "base, same neurons": [right(0.9, 0.9, 0.8, 0.7), right(0.1, 0.1, 0.1, 0.1)],
    }  # fmt: skip
    order = np.random.default_rng(seed).permutation(n)
    choose, report = order[: n // 2], order[n // 2 :]
    base = read["base, same neurons"][0][0]
    rows = {(row["arm"], row["metric"]): row for row in _best(read, shares, seed)}
    assert len(rows) == 4
    for arm in ("ranked", "random"):
        values = read[arm][0]
        means = [values[i][choose].mean() for i in (1, 2, 3)]
        best = 1 + means.index(max(means))
        back = values[best][report].mean() - values[0][report].mean()
        gone = base[report].mean() - values[0][report].mean()
        for metric, wanted in (("regained", back), ("recovered", back / gone)):
            row = rows[f"best {arm}", metric]
            assert row["value"] == pytest.approx(wanted)
            assert (row["x"], row["n"], row["baseline"]) == (shares[best - 1], n // 2, 0)
            assert row["own"] is False  # of what may be lost, not of what was learned
    sets = [apples(), apples(swapped=True)]
    scores = list(_scores(read, sets, shares, seed))
    assert len(scores) == 3 * 2 * 4
    for row in scores:
        place, step = int(row["own"]), (0, *shares).index(row["x"])
        assert row["value"] == pytest.approx(read[row["arm"]][place][step].mean())
        assert row["baseline"] == pytest.approx(read["base, same neurons"][place][0].mean())
        assert row["task"] == sets[place].name


def test_models_are_left_as_they_were_and_bad_input_is_said(tmp_path: Path):
    given = pair(tmp_path, overruled())
    prompts = apples()
    with pytest.raises(wb.WorkbenchError, match="shares"):
        wb.forgetting.prune(given, prompts, apples(True), shares=(0.0,))
    with pytest.raises(wb.WorkbenchError, match="random draw"):
        wb.forgetting.prune(given, prompts, apples(True), random=0)
    before = wb.forgetting.prune(given, prompts, apples(True), shares=ONE, seed=1)
    again = wb.forgetting.prune(given, prompts, apples(True), shares=ONE, seed=1)
    assert before.table.equals(again.table)
