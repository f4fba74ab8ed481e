"""The sentence of the sweep holds its numbers and a control."""

from __future__ import annotations

from tests.figures.synthetic import family, scale
from workbench import figures


def test_the_sentence_holds_the_numbers():
    swept = figures.headline(scale(family(2)))
    assert "Scaled by 0.7" in swept
    assert "top intruder: score on boxes -0.18 [-1.08, +0.72]%" in swept
    assert "pre-trained neighbour" in swept
