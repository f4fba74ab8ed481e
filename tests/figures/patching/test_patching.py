"""Figures of lens, patterns and attribution, for one member and for eight, and in given axes."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from tests.figures import patched
from tests.figures.looking import check, words
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures import style

FIGURES = {
    figures.lens_by_layer: "lens",
    figures.pattern_differences: "patterns",
    figures.pattern_example: "patterns",
    figures.attribution_against_exact: "attribution",
    figures.attribution_by_head: "attribution",
}

MADE = {"lens": patched.lens, "patterns": patched.patterns, "attribution": patched.attribution}


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("count", [1, 8])
def test_one_and_eight_members(draw, count):
    figure = draw(MADE[FIGURES[draw]](family(count)))
    check(draw.__name__, figure)
    assert figure.get_figwidth() in (style.COLUMN, style.WIDE)
    figure.canvas.draw()
    assert "lora-r1" in words(figure)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_in_given_axes(draw):
    figure = Figure(figsize=(9, 4), layout="constrained")
    mine, other = figure.subplots(1, 2)
    assert draw(MADE[FIGURES[draw]](family(2)), ax=mine) is figure
    assert not other.has_data()
    assert figure.get_figwidth() == 9


def test_no_rc_leaks():
    before = dict(mpl.rcParams)
    figures.lens_by_layer(patched.lens(family(1)))
    assert dict(mpl.rcParams) == before
