"""Repair finds the planted edit, chooses on one half, and reports what is so on the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.skills.conftest import (  # noqa: F401
    APPLE,
    PLACES,
    asked,
    member,
    mute,
    no_gradients,
    paired,
    planted,
)
from workbench.edits import edits, save
from workbench.edits.repair import chosen
from workbench.errors import WorkbenchError
from workbench.tasks import PromptSet

TEXTS = [" ".join(["coin"] * (4 + n)) for n in range(24)]  # what the base says to everything


def rows(result: wb.Result, arm: str, metric: str):
    table = result.table
    return table[(table["arm"] == arm) & (table["metric"] == metric)]


def only(result: wb.Result, arm: str, metric: str, **where: object) -> float:
    found = rows(result, arm, metric)
    for column, value in where.items():
        found = found[found[column] == value]
    (value,) = found["value"]
    return float(value)


def test_the_least_loss_among_those_that_keep_the_score():
    loss, score = np.array([3.0, 1.0, 2.0, 2.5]), np.array([0.9, 0.5, 0.885, 0.95])
    assert chosen(loss, score, 0.02) == 2
    assert chosen(loss, score, 0.5) == 1
    assert chosen(loss, np.array([0.9, 0.5, 0.5, 0.5]), 0.02) == 0
    assert chosen(np.array([1.0, 1.0, 2.0, 2.0]), score, 0.02) == 0  # nothing is better


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> wb.CheckpointPair:
    """One large entry answers the task, small noise everywhere harms the rest."""
    with torch.no_grad():
        return planted(tmp_path_factory.mktemp("harmed"), {(APPLE, PLACES): 40.0}, noise=0.3)


@pytest.fixture(scope="module")
def repaired(harmed: wb.CheckpointPair) -> wb.Result:
    return wb.edits.repair(
        harmed, asked(PLACES, "apple", 150), texts=TEXTS, arms=("movement", "random"),
        strengths=(1e-4, 0.5),
    )  # fmt: skip


def test_what_was_planted_is_repaired_and_its_control_is_not(repaired: wb.Result):
    """The largest entries hold the skill, all others the harm: keeping those alone gives back all
    of the loss at no cost, which neither random entries nor a smaller change do."""
    table = repaired.table.set_index(["arm", "metric"])["value"]
    assert only(repaired, "movement", "chosen_regained") == pytest.approx(1, abs=0.05)
    assert only(repaired, "movement", "chosen_score_change") == 0
    assert only(repaired, "movement", "recommended") == 1
    beyond = rows(repaired, "movement", "chosen_loss_beyond").iloc[0]
    assert beyond["high"] < 0
    assert table["movement", "recommended"] == 1
    for arm in ("alpha", "random"):
        assert only(repaired, arm, "chosen_regained") < 0.9


def test_rows_are_what_the_written_model_does(
    repaired: wb.Result, harmed: wb.CheckpointPair, tmp_path: Path
):
    """`forgetting.retention` of the saved model measures the same score and loss."""
    out = save(edits(harmed, "alpha")(0.5), tmp_path / "half")
    again = wb.load_pair(str(harmed.base.reference), out)
    prompts = asked(PLACES, "apple", 150)
    found = wb.forgetting.retention(again, [prompts], texts=TEXTS).table
    score = found[(found["metric"] == "score") & (found["task"] == prompts.name)]["value"].item()
    loss = found[found["metric"] == "loss"]["value"].item()
    assert only(repaired, "alpha", "score", x=0.5) == score
    assert only(repaired, "alpha", "loss", x=0.5) == pytest.approx(loss, rel=1e-5)
    kept = wb.forgetting.retention(harmed, [prompts], texts=TEXTS).table
    kept = kept[kept["metric"] == "loss"].iloc[0]
    assert only(repaired, "tuned", "loss") == pytest.approx(kept["value"], rel=1e-5)
    assert only(repaired, "base", "loss") == pytest.approx(kept["baseline"], rel=1e-5)


def test_the_reported_half_did_not_choose(harmed: wb.CheckpointPair):
    """The change of the loss by hand, over the half of the texts that `stats.halves` leaves."""
    prompts = asked(PLACES, "apple", 24)
    result = wb.edits.repair(
        harmed, prompts, texts=TEXTS, arms=("alpha",), strengths=(0.5,), cost=1
    )
    from workbench.stats import halves
    from workbench.tasks.measurements import losses

    words = harmed.base.tokenizer()
    model = harmed.base.load().eval()
    with edits(harmed, "alpha")(0.5).on(model) as half:
        now = losses(half, words, TEXTS)
    with edits(harmed, "alpha")(1.0).on(model) as whole:
        before = losses(whole, words, TEXTS)
    at_base = losses(model, words, TEXTS)
    _, report = halves(len(TEXTS), 0)
    weights = now.weights[report]
    moved = np.average((now.values - before.values)[report], weights=weights)
    rise = np.average((before.values - at_base.values)[report], weights=weights)
    assert only(result, "alpha", "chosen_loss_change") == pytest.approx(moved, rel=1e-5)
    assert only(result, "alpha", "chosen_regained") == pytest.approx(-moved / rise, rel=1e-5)
    assert rows(result, "alpha", "chosen_loss_change")["n"].item() == len(report)
    # Twelve prompts cannot show that the score is kept.
    assert only(result, "alpha", "recommended") == 0


def test_a_model_that_changed_nothing_has_nothing_to_repair(tmp_path: Path):
    pair = paired(mute(), member({}), tmp_path)
    result = wb.edits.repair(pair, asked(PLACES, "coin", 8), texts=TEXTS[:8], arms=("intruders",))
    assert only(result, "alpha", "chosen_loss_change") == 0
    assert np.isnan(only(result, "alpha", "chosen_regained"))
    assert any("nothing to give back" in note for note in result.provenance.notes)
    assert only(result, "intruders", "recommended") == 0


def test_what_cannot_be_asked_is_refused_before_any_work(harmed: wb.CheckpointPair):
    refused: tuple[tuple[PromptSet, dict[str, Any], str], ...] = (
        (asked(PLACES, "apple", 4), {}, "8 prompts or more"),
        (asked(PLACES, "apple", 8), {"texts": TEXTS[:3]}, "8 texts or more"),
        (asked(PLACES, "apple", 8), {"arms": ("surgery",)}, "kind of edit among"),
        (asked(PLACES, "apple", 8), {"strengths": (2.0,), "arms": ("movement",)}, "share from 0"),
    )
    for prompts, more, said in refused:
        with pytest.raises(WorkbenchError, match=said):
            wb.edits.repair(harmed, prompts, **more)
