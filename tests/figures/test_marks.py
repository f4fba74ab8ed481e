"""Intervals only where something was measured, a tick for every layer, and n as it was counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from tests.figures.patched import knockout, path
from tests.figures.synthetic import family, intruders, scaling
from workbench import figures
from workbench.figures import marks


def axes(width: float = 4.0, height: float = 4.0, columns: int = 1) -> Axes:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.subplots(1, columns, squeeze=False)[0, 0]


def bands(here: Axes) -> list[tuple[float, float]]:
    """(from, to) of every band."""
    found = [one.get_paths()[0].vertices for one in here.collections
             if isinstance(one, PolyCollection)]  # fmt: skip
    return [(float(v[:, 0].min()), float(v[:, 0].max())) for v in found]


def bars(here: Axes) -> np.ndarray:
    """(bars, 3): x, low, high of every error bar."""
    segments = [s for one in here.collections if isinstance(one, LineCollection)
                for s in one.get_segments()]  # fmt: skip
    return np.array([(s[0, 0], s[:, 1].min(), s[:, 1].max()) for s in segments])


def test_few_points_have_bars_and_no_band():
    here, x = axes(), np.array([0, 0.9, 1.0, 1.1])
    marks.intervals(here, x, x - 1, x + 1, "red")
    assert not bands(here)
    np.testing.assert_allclose(bars(here), np.stack([x, x - 1, x + 1], 1))


def test_a_band_ends_where_nothing_was_measured():
    here, x = axes(), np.array([0, 0.1, 0.2, 0.3, 0.4, 1.6, 1.7, 1.8, 1.9])
    marks.intervals(here, x, x - 1, x + 1, "red")
    assert bands(here) == [(0, 0.4), (1.6, 1.9)]


def test_neighbouring_layers_have_a_band():
    here, x = axes(), np.arange(-1, 4)
    marks.intervals(here, x, x - 1, x + 1, "red", layers=True)
    assert bands(here) == [(-1, 3)]


def test_bars_of_several_curves_stand_side_by_side_and_reach_the_value():
    here, x = axes(), np.array([1.0, 2.0, 3.0])
    for place in range(3):
        marks.intervals(here, x, x, x + 1, "red", value=x - 0.5, place=(place, 3))
    found = bars(here)
    assert len(set(found[:, 0])) == 9
    np.testing.assert_allclose(found[:, 1], np.tile(x - 0.5, 3))
    np.testing.assert_allclose(found[3:6, 0], x)  # the middle one at its place


def test_what_has_no_interval_has_no_bar():
    here = axes()
    marks.intervals(here, [1, 2], [np.nan, 0], [1, 1], "red")
    assert bars(here).tolist() == [[2, 0, 1]]
    marks.intervals(here, [1, 2], [np.nan] * 2, [np.nan] * 2, "red")
    assert len(bars(here)) == 1


def test_the_scaled_contribution_has_no_band_between_its_few_alphas():
    figure = figures.scaling_curve(scaling(family(2)))
    assert not any(bands(here) for here in figure.axes)
    assert all(len(bars(here)) == 2 * 6 for here in figure.axes)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("count", [1, 6, 24, 32])
def test_every_layer_has_a_tick_and_no_label_lies_on_another(across, columns, count):
    here = axes(7.0, 4.5, columns)
    here.set(xlim=(-1, count), ylim=(-1, count))
    marks.layer_ticks(here, range(count), across=across)
    here.figure.draw_without_rendering()
    axis = here.xaxis if across else here.yaxis
    np.testing.assert_array_equal(axis.get_majorticklocs(), np.arange(count))
    boxes = [
        label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()
    ]  # fmt: skip
    assert boxes
    for first, second in pairwise(boxes):
        assert (first.x1 < second.x0) if across else (first.y1 <= second.y0 + 2)
    if not across:
        assert len(boxes) == count


def test_more_layers_than_fit_have_a_tick_every_few():
    here = axes()
    marks.layer_ticks(here, range(96))
    ticks = here.xaxis.get_majorticklocs()
    assert 5 < len(ticks) <= 48
    assert len(set(np.diff(ticks))) == 1


def test_the_embedding_is_called_so():
    here = axes()
    marks.layer_ticks(here, [-1, 0, 1], named=marks.layer_name)
    assert [one.get_text() for one in here.get_xticklabels()] == ["emb", "0", "1"]


def test_counts_are_said_once_and_as_a_range_where_they_differ():
    assert marks.number([200, 200], "prompts") == "n = 200 prompts"
    assert marks.number([20, np.nan, 200], "prompts") == "n = 20 to 200 prompts"
    assert marks.number([np.nan, None], "prompts") == ""
    figure = Figure(layout="constrained")
    grid = figure.subplots(2, 1, squeeze=False)
    marks.counted(grid, [([3], "texts"), ([], "prompts"), ([5, 6], "tokens")], "", outside=True)
    assert figure.get_supxlabel() == "n = 3 texts, n = 5 to 6 tokens"
    grid[1, 0].set_xlabel("layer")
    marks.counted(grid, [7], "prompts", outside=False)
    assert grid[1, 0].get_xlabel() == "layer\n(n = 7 prompts)"


def test_a_map_of_counts_ends_at_the_largest_and_shows_each_as_a_number():
    result = intruders(family(3))
    figure = figures.intruders_by_place(result)
    maps = [here for here in figure.axes if here.images]
    counts = result.metric("intruder").groupby(["member", "layer", "component"])["value"].sum()
    for here, member in zip(maps, result.members, strict=False):
        grid = np.asarray(here.images[0].get_array())
        own = counts[member].unstack()[list(dict.fromkeys(result.table["component"]))]
        np.testing.assert_array_equal(grid, own.to_numpy())
        assert [t.get_text() for t in here.texts] == [f"{value:.0f}" for value in grid.flat]
    null = np.asarray(maps[-1].images[0].get_array()).max()
    assert {here.images[0].get_clim() for here in maps} == {(0, max(counts.max(), null))}


def test_senders_of_a_path_are_where_their_layer_and_head_are():
    """Heads by number, and MLPs in a column of their own, also where heads are floats."""
    made = path(family(1))
    panels = [here for here in figures.draw(made).axes if here.images]
    base, tuned = (np.asarray(here.images[0].get_array()) for here in panels)
    wanted = np.zeros((4, 4))
    wanted[3, 3] = -1
    np.testing.assert_array_equal(base, wanted)
    wanted[2, 1] = -4
    np.testing.assert_array_equal(tuned, wanted)
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["0", "1", "2", "MLP"]
    assert "random: -0.30" in panels[0].get_title(loc="left")
    old = replace(
        made, table=made.table[made.table["component"] == "head"].drop(columns="component")
    )
    heads = np.asarray(figures.draw(old).axes[0].images[0].get_array())
    np.testing.assert_array_equal(heads, base[:, :3])


def test_what_is_needed_most_is_named_and_stands_first():
    figure = figures.draw(knockout(family(1)))
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names[:3] == ["head 2.1", "neuron 1.2", "MLP 0"]
