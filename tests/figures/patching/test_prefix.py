"""A prefix is drawn beside random ones, and what it leaves alone beside rounding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import prefix


@pytest.mark.parametrize("count", [1, 8])
def test_a_prefix_is_drawn_beside_random_ones(count: int):
    made = patched.prefix(family(count))
    layers = prefix.by_layer(made)
    check("layers", layers)
    for here, value in zip(layers.axes, (0.2, 0.3, 0.6), strict=False):
        np.testing.assert_allclose(here.lines[0].get_ydata(), [value, value, value + 0.3, value])
        np.testing.assert_allclose(here.lines[1].get_ydata(), 0.15)
    content = prefix.content(made)
    check("content", content)
    np.testing.assert_allclose(content.axes[0].lines[0].get_ydata(), [1e-7, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(content.axes[0].lines[1].get_ydata(), 1e-7)
    np.testing.assert_allclose(content.axes[0].lines[2].get_ydata(), 1e-6)
    heads = prefix.heads(made)
    check("heads", heads)
    np.testing.assert_allclose(heads.axes[0].images[0].get_array()[:, 0], [0.2, 0.2, 0.5, 0.2])
    said = figures.headline(made)
    assert "as without it, up to rounding; most in layer 2" in said
    assert "takes 0.50 [0.48, 0.52] of attention (random prefix: 0.15)" in said


def test_a_theory_that_does_not_hold_is_told():
    made = patched.prefix(family(1))
    wrong = made.table["side"].eq("with - without prefix") & made.table["layer"].eq(1)
    made.table.loc[wrong, "value"] = 0.1
    assert "CHANGED, which theory excludes" in figures.headline(made)
