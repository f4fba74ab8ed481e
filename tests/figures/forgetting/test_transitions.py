"""Every cell and mark is the table's number, and what can be told from nothing is framed."""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Rectangle

import workbench as wb
from tests.figures.looking import check, inside, panels, words
from tests.figures.synthetic import family, kept_items
from workbench.figures.forgetting.transitions import item_transitions, tasks_of, transfer_matrix
from workbench.figures.views import views
from workbench.results.changed_items import changed_items


def test_the_matrix_of_members_and_tasks_is_the_change_of_the_score():
    result = kept_items(family(3))
    figure = transfer_matrix(result)
    figure.draw_without_rendering()
    check("transfer", figure)
    inside("transfer", figure)
    (here, *_) = panels(figure)
    grid = np.asarray(here.images[0].get_array())
    change = result.metric("score_change").pivot(index="member", columns="task", values="value")
    assert grid.tolist() == change.loc[result.members, tasks_of(result)].to_numpy().tolist()
    own = result.metric("score_change")
    sure = int(((own["low"] > 0) | (own["high"] < 0)).sum())
    assert 0 < sure < len(own)
    assert len([patch for patch in here.patches if isinstance(patch, Rectangle)]) == sure


def test_lost_stands_left_and_won_right_and_guesses_hollow():
    result = kept_items(family(3))
    figure = item_transitions(result)
    figure.draw_without_rendering()
    check("transitions", figure)
    inside("transitions", figure)
    drawn = {}
    for here, task in zip(panels(figure), tasks_of(result), strict=False):
        marks = [line for line in here.lines if line.get_marker() not in ("None", "", None)]
        drawn[task] = sorted(round(float(line.get_xdata()[0]), 9) for line in marks)
        hollow = [line for line in marks if line.get_markerfacecolor() == "white"]
        assert len(hollow) == (6 if task == "choices" else 0)
    for task, xs in drawn.items():
        own = result.table[result.table["task"] == task]
        left = own[own["metric"].isin(["lost", "lost_adjusted"])]["value"]
        right = own[own["metric"].isin(["gained", "gained_adjusted"])]["value"]
        shown = [*-left.clip(lower=0), *right.clip(lower=0)]
        assert xs == sorted(round(float(x), 9) for x in shown)
    assert "base" in words(figure)


def test_lost_items_are_told_as_text_and_nothing_of_it_is_markup(tmp_path):
    result = kept_items(family(2))
    told = list(changed_items(result))
    lost = [one for one in told if (one.way, one.task) == ("lost", "facts")]
    for one in lost:
        rows = result.table[
            (result.table["member"] == one.member) & (result.table["task"] == "facts")
        ]
        share = rows.loc[rows["metric"] == "lost", "value"].item()
        assert len(one.table) == round(share * one.every)
    (texts,) = [one for one in views(result) if one.kind == "texts"]
    assert texts.metrics == ("item",)
    page = wb.report([result], tmp_path / "r.html").read_text()
    assert "<b>maybe" not in page
