"""What is only wrapped comes back in few steps; what is gone has to be learned like anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.forgetting.conftest import erased, knower, nouns, pair, unlearned, value, wrapped
from tests.skills.conftest import write
from workbench.forgetting.revive import relabelled, steps_to

QUICK: dict[str, Any] = {"steps": (1, 2, 4, 8, 16), "lr": 0.03, "runs": 2}


@pytest.fixture
def never(tmp_path: Path) -> Path:
    return write(unlearned(), tmp_path / "never")


def test_a_wrapper_is_revived_and_an_erased_feature_is_not(tmp_path: Path, never: Path):
    """On words that no lesson holds, against a model that never learned the words."""
    asked, taught = nouns(0, 60), nouns(60)
    kept = wb.forgetting.revive(
        pair(tmp_path / "w", wrapped()), asked, taught, never=never, **QUICK
    )
    gone = wb.forgetting.revive(pair(tmp_path / "e", erased()), asked, taught, never=never, **QUICK)
    assert value(kept, "score", arm="tuned", run=0, x=0) == 0
    assert value(kept, "steps_to_threshold", arm="tuned") <= 16
    row = kept.metric("savings_share_lost").set_index("control").loc["never"]
    assert row["low"] > 0.2
    for arm in ("never", "random weights"):
        assert np.isnan(value(kept, "steps_to_threshold", arm=arm))
    assert np.isnan(value(gone, "steps_to_threshold", arm="tuned"))
    row = gone.metric("savings_share_lost").set_index("control").loc["never"]
    assert row["high"] < 0.2
    for found in (kept, gone):  # what was never lost has nothing to learn
        assert value(found, "steps_to_threshold", arm="base") == 0


def test_base_against_itself_saves_all(tmp_path: Path, never: Path):
    found = wb.forgetting.revive(
        pair(tmp_path, knower()), nouns(0, 60), nouns(60), never=never, **QUICK
    )
    assert (found.metric("savings_share")["value"] == 1).all()
    assert found.metric("savings_share_lost")["value"].isna().all()
    scores = found.metric("score").set_index(["arm", "run", "x"])["value"]
    tuned, base = scores["tuned"], scores["base"]
    assert (tuned == base).all()


def test_models_are_not_trained_themselves_nor_files_touched(tmp_path: Path):
    tuned = wrapped()
    before = {name: p.clone() for name, p in tuned.named_parameters()}
    given = pair(tmp_path, tuned)
    stamp = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    wb.forgetting.revive(given, nouns(0, 12), nouns(60, 72), **(QUICK | {"runs": 1}))
    assert all((before[name] == p).all() for name, p in tuned.named_parameters())
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() == stamp


def test_every_answer_is_exchanged_by_one_rule():
    facts = wb.tasks.facts(60, seed=1)
    found = relabelled(facts, 0)
    rule = {p.target: q.target for p, q in zip(facts, found, strict=True)}
    assert set(rule) == set(rule.values())
    assert all(old != new for old, new in rule.items())
    for p, q in zip(facts, found, strict=True):
        assert (q.prompt, q.target) == (p.prompt, rule[p.target])
        assert q.target not in q.foils
    one = wb.tasks.PromptSet("s", facts.prompts[:1])
    with pytest.raises(wb.WorkbenchError, match="nothing to exchange"):
        relabelled(one, 0)


def test_the_first_step_at_the_threshold():
    curve = np.array([0.1, 0.5, 0.9, 0.4])
    assert steps_to(curve, (1, 2, 4), 0.5) == 1
    assert steps_to(curve, (1, 2, 4), 0.9) == 2
    assert steps_to(curve, (1, 2, 4), 0.05) == 0
    assert np.isnan(steps_to(curve, (1, 2, 4), 0.95))


def test_bad_input_is_said(tmp_path: Path):
    given = pair(tmp_path, wrapped())
    with pytest.raises(wb.WorkbenchError, match="among the lessons"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(10, 40))
    with pytest.raises(wb.WorkbenchError, match="steps that rise"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(20, 40), steps=(4, 2))
    with pytest.raises(wb.WorkbenchError, match="1 run"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(20, 40), runs=0)
