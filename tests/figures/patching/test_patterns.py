"""The maps of the patterns are the table, and the example the one that changes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import words
from tests.figures.synthetic import family
from workbench import figures
from workbench.errors import WorkbenchError


def test_maps_are_the_table():
    (image,) = figures.pattern_differences(patched.patterns(family(1))).axes[0].images
    assert image.origin == "lower"
    assert np.unravel_index(image.get_array().argmax(), (patched.LAYERS, patched.HEADS)) == (2, 1)
    assert image.get_clim() == (0.0, 0.5)


def test_the_example_is_the_one_that_changes_and_legible():
    figure = figures.pattern_example(patched.patterns(family(2)))
    lowest = figure.axes[1]
    labels = [tick.get_text() for tick in lowest.get_xticklabels()]
    assert labels == [token.replace("$", r"\$") for token in patched.TOKENS]
    assert all(tick.get_fontsize() >= 6 for tick in lowest.get_xticklabels())
    heights = [bar.get_height() for bar in lowest.patches]
    assert heights.index(1) == 2
    assert heights[len(patched.TOKENS) :].index(1) == 5
    assert "layer 2, head 1" in words(figure)
    with pytest.raises(WorkbenchError, match="from 0 to 1"):
        figures.pattern_example(patched.patterns(family(2)), example=2)
