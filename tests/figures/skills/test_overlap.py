"""The overlap of grafts is shown over chance."""

from __future__ import annotations

import numpy as np

from tests.figures import skilled
from tests.figures.looking import panels, words
from tests.figures.synthetic import TASK, family
from workbench import figures

LORA, FULL = "lora-r1", "full"


def test_overlap_matrix_is_over_chance():
    figure = figures.overlap_matrix(skilled.overlap(family(2)))
    (ax,) = panels(figure)
    grid = np.ma.filled(ax.images[0].get_array(), np.nan)
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == [f"{member}, {task}" for member in (LORA, FULL) for task in (TASK, "facts")]
    assert np.isnan(np.diag(grid)).all()
    np.testing.assert_allclose([grid[0, 2], grid[2, 0]], np.log2(50))
    np.testing.assert_allclose([grid[0, 1], grid[0, 3]], 0, atol=1e-9)
    assert "0.5\n0.01 | 0.05" in words(figure)


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.overlap(family(2)))
    assert "0.500 (chance 0.010, 95% range 0.005 to 0.016; within matrices 0.050)" in said
