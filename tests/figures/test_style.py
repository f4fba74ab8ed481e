"""Members look apart, alike in every figure, and as they are called."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from tests.figures.synthetic import family, intruders, retention
from workbench import figures
from workbench.figures import style


def test_members_look_apart_and_alike_in_every_figure():
    members = family(8)
    looks = style.assign(members)
    assert len({look.colour for look in looks.values()}) == 8
    few = retention(dict(list(members.items())[:2]))
    assert style.looks(few)["lora-r2"] != looks["lora-r2"]
    with figures.family(members):
        assert style.looks(few)["lora-r2"] == looks["lora-r2"]
    assert style.looks(few)["lora-r2"] != looks["lora-r2"]


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
