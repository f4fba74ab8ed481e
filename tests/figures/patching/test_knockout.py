"""The component that the tuned model needs most is drawn first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures import patched
from tests.figures.looking import check
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures.patching import knockout


@pytest.mark.parametrize("count", [1, 8])
def test_what_is_needed_is_first(count: int):
    made = patched.knockout(family(count))
    figure = knockout.needed(made)
    check("needed", figure)
    here = figure.axes[0]
    assert here.get_yticklabels()[0].get_text() == "head 2.1"
    np.testing.assert_allclose(here.lines[0].get_xdata()[0], -3.1)
    np.testing.assert_allclose(here.lines[1].get_xdata()[0], -0.1)
    figure = knockout.layers_needed(made)
    check("layers", figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [-1, -1, -4, -1])
    assert "head 2.1 by -3.00" in figures.headline(made)
