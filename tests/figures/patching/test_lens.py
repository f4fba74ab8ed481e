"""The lines of the lens are the table."""

from __future__ import annotations

import numpy as np

from tests.figures import patched
from tests.figures.synthetic import family
from workbench import figures


def test_the_lens_lines_are_the_table():
    figure = figures.lens_by_layer(patched.lens(family(1)))
    answer, divergence = figure.axes[:2]
    lines = {line.get_label(): line.get_ydata() for line in answer.lines}
    np.testing.assert_allclose(lines["base"], np.arange(-1, patched.LAYERS) - 5)
    np.testing.assert_allclose(lines["lora-r1"] - lines["base"], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), [0, 0, 0, 1, 1])
