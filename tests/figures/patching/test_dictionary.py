"""Latents that changed stand over the band of what chance gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import dictionary


@pytest.mark.parametrize("count", [1, 8])
def test_latents_are_drawn_over_the_band_of_chance(count: int):
    made = patched.dictionary(family(count))
    figure = dictionary.changed_latents(made)
    check("latents", figure)
    here = figure.axes[0]
    assert [label.get_text() for label in here.get_yticklabels()] == ["7", "12", "30", "4"]
    np.testing.assert_allclose(here.lines[0].get_xdata(), [3, -1, 0.3, -0.2])
    np.testing.assert_allclose(here.lines[1].get_xdata(), 0.1)
    band = here.patches[0].get_path().get_extents(here.patches[0].get_patch_transform())
    assert (band.x0, band.x1) == pytest.approx((-0.5, 0.5))
    fit = dictionary.fit(made)
    check("fit", fit)
    np.testing.assert_allclose(fit.axes[0].lines[0].get_ydata(), [0.2, 0.3])
    np.testing.assert_allclose(fit.axes[1].lines[0].get_ydata(), [1, 0.3, 0.8, 0.1])
    said = figures.headline(made)
    assert "2 (chance: 0); the latents hold 0.70 [0.60, 0.80] of the change" in said
