"""Grafts put together stand beside their controls."""

from __future__ import annotations

import numpy as np

from tests.figures import skilled
from tests.figures.looking import panels
from tests.figures.skilled import BASE
from tests.figures.synthetic import TASK, family
from workbench import figures


def test_composition_has_the_base_below_and_its_controls_beside():
    figure = figures.composition(skilled.compose(family(2)))
    graft, random, whole = (ax.images[0].get_array() for ax in panels(figure))
    np.testing.assert_allclose(graft, [[BASE] * 2, [0.9, BASE], [BASE, 0.9], [0.8, 0.8]])
    np.testing.assert_allclose(random, BASE)
    np.testing.assert_allclose(whole[-1], 0.95)
    rows = [tick.get_text() for tick in panels(figure)[0].get_yticklabels()]
    assert rows == ["none (base)", TASK, "facts", f"{TASK} + facts"]


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.compose(family(2)))
    assert f"{TASK}: 0.90 with its own graft alone, -0.10 [-0.15, -0.05] with all" in said
