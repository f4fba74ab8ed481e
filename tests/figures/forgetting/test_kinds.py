"""Every cell is a count of items, frames are what is certain, and a loss is said as it went."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.patches import Rectangle

from tests.figures.looking import check, inside, of_key, panels
from workbench.figures.forgetting.kinds import KEY, answer_kinds, sentence


def test_cells_count_items_and_frames_are_certain(results):
    result = of_key(results, KEY)
    figure = answer_kinds(result)
    figure.draw_without_rendering()
    check("kinds", figure)
    inside("kinds", figure)
    names = list(result.metric("share")["category"].drop_duplicates())
    items, net = result.metric("item"), result.metric("net")
    for here, member in zip(panels(figure), result.members, strict=False):
        grid = np.asarray(here.images[0].get_array())
        own = items[items["member"] == member]
        for (i, j), count in np.ndenumerate(grid):
            at = (own["category"] == names[i]) & (own["to_category"] == names[j])
            assert count == at.sum()
        sure = net[(net["member"] == member) & ((net["low"] > 0) | (net["high"] < 0))]
        assert len([p for p in here.patches if isinstance(p, Rectangle)]) == len(sure)


def test_a_sentence_says_the_way_that_more_items_went(results):
    result = of_key(results, KEY)
    _, said = sentence(result)
    assert "most from right to other option, 1.00" in said[0]
    back = result.table.copy()
    rows = back["metric"] == "net"
    back.loc[rows, ["value", "low", "high"]] = -back.loc[rows, ["value", "high", "low"]].to_numpy()
    _, said = sentence(replace(result, table=back))
    assert "most from other option to right, 1.00" in said[0]


def test_answers_of_one_kind_alone_have_a_figure(results):
    """Nothing goes from one kind to another, and no row says so."""
    result = of_key(results, KEY)
    same = result.table[result.table["metric"] != "net"]
    answer_kinds(replace(result, table=same.reset_index(drop=True))).draw_without_rendering()
