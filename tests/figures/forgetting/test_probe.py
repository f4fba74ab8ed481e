"""The curves of the probes are the table."""

from __future__ import annotations

import numpy as np

from tests.figures.looking import of_key
from workbench.figures.forgetting.probe import KEY, probe_layers


def test_curves_show_the_table(results):
    """The line of the tuned model, point by point."""
    result = of_key(results, KEY)
    figure = probe_layers(result)
    table = result.metric("accuracy")
    for ax, member in zip(figure.axes, result.members, strict=False):
        (line,) = [one for one in ax.lines if one.get_label() == "tuned model"]
        own = table[(table["member"] == member) & (table["arm"] == "tuned")]
        np.testing.assert_allclose(line.get_ydata(), own.sort_values("layer")["value"])
        labels = {one.get_label() for one in ax.lines}
        assert {"base", "random weights", "shuffled labels"} <= labels
