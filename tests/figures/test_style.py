"""Models look alike in every figure, low ranks lighter, and are written as they are called."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from tests.figures.synthetic import family, intruders, retention, stepped
from workbench import figures
from workbench.figures import style


def test_a_family_gives_the_looks_of_its_figures():
    members = stepped()
    looks = style.assign(members)
    few = retention(dict(list(members.items())[2:]))
    assert style.looks(few)["r8@400"] == looks["r8@400"]
    assert style.looks(few)["r8@100"] != looks["r8@100"]  # three are spread more widely than five
    with figures.family(members):
        assert style.looks(few)["r8@100"] == looks["r8@100"]
    assert style.looks(few)["r8@100"] != looks["r8@100"]


def test_low_ranks_are_lighter():
    shades = [
        np.dot(mpl.colors.to_rgb(look.colour), (0.2126, 0.7152, 0.0722))
        for name, look in style.assign(family(8)).items()
        if name != "full"
    ]
    assert shades == sorted(shades, reverse=True)


def test_odd_names_are_drawn_as_they_are():
    odd = {"$x_1$": {"kind": "full"}, "_hidden": {"kind": "full"}, "n" * 90: {"kind": "full"}}
    figure = figures.intruders_by_eps(intruders(odd))
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert r"\$x_1\$" in labels
    assert " _hidden" in labels
    assert max(map(len, labels)) <= style.NAME


def test_the_callers_settings_stay_as_they_were(results):
    before = dict(mpl.rcParams)
    figures.draw(results[0])
    assert dict(mpl.rcParams) == before
