"""Accuracies are drawn by side and layer, with random subspaces beside them."""

from __future__ import annotations

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
    said = figures.headline(made)
    assert "0.90 [0.80, 1.00] in the base" in said
    assert "the whole state 0.95 in the base; random subspaces 0.05" in said
