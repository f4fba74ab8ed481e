"""The curves of revival are the table."""

from __future__ import annotations

import numpy as np

from tests.figures.looking import of_key
from workbench.figures.forgetting.revive import KEY, revival_curves


def test_curves_show_the_table(results):
    result = of_key(results, KEY)
    figure = revival_curves(result)
    scores = result.metric("score")
    for ax, member in zip(figure.axes, result.members, strict=False):
        (line,) = [one for one in ax.lines if one.get_label() == "relabelled"]
        own = scores[(scores["member"] == member) & (scores["arm"] == "relabelled")]
        np.testing.assert_allclose(line.get_ydata(), own.groupby("x")["value"].mean())
