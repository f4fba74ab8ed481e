"""What is taken back runs from the tuned model to the base."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from tests.figures import skilled
from tests.figures.looking import heights, legend, lines, panels, words
from tests.figures.skilled import BASE, TUNED, level
from tests.figures.synthetic import TASK, family
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures.skills.restore import ORDERS

LORA, FULL = "lora-r1", "full"


def test_restoration_runs_from_the_tuned_model_to_the_base():
    figure = figures.restoration(skilled.restore(family(2)))
    for ax, name in zip(panels(figure), (LORA, FULL), strict=True):
        shown = lines(ax)
        assert ax.get_title(loc="left") == name
        for arm, (label, *_) in ORDERS.items():
            x, y = shown[label]
            np.testing.assert_allclose(x, [0, *skilled.SHARES, 1])
            np.testing.assert_allclose(y, level(skilled.LEFT[arm](x)))
        # The intervals of two orders, and a bar at every ring.
        assert len(ax.collections) == 2 + len(skilled.LEFT)
        rings = [(float(line.get_xdata()[0]), float(line.get_ydata()[0]))
                 for line in ax.lines
                 if line.get_markerfacecolor() == "none" and len(line.get_xdata())]  # fmt: skip
        expected = [(q, level(skilled.LEFT[arm](q))) for arm, q in skilled.FREE.items()]
        np.testing.assert_allclose(rings, expected)
        found = [c.get_segments()[0] for c in ax.collections if isinstance(c, LineCollection)]
        bars = [segment[:, 0] for segment in found if np.ptp(segment[:, 1]) == 0]
        assert bars[2].tolist() == [0.4, 0.8]  # the range of the choice
        assert np.ptp(np.delete(bars, 2, 0), axis=1).max() == 0  # nothing else was free
        assert heights(ax) >= {BASE, TUNED}
    assert "free (with its range)" in legend(figure)
    assert "base" in words(figure)


def test_restoration_takes_another_metric():
    figure = figures.restoration(skilled.restore(family(1)), metric="log_probability")
    assert panels(figure)[0].get_ylabel() == f"log p(answer) (nats) on {TASK}"
    with pytest.raises(WorkbenchError, match="no metric 'brier'"):
        figures.restoration(skilled.restore(family(1)), metric="brier")


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.restore(family(2)))
    for words_ in (
        "smallest |Δ| first 40% [40%, 80%] (score -0.010 [-0.030, +0.010]",
        "harmful updates, smallest |Δ| first 40%: +0.040 [+0.010, +0.070]",
        "random entries first 0%",
        "chosen on 20 prompts",
    ):
        assert words_ in said, said
    assert all("harmful" not in part for part in said.split("; ")[2:])
