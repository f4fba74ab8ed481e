"""The outcomes of prompts are all of them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from tests.figures.looking import of_key
from workbench.figures.forgetting.conjugate import KEY, conjugate_outcomes


def test_outcomes_of_a_prompt_add_up_to_one(results):
    figure = conjugate_outcomes(of_key(results, KEY))
    for ax in figure.axes[:2]:
        tops: dict[float, float] = {}
        for bar in ax.patches:
            if isinstance(bar, mpl.patches.Rectangle):
                x = round(bar.get_x(), 3)
                tops[x] = tops.get(x, 0.0) + bar.get_height()
        np.testing.assert_allclose(list(tops.values()), 1.0)
