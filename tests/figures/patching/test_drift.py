"""The distances of drift are drawn over their null."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import drift


@pytest.mark.parametrize("count", [1, 8])
def test_the_distance_is_drawn_over_that_of_other_prompts(count: int):
    made = patched.drift(family(count))
    figure = drift.drift_by_layer(made)
    check("layers", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1e-3] * 3 + [0.5] * 2)
    np.testing.assert_allclose(figure.axes[2].lines[-1].get_ydata(), 0.3)
    check("sphere", drift.sphere(made))
    assert "most in layer 2 (0.5 times the null)" in figures.headline(made)
