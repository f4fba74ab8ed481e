"""The maps of the attribution are the table, and every exact entry has its attribution."""

from __future__ import annotations

import numpy as np

from tests.figures import patched
from tests.figures.looking import words
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching.attribution import checked


def test_maps_are_the_table():
    figure = figures.attribution_by_head(patched.attribution(family(1)))
    (image,) = figure.axes[0].images
    expected = 2 * (0.1 * np.arange(patched.LAYERS)[:, None] - 0.05 * np.arange(patched.HEADS))
    np.testing.assert_allclose(image.get_array(), expected)  # both positions, shuffled left out
    low, high = image.get_clim()
    assert low == -high
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == [
        "base", "lora-r1", "lora-r1 into base",
    ]  # fmt: skip


def test_the_scatter_joins_every_exact_entry_with_its_attribution():
    made = patched.attribution(family(2))
    entries = checked(made, "full")
    assert len(entries) == 3 * patched.LAYERS * patched.HEADS
    np.testing.assert_allclose(entries["exact"], 2 * entries["attribution"])
    figure = figures.attribution_against_exact(made)
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert sum(len(line.get_xdata()) for line in points) == len(entries)
    hollow = [line for line in points if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in hollow) == 3 * 2 * patched.HEADS
    assert "0.91, 0.42" in words(figure)
