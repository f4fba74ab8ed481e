"""The figures of forgetting, of Results of tiny models, show their numbers and their controls."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

import workbench as wb
from tests.figures.test_figures import check, inside, words
from tests.forgetting.conftest import erased, knower, nouns, wrapped
from tests.skills.conftest import write
from workbench import figures
from workbench.figures import forgotten, hidden, kept, style
from workbench.results.result import Result
from workbench.study import units
from workbench.tasks import PromptSet

PLAIN, OTHER = nouns(0, 60), nouns(swapped=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Every analysis of a base, a member that hides what it knew and one that lost it."""
    folder = tmp_path_factory.mktemp("forgotten")
    with torch.no_grad():
        base = write(knower(), folder / "base")
        members: Any = {
            "hidden": write(wrapped(), folder / "wrapped"),
            "gone": write(erased(), folder / "erased"),
        }
    made = wb.load_family(base, members)
    quick: dict[str, Any] = {"steps": (2, 8), "lr": 0.03, "runs": 2}
    behind = {"turned": PromptSet("turned", PLAIN.prompts[::-1])}
    calls: tuple[tuple[Any, dict[str, Any]], ...] = (
        (wb.forgetting.probe, {}),
        (wb.forgetting.prune, {"task": OTHER, "shares": (0.01, 0.1), "random": 1}),
        (wb.forgetting.revive, {"lessons": nouns(60)} | quick),
        (wb.forgetting.conjugate, {"conjugates": behind, "task": OTHER}),
        (wb.forgetting.knowledge, {"sets": 2, "shots": 1, "between": " "}),
    )
    found = [units.over(made, call, prompts=PLAIN, **more) for call, more in calls]
    found.append(units.over(made, wb.forgetting.verdict, prompts=PLAIN, results=found))
    others = [PLAIN]
    path: dict[str, Any] = {"prompts": OTHER, "others": others, "alphas": (0.0, 0.5, 1.0)}
    found.append(units.over(made, wb.forgetting.interpolate, **path))
    tasks = {"hidden": OTHER, "gone": PromptSet("late", nouns(60).prompts)}
    return [*found, wb.forgetting.sequential(made, tasks, [PLAIN])]


def test_every_figure_of_forgetting_is_drawn_of_these_results(results):
    drawn = set()
    for one in results:
        for drawing, group in figures.drawings(one, results):
            figure = drawing.draw(*group)
            check(drawing.name, figure)
            figure.draw_without_rendering()
            inside(drawing.name, figure)
            drawn.add((drawing.analysis, drawing.name))
    assert drawn == {(d.analysis, d.name) for d in forgotten.DRAWINGS}
    assert {d.analysis for d in forgotten.DRAWINGS} == set(forgotten.SENTENCES)


def test_every_sentence_names_its_members(results):
    for one in results:
        head, parts = forgotten.SENTENCES[one.analysis](one)
        assert head
        for member in one.members:
            assert any(member in part for part in parts), one.analysis


def _result(results: list[Result], key: str) -> Result:
    (found,) = [one for one in results if one.analysis == key]
    return found


def test_curves_show_the_table(results):
    """The line of the tuned model, point by point."""
    result = _result(results, hidden.PROBE)
    figure = hidden.probe_layers(result)
    table = result.metric("accuracy")
    for ax, member in zip(figure.axes, result.members, strict=False):
        (line,) = [one for one in ax.lines if one.get_label() == "tuned model"]
        own = table[(table["member"] == member) & (table["arm"] == "tuned")]
        np.testing.assert_allclose(line.get_ydata(), own.sort_values("layer")["value"])
        labels = {one.get_label() for one in ax.lines}
        assert {"base", "random weights", "shuffled labels"} <= labels
    result = _result(results, hidden.REVIVE)
    figure = hidden.revival_curves(result)
    scores = result.metric("score")
    for ax, member in zip(figure.axes, result.members, strict=False):
        (line,) = [one for one in ax.lines if one.get_label() == "relabelled"]
        own = scores[(scores["member"] == member) & (scores["arm"] == "relabelled")]
        np.testing.assert_allclose(line.get_ydata(), own.groupby("x")["value"].mean())


def test_the_grid_is_coloured_by_its_readings(results):
    result = _result(results, hidden.VERDICT)
    figure = hidden.verdict_grid(result)
    told = words(figure)
    for reading in result.metric("verdict")["reading"]:
        assert reading.lower() in told
    boxes = [p for p in figure.axes[0].patches if isinstance(p, mpl.patches.Rectangle)]
    table = result.metric("evidence").set_index(["member", "arm"])["reading"]
    wanted = [
        hidden.READINGS[table[m, arm]] for m in style.looks(result) for arm in hidden.MEASURES
    ]
    assert [mpl.colors.to_hex(p.get_facecolor()) for p in boxes] == [w.lower() for w in wanted]


def test_outcomes_of_a_prompt_add_up_to_one(results):
    figure = kept.conjugate_outcomes(_result(results, kept.CONJUGATE))
    for ax in figure.axes[:2]:
        tops: dict[float, float] = {}
        for bar in ax.patches:
            if isinstance(bar, mpl.patches.Rectangle):
                x = round(bar.get_x(), 3)
                tops[x] = tops.get(x, 0.0) + bar.get_height()
        np.testing.assert_allclose(list(tops.values()), 1.0)
