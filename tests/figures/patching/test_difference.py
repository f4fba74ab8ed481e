"""Words that were read are drawn in their order, those of the reference filled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import difference


@pytest.mark.parametrize("count", [1, 8])
def test_words_and_layers_are_drawn(count: int):
    made = patched.difference(family(count))
    figure = difference.words_read(made)
    check("words", figure)
    bars = sorted(figure.axes[0].patches, key=lambda bar: bar.get_y())
    np.testing.assert_allclose([bar.get_width() for bar in bars], [9, 4.5, 3, 2.25])
    assert [bar.get_facecolor()[3] for bar in bars] == [1, 1, 0, 0]
    figure = difference.difference_by_layer(made)
    check("layers", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.1, 0.1, 0.4, 0.4])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0, 0, 0.5, 0.5])
    said = figures.headline(made)
    assert "'coins', 'step'" in said
    assert "0.50 [0.40, 0.60] of 16 reference words" in said


def test_no_difference_is_said_in_words():
    made = patched.difference(family(1))
    table = made.table[made.table["metric"].isin(["norm", "constant", "new_words"])]
    none = type(made)(made.analysis, table.assign(side=None, token=None), made.provenance)
    assert "nothing, as the two models' mean states are the same" in figures.headline(none)
    assert [drawing.name for drawing, _ in figures.drawings(none, [none])] == ["layers"]
