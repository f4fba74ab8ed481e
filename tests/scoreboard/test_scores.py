"""Scores of an answer against a truth: by hand, at their ends, and what silence counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from workbench.errors import WorkbenchError
from workbench.lab.known import Known
from workbench.scoreboard import Answer, Method
from workbench.scoreboard.scores import rows
from workbench.tasks import Prompt, PromptSet

PROMPTS = PromptSet("one", (Prompt("a", "x", " y"),))


def known(**about: Any) -> Known:
    given: dict[str, Any] = {"name": "one", "kind": "compiled"} | about
    return Known(base=Path("b"), tuned=Path("t"), prompts=PROMPTS, **given)


def scored(true: set[int], values: list[float], **about: Any) -> dict[str, dict[str, Any]]:
    one = known(places={"layer": {(i,) for i in true}}, **about)
    answer = Answer({"layer": {(i,): value for i, value in enumerate(values)}})
    return {row["metric"]: row for row in rows(one, answer)}


def test_by_hand():
    """Scores 4 3 2 1 with the first and the third true: of four pairs of a true place and another,
    three are in order; precision is 1 at the first and 2/3 at the third, which is found third."""
    found = scored({0, 2}, [4.0, 3.0, 2.0, 1.0])
    assert found["auroc"]["value"] == 0.75
    assert found["average_precision"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["rank"]["value"] == 3.0
    assert found["average_precision"]["baseline"] == 0.5
    assert found["auroc"]["n"] == 4
    assert found["auroc"]["low"] < 0.75 < found["auroc"]["high"]


def test_a_verdict_alone_is_a_false_positive_where_it_claims_what_is_not_there():
    def claimed(said: str, true: str) -> list[float]:
        found = rows(known(verdict=true), Answer(verdict=said))
        return [row["value"] for row in found if row["metric"] == "false_positive"]

    assert claimed("suppressed", "erased") == [1.0]
    assert claimed("erased", "erased") == claimed("undecided", "erased") == [0.0]
    assert claimed("overconfident", "kept") == [1.0]
    assert claimed("kept", "kept") == [0.0]
    assert claimed("erased", "suppressed") == []  # it misses what is there, and claims nothing


def test_the_highest_score_is_kept_in_the_methods_own_unit():
    assert scored({0}, [4.0, 7.0, float("nan")])["top"]["value"] == 7.0


def test_the_ends_and_ties():
    assert scored({0}, [9.0, 1.0, 2.0])["auroc"]["value"] == 1.0
    assert scored({1}, [9.0, 1.0, 2.0])["auroc"]["value"] == 0.0
    tied = scored({0}, [1.0, 1.0, 1.0])
    assert tied["auroc"]["value"] == 0.5
    assert tied["rank"]["value"] == tied["rank"]["baseline"] == 2.0


def test_auroc_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    values = draw.normal(size=30).round(1)
    true = {int(i) for i in draw.choice(30, 7, replace=False)}
    expected = roc_auc_score([i in true for i in range(30)], values)
    assert scored(true, [*values])["auroc"]["value"] == pytest.approx(expected)


def test_the_last_of_the_true_ranks_by_luck_where_the_baseline_says():
    draw = np.random.default_rng(0)
    found = [scored({0, 1, 2}, [*draw.random(10)])["rank"] for _ in range(2000)]
    mean = np.mean([row["value"] for row in found])
    assert mean == pytest.approx(found[0]["baseline"], abs=0.1)


def test_silence_ranks_below_all_that_is_scored():
    one = known(places={"head": {(0, 1)}}, universe={"head": {(0, 0), (0, 1), (1, 0)}})
    said = Answer({"head": {(0, 0): -5.0, (1, 0): float("nan")}})
    found = {row["metric"]: row["value"] for row in rows(one, said)}
    assert found["auroc"] == 0.25  # below one place, beside the one that is NaN
    other = Answer({"head": {(7, 7): 9.0, (0, 1): 1.0, (0, 0): 0.0}})  # no place of the universe
    assert next(rows(one, other))["value"] == 1.0


def test_nothing_is_said_where_no_place_or_every_place_is_true():
    assert {*scored(set(), [1.0, 2.0])} == set()
    assert {*scored({0, 1}, [1.0, 2.0])} == {"top"}


def test_verdicts_and_findings():
    said = Answer(finds=True, verdict="erased")
    lost = known(verdict="suppressed", places={"layer": {(0,)}})
    assert {r["metric"]: r["value"] for r in rows(lost, said)} == {"verdict_right": 0, "found": 1}
    right = Answer(finds=False, verdict="suppressed")
    assert {r["metric"]: r["value"] for r in rows(lost, right)} == {"verdict_right": 1, "found": 0}
    nothing = known(kind="phantom")
    assert [r["metric"] for r in rows(nothing, said)] == ["false_positive"]


def test_what_a_method_says_is_looked_at():
    def asked(said: Any) -> Answer:
        return Method("mine", lambda base, tuned, prompts: said).answer(known())

    assert asked({"layer": {(1,): 2.0}}).places == {"layer": {(1,): 2.0}}
    with pytest.raises(WorkbenchError, match="places of kind 'neuron'"):
        asked({"neuron": {(1, 2): 1.0}})
    with pytest.raises(WorkbenchError, match=r"Expected \(layer, head\)"):
        asked({"head": {(1,): 1.0}})
    with pytest.raises(WorkbenchError, match="Expected a score for each place"):
        asked({"head": [1.0]})
    with pytest.raises(WorkbenchError, match="of method 'mine', found 3"):
        asked(3)
    with pytest.raises(WorkbenchError, match="Expected a verdict"):
        Answer(verdict="lost")


def test_a_method_is_given_corrupt_prompts_where_it_takes_them():
    one = known(corrupted=PROMPTS)

    def contrasts(base: Path, tuned: Path, prompts: PromptSet, *, corrupted: PromptSet) -> Any:
        return {"layer": {(len(corrupted),): 1.0}}

    assert Method("mine", contrasts).answer(one).places["layer"] == {(1,): 1.0}
