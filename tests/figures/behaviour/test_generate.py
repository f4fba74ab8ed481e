"""Texts are shown as they are, and new words are those that were planted."""

from __future__ import annotations

from tests.figures.looking import words
from workbench import figures


def test_hostile_text_is_shown_as_it_is(results):
    figure = figures.side_by_side(results[1])
    figure.draw_without_rendering()  # mathtext would fail here
    assert r"\$x_1\$ <b>&" in words(figure)


def test_new_words_are_the_planted_ones(results):
    figure = figures.new_words(results[1])
    assert figure.axes[0].get_yticklabels()[0].get_text() == "apple"
