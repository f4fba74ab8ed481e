"""Accuracies are drawn by side and layer, with random subspaces beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import das


@pytest.mark.parametrize("count", [1, 8])
def test_every_side_is_drawn(count: int):
    made = patched.das(family(count))
    figure = das.accuracies(made)
    check("accuracy", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.9, 0.9])
    for axes in figure.axes[:count]:
        first = [line.get_xdata()[0] for line in axes.lines[:4]]
        assert len({*np.round(first, 6)}) == 4  # of few layers, side by side
    said = figures.headline(made)
    assert "0.90 [0.80, 1.00] in the base" in said
    assert "the whole state 0.95 in the base; random subspaces 0.05" in said


def test_a_single_layer_has_its_intervals_and_the_whole_state():
    """Which a band over one place would not show."""
    made = patched.das(family(1))
    one = replace(made, table=made.table[made.table["layer"] == 3].reset_index(drop=True))
    figure = das.accuracies(one)
    check("accuracy", figure)
    (axes,) = figure.axes
    drawn = [path for bars in axes.collections for path in bars.get_paths()]
    spans = sorted({tuple(np.round(path.vertices[:, 1], 6)) for path in drawn})
    assert spans == [(0.1, 0.3), (0.8, 1.0)]
    named = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(named["the whole state"]) == [0.95]
