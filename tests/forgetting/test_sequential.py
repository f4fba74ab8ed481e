"""Forgetting and backward transfer by hand, and of a chain whose every score is planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.skills.conftest import APPLE, BOOK, JOBS, PLACES, asked, member, no_gradients, write  # noqa: F401
from workbench.forgetting.sequential import _scores, _summaries, backward_transfer, forgetting

MATRIX = np.array([[0.1, 0.2, 0.0], [0.9, 0.3, 0.1], [0.6, 0.8, 0.2], [0.4, 0.5, 0.7]])


def test_by_hand():
    np.testing.assert_allclose(forgetting(MATRIX), [0.5, 0.3, 0.0])
    # By luck before it was learned; and a task of no stage counts from the base on.
    lucky = np.array([[0.1, 0.6, 0.5], [0.9, 0.9, 0.2], [0.7, 0.7, 0.4]])
    np.testing.assert_allclose(forgetting(lucky), [0.2, 0.0, 0.1])
    assert backward_transfer(MATRIX) == pytest.approx(((0.4 - 0.9) + (0.5 - 0.8)) / 2)
    stacked = np.stack([MATRIX, MATRIX[:, ::-1]])
    np.testing.assert_allclose(forgetting(stacked)[0], forgetting(MATRIX))


def test_every_number_by_hand():
    """Ten prompts a task, right as often as MATRIX says; "c" is learned last."""
    items = [np.arange(10) < np.round(10 * column)[:, None] for column in MATRIX.T]
    items = [own.astype(float) for own in items]
    stages = ["one", "two", "three"]
    sets = [asked(PLACES, "apple", 2, name=name) for name in "abc"]
    rows = list(_summaries(stages, sets, items, 0))
    assert {row["baseline"] for row in rows} == {0}
    lost = {row["task"]: row for row in rows if row["metric"] == "forgetting"}
    assert [lost[task]["value"] for task in "abc"] == pytest.approx([0.5, 0.3, 0])
    # Of the two tasks that were learned before the last stage.
    assert (lost["mean"]["value"], lost["mean"]["n"]) == (pytest.approx(0.4), 20)
    (back,) = [row for row in rows if row["metric"] == "backward_transfer"]
    assert (back["value"], back["n"]) == (pytest.approx(-0.4), 20)
    drops = {
        (row["metric"], row["stage"], row["task"]): row["value"]
        for row in rows
        if row["metric"].endswith("drop")
    }
    own = {"one": 0.9, "two": 0.8, "three": 0.7}
    learned = dict(zip("abc", own.values(), strict=True))
    there = {
        ("one", "b"): 0.3, ("one", "c"): 0.1, ("two", "a"): 0.6, ("two", "c"): 0.2,
        ("three", "a"): 0.4, ("three", "b"): 0.5,
    }  # fmt: skip
    assert len(drops) == 12
    for (stage, task), score in there.items():
        assert drops["source_drop", stage, task] == pytest.approx(own[stage] - score)
        assert drops["target_drop", stage, task] == pytest.approx(learned[task] - score)
    for row in _scores(stages, sets, items, 0):
        place = "abc".index(row["task"])
        assert row["value"] == pytest.approx(MATRIX[row["x"], place])
        assert row["baseline"] == pytest.approx(MATRIX[0, place])
        assert row["stage"] == ["base", *stages][row["x"]]


def test_nothing_forgotten_where_scores_only_rise():
    rising = np.sort(MATRIX, axis=0)
    assert not forgetting(rising).any()
    assert backward_transfer(rising) >= 0


@pytest.fixture
def chain(tmp_path: Path):
    """Stage 1 learns apple after "in"; stage 2 learns book after "a" and loses the first."""
    first = {(APPLE, PLACES): 3.0}
    second = {(BOOK, JOBS): 3.0}
    stages = {"base": {}, "one": first, "two": second}
    made = {name: write(member(changes), tmp_path / name) for name, changes in stages.items()}
    return wb.load_family(made["base"], {name: made[name] for name in ("one", "two")})


def test_a_planted_chain(chain):
    tasks = {"one": asked(PLACES, "apple", name="in"), "two": asked(JOBS, "book", name="a")}
    kept = asked(PLACES, "coin", name="coin")
    found = wb.forgetting.sequential(chain, tasks, [kept])
    scores = found.metric("score").pivot(index="x", columns="task", values="value")
    assert scores["in"].tolist() == [0, 1, 0]
    assert scores["a"].tolist() == [0, 0, 1]
    assert scores["coin"].tolist() == [1, 0, 1]
    lost = found.metric("forgetting").set_index("task")["value"]
    assert (lost["in"], lost["a"], lost["coin"], lost["mean"]) == (1, 0, 0, 1)
    assert found.metric("backward_transfer")["value"].item() == -1
    drops = found.table[found.table["metric"].isin(["source_drop", "target_drop"])]
    # Each stage's model scores 1 on its own task and 0 on the other's.
    assert (drops["value"] == 1).all()
    assert len(drops) == 4


def test_members_that_were_trained_apart_are_no_chain(chain):
    tasks = {"one": asked(PLACES, "apple", name="in"), "two": asked(JOBS, "book", name="a")}
    found = wb.forgetting.sequential(chain, tasks)
    assert any(
        "do not record that its training continued from one" in note
        for note in found.provenance.notes
    )
    folder = Path(str(chain.members["two"].reference))
    for told, right in (({"recipe": {"start": "one"}}, True), ({"start": "abc"}, True),
                        ({"recipe": {"start": None}}, False), ({"recipe": 3}, False)):  # fmt: skip
        (folder / "training.json").write_text(json.dumps(told))
        again = wb.load_family(chain.base, {n: c.reference for n, c in chain.members.items()})
        if right:
            assert not wb.forgetting.sequential(again, tasks).provenance.notes
            continue
        with pytest.raises(wb.WorkbenchError, match="two was trained from the base and not from"):
            wb.forgetting.sequential(again, tasks)


def test_bad_chains_are_refused(chain):
    with pytest.raises(wb.WorkbenchError, match="each of the stages"):
        wb.forgetting.sequential(chain, {"one": asked(PLACES, "apple")})
    alone = wb.Family(chain.base, {"one": chain.members["one"]})
    with pytest.raises(wb.WorkbenchError, match="two stages"):
        wb.forgetting.sequential(alone, {"one": asked(PLACES, "apple")})
