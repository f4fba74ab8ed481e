"""The components that changed most are drawn first, with both sides' values."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import contributions


@pytest.mark.parametrize("count", [1, 8])
def test_the_component_that_changed_is_first(count: int):
    made = patched.contributions(family(count))
    figure = contributions.largest_changes(made)
    check("changes", figure)
    here = figure.axes[0]
    assert here.get_yticklabels()[0].get_text() == "head 2.1"
    np.testing.assert_allclose(here.lines[0].get_xdata()[0], 2.5)
    np.testing.assert_allclose(here.lines[1].get_xdata()[0], 0.5)
    assert "head 2.1 by 2.00" in figures.headline(made)
