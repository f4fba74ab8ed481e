"""Steering is drawn behind the layer that was chosen, beside its controls."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import steer


@pytest.mark.parametrize("count", [1, 8])
def test_the_chosen_layer_and_scale_are_drawn(count: int):
    made = patched.steer(family(count))
    figure = steer.steered_by_scale(made)
    check("scale", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [-4, -1, -4])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), -4)
    figure = steer.steered_by_layer(made)
    check("layers", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [-4, -4, -1, -4])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [-1, -1, -4, -1])
    assert "1 times the direction behind layer 2" in figures.headline(made)
