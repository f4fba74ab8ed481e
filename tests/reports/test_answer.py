"""The first screen says of every model what its measures say, and no more."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import workbench as wb
from tests.figures.synthetic import family, result
from workbench.reports import answer

LORA, FULL = {"kind": "lora", "rank": 4}, {"kind": "full"}
MEMBERS: dict[str, dict[str, Any]] = {"small": LORA, "whole": FULL}


def equivalent(measures: list[dict[str, Any]], members: dict[str, Any] = MEMBERS):
    blank = {"low": None, "high": None, "baseline": None, "versus": None, "arm": None, "says": None}
    rows = [blank | {"n": 50, "margin": 0.1} | row for row in measures]
    return result("compare.equivalence", rows, members)


def measured(measure: str, member: str, value: float, low: float, high: float, null: float):
    return {"metric": "measure", "measure": measure, "member": member, "value": value, "low": low,
            "high": high, "baseline": null}  # fmt: skip


def apart(measure: str, value: float, low: float, high: float, says: str):
    return {"metric": "difference", "measure": measure, "member": "small", "versus": "whole",
            "arm": "difference", "value": value, "low": low, "high": high,
            "says": says}  # fmt: skip


def told(*rows: dict[str, Any]) -> str:
    (group,) = answer.groups([equivalent(list(rows))])
    return dict(group.sentences)["small"]


SAID = (
    ("score", "alike", 0.01, "learns its task as well as whole"),
    ("score", "different", -0.2, "learns its task less well than whole"),
    ("score", "different", 0.2, "learns its task better than whole"),
    ("score", "undecided", 0.2, "undecided whether it learns its task as well as whole"),
    ("forgetting", "alike", 0.01, "forgets as much as whole"),
    ("forgetting", "different", -0.2, "forgets less than whole"),
    ("forgetting", "different", 0.2, "forgets more than whole"),
    ("forgetting", "undecided", 0.2, "undecided whether it forgets more or less than whole"),
)
VALUES = {
    "score": "0.50 against 0.90",
    "forgetting": "+0.50 against +0.90 nats/token of pre-training text",
}


@pytest.mark.parametrize(("measure", "says", "value", "words"), SAID)
def test_a_difference_in_words_with_both_values(measure, says, value, words):
    own = measured(measure, "small", 0.5, 0.4, 0.6, 0.0)
    full = measured(measure, "whole", 0.9, 0.8, 1.0, 0.0)
    said = told(own, full, apart(measure, value, -1, 1, says))
    by = f"{VALUES[measure]}, difference {value:+.2f} [-1.00, +1.00]"
    assert f"(LoRA, r = 4): {words} ({by})" in said


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.9, "forgets compared with the base ("), (-0.9, -0.1, "does not forget ("),
        (-0.1, 0.1, "undecided whether it forgets ("),
    ],
)  # fmt: skip
def test_without_a_full_fine_tune_forgetting_is_against_the_base(low, high, words):
    assert words in told(measured("forgetting", "small", (low + high) / 2, low, high, 0.0))


@pytest.mark.parametrize(("null", "words"), [(0.09, "no more than"), (0.03, "more than")])
def test_intruders_beside_their_null(null: float, words: str):
    said = told(measured("intruders", "small", 0.10, 0.05, 0.15, null))
    assert f"intruder dimensions: 10.0 [5.0, 15.0]%, {words} chance ({100 * null:.1f}%)" in said


def test_models_of_several_tasks_are_separate_tables():
    members = {"a": FULL, "b": FULL, "c": FULL}
    rows = [measured("score", name, 0.5, 0.4, 0.6, 0.0) for name in members]
    first = equivalent(rows, members)
    one = [{"member": "a", "metric": "score", "value": 1.0}]
    two = [{"member": name, "metric": "score", "value": 1.0} for name in "bc"]
    others = [
        result("forgetting.retention", one, {"a": FULL}, task="sums"),
        result("forgetting.retention", two, {"b": FULL, "c": FULL}, task="facts"),
    ]
    found = answer.groups([first, *others])
    assert [(group.task, [name for name, _ in group.rows]) for group in found] == [
        ("facts", ["b", "c"]), ("sums", ["a"]),
    ]  # fmt: skip


def test_a_value_no_more_than_its_null_is_grey():
    (group,) = answer.groups([equivalent([measured("intruders", "small", 0.1, 0.05, 0.15, 0.09)])])
    assert [cell.chance for _, cells in group.rows for cell in cells] == [True]


@pytest.mark.parametrize(
    ("count", "words"),
    [(2_656_512, "2.66 million"), (7_000_000_000, "7 billion"), (512, "512")],
)
def test_the_size_of_the_base(count: int, words: str):
    assert answer.base_line({"model": "llama", "parameters": count}) == f"llama, {words} parameters"
    assert answer.base_line({}) == ""


def test_a_warning_of_several_models_is_one_sentence_before_everything_else(tmp_path):
    members = family(2)
    rows = [{"member": name, "metric": "gap", "value": 0.25} for name in members]
    lines = [
        {"item": "dtype", "status": "warn", "found": "float16", "remedy": "", "member": name}
        for name in members
    ] + [{"item": "names", "status": "ok", "found": "match", "remedy": "", "member": "lora-r1"}]
    path = wb.report(
        [result("another.analysis", rows, members)], tmp_path / "p.html",
        preflight=pd.DataFrame(lines),
    )  # fmt: skip
    screen = path.read_text(encoding="utf-8").split('<details class="chapter"')[0]
    assert f"<li>{', '.join(members)}: dtype: float16</li>" in screen
    assert "names: match" not in screen


def test_a_column_says_its_unit_and_its_n_without_its_name_twice():
    rows = [measured(name, "small", 0.5, 0.4, 0.6, 0.0) for name in ("forgetting", "intruders")]
    (group,) = answer.groups([equivalent(rows)])
    assert group.measures == [
        ("forgetting", "rise of the loss (nats/token), n = 50"),
        ("intruders", "share of vectors, n = 50"),
    ]


def test_what_was_scored_is_said_with_its_items():
    rows = [{"member": "a", "task": "sums", "metric": "score", "value": 1.0, "n": 40}]
    rows += [{"member": "a", "task": "facts", "metric": "score", "value": 1.0, "n": None}]
    rows += [{"member": "a", "task": "texts", "metric": "loss_change", "value": 1.0, "n": 51}]
    made = result("forgetting.retention", rows, {"a": FULL})
    assert answer.asked([made]) == ["sums (n = 40)", "texts (n = 51)"]
