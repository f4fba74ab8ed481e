"""Reliability lies on the diagonal where confidence is right."""

from __future__ import annotations

import numpy as np

from tests.figures import skilled
from tests.figures.looking import lines, panels
from tests.figures.synthetic import TASK, family
from workbench import figures
from workbench.figures import style


def test_reliability_lies_on_the_diagonal_where_it_is_right():
    figure = figures.reliability(skilled.calibration(family(2)))
    confidence = np.array([x for x, _ in skilled.BINS])
    looks = style.looks(skilled.calibration(family(2)))
    for ax, look in zip(panels(figure), looks.values(), strict=True):
        arms = {str(c.get_label()): c for c in ax.containers}
        assert list(arms) == ["base", "tuned", "learned 1%"]
        base, tuned, _ = (c.lines[0] for c in arms.values())
        np.testing.assert_allclose(tuned.get_xydata(), np.stack([confidence] * 2, 1))
        np.testing.assert_allclose(base.get_xydata()[:, 1], confidence**2)
        assert (base.get_color(), tuned.get_color()) == (style.BLACK, look.colour)
        assert len({c.lines[0].get_color() for c in arms.values()}) == 3
        (bars,) = arms["tuned"].lines[2]
        np.testing.assert_allclose(bars.get_segments()[1][:, 1], [0.35, 0.75])
        sizes = [c.get_sizes() for c in ax.collections if c.get_offsets().size == 6]
        assert all((np.diff(size) > 0).all() for size in sizes)  # as the prompts in the bins
        assert len(sizes) == 3
        np.testing.assert_allclose(lines(ax)["perfectly calibrated"], ([0, 1], [0, 1]))
        told = [text.get_text() for text in ax.texts]
        assert told[0] == "base: ECE 0.300; perfect 0.060 [0.020, 0.110]"
        assert len(told) == 3
    assert panels(figure)[0].get_ylabel() == f"accuracy on {TASK}"


def test_reliability_shows_bins_of_equal_mass_on_request():
    made = skilled.calibration(family(1), grafts=())
    moved = made.table["binning"].eq("mass")
    made.table.loc[moved, "value"] = 0.5
    (ax,) = panels(figures.reliability(made, binning="mass"))
    assert all(set(c.lines[0].get_ydata()) == {0.5} for c in ax.containers)
    (ax,) = panels(figures.reliability(made))
    assert not any(set(c.lines[0].get_ydata()) == {0.5} for c in ax.containers)


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.calibration(family(2)))
    assert "base 0.300 [0.030, 0.350] (perfect 0.060 [0.020, 0.110])" in said
