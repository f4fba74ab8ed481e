"""What is only wrapped comes back in few steps; what is gone has to be learned like anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.forgetting.conftest import erased, knower, nouns, pair, unlearned, value, wrapped
from tests.skills.conftest import write
from workbench.forgetting.revive import (
    _savings,
    _scores,
    _steps,
    regained,
    relabelled,
    steps_to,
)

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
    with pytest.raises(wb.WorkbenchError, match="no other answer to exchange"):
        relabelled(one, 0)


def test_the_first_step_at_the_threshold():
    curve = np.array([0.1, 0.5, 0.9, 0.4])
    assert steps_to(curve, (1, 2, 4), 0.5) == 1
    assert steps_to(curve, (1, 2, 4), 0.9) == 2
    assert steps_to(curve, (1, 2, 4), 0.05) == 0
    assert np.isnan(steps_to(curve, (1, 2, 4), 0.95))


def rising(chances: list[float], seed: int, prompts: int = 60, runs: int = 2) -> np.ndarray:
    """(runs, steps, prompts): answers that are right with a chance of each step's."""
    draw = np.random.default_rng(seed).random((runs, len(chances), prompts))
    return (draw < np.array(chances)[:, None]).astype(float)


STEPS = (1, 2, 4)


def curves() -> dict[str, np.ndarray]:
    """The tuned model lies above the controls by much the same after every step."""
    made = {
        "base": rising([0.9, 0.9, 0.9, 0.95], 1), "tuned": rising([0.6, 0.7, 0.7, 0.8], 2),
        "random weights": rising([0, 0.1, 0.1, 0.2], 3),
        "relabelled": rising([0.1, 0.3, 0.3, 0.4], 4),
    }  # fmt: skip
    for arm in ("base", "tuned"):  # before training every run is alike
        made[arm][1, 0] = made[arm][0, 0]
    return made


def test_steps_to_the_threshold_by_hand():
    """Two runs that reach .5 after 2 and 4 steps, and one that never does."""
    paths = [[0.2, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.9], [0.2, 0.3, 0.4, 0.4]]
    curve = np.array([[np.arange(10) < 10 * share for share in path] for path in paths], float)
    arms = {"tuned": curve, "never": curve[2:], "base": curve[:1]}
    rows = {row["arm"]: row for row in _steps(arms, STEPS, 0.5)}
    row = rows["tuned"]
    assert [row[k] for k in ("value", "low", "high", "n", "x")] == [3, 2, 4, 2, 0.5]
    assert np.isnan(rows["never"]["value"])
    assert rows["never"]["n"] == 0
    # One run has no range.
    assert rows["base"]["value"] == 2
    assert np.isnan([rows["base"]["low"], rows["base"]["high"]]).all()


def test_scores_by_hand():
    arms = curves()
    rows = list(_scores(arms, STEPS, 0))
    assert len(rows) == 4 * 2 * 4
    for row in rows:
        step = (0, *STEPS).index(int(row["x"]))
        assert row["value"] == pytest.approx(arms[row["arm"]][row["run"], step].mean())
        assert row["baseline"] == pytest.approx(arms["base"][:, 0].mean())


def test_savings_by_hand():
    """The step that one half of the prompts choose, on the other half; then of the lost alone."""
    arms, seed = curves(), 5
    rows = {(r["metric"], r["control"], r["arm"]): r for r in _savings(arms, (0, *STEPS), seed)}
    lost = [
        i
        for i in range(60)
        if arms["base"][:, 0, i].sum() == 2 and not arms["tuned"][:, 0, i].any()
    ]
    assert 10 < len(lost) < 60
    apart = []
    for among, of in ((list(range(60)), ""), (lost, "_lost")):
        order = list(np.random.default_rng(seed).permutation(among))
        first = (len(order) + 1) // 2
        choose, report = order[:first], order[first:]
        for control in ("random weights", "relabelled"):
            step, other = (
                max((1, 2, 3), key=lambda step, half=half, control=control: (
                    arms["tuned"][:, step, half] - arms[control][:, step, half]
                ).mean())
                for half in (choose, report)
            )  # fmt: skip
            apart.append(step != other)
            saved = {
                arm: (arms[arm][:, step, report] - arms[control][:, step, report]).mean()
                for arm in ("tuned", "base")
            }
            for arm, wanted in saved.items():
                row = rows[f"savings{of}", control, arm]
                assert row["value"] == pytest.approx(wanted)
                assert (row["x"], row["n"], row["baseline"]) == (STEPS[step - 1], len(report), 0)
            share = rows[f"savings_share{of}", control, "tuned"]
            assert share["value"] == pytest.approx(saved["tuned"] / saved["base"])
            assert (share["x"], share["n"], share["baseline"]) == (STEPS[step - 1], len(report), 1)
            if not of:
                known = [i for i in report if arms["base"][:, 0, i].all()]
                left = {
                    arm: (1 - arms[arm][:, step, known]).sum() / (1 - arms[arm][:, 0, known]).sum()
                    for arm in ("tuned", control)
                }
                row = rows["regained_share", control, "tuned"]
                assert row["value"] == pytest.approx(1 - left["tuned"] / left[control])
                assert row["baseline"] == pytest.approx(1 - left[control])
                assert (row["x"], row["n"]) == (STEPS[step - 1], len(known))
                assert row["low"] < row["value"] < row["high"]
    assert any(apart)  # the other half would have chosen another step


def test_what_is_right_when_asked_again_has_not_been_regained():
    """As many errors before as after, on other prompts: nothing; half of them, and a control that
    loses a fifth of its own: by hand 1 - (1 / 2) / (4 / 5)."""
    n = 100
    before, after, half = (
        np.array([float(i not in wrong) for i in range(n)])
        for wrong in (range(20), range(16, 36), range(10))
    )
    never, taught = np.zeros(n), np.array([float(i % 5 == 0) for i in range(n)])
    assert regained(before, after, never, never).value == 0
    found = regained(before, half, never, taught)
    assert found.value == pytest.approx(1 - (1 / 2) / (4 / 5))
    assert found.low < found.value < found.high
    assert np.isnan(regained(np.ones(n), after, never, taught).value)  # nothing was lost
    assert np.isnan(regained(before, half, never, np.ones(n)).value)  # the control learns all
    # Prompt by prompt, as numpy resamples.
    draw = np.random.default_rng(3)
    wrong = 1 - np.stack([before, half, never, taught])
    picks = draw.integers(0, n, (4000, n))
    sums = wrong[:, picks].sum(-1)
    low, high = np.quantile(1 - sums[1] * sums[2] / (sums[0] * sums[3]), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)


def test_bad_input_is_said(tmp_path: Path):
    given = pair(tmp_path, wrapped())
    with pytest.raises(wb.WorkbenchError, match="among the lessons"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(10, 40))
    with pytest.raises(wb.WorkbenchError, match="steps that rise"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(20, 40), steps=(4, 2))
    with pytest.raises(wb.WorkbenchError, match="1 run"):
        wb.forgetting.revive(given, nouns(0, 20), nouns(20, 40), runs=0)
