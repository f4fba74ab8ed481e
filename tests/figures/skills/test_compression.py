"""Stored bits against the score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.figures import skilled
from tests.figures.looking import heights, legend, lines, panels
from tests.figures.skilled import BASE, TUNED, level
from tests.figures.synthetic import family
from workbench import figures


def test_bits_against_score():
    figure = figures.bits_score(skilled.compression(family(2)))
    lora, full = panels(figure)
    x, y = lines(lora)["best low rank of Δ"]
    np.testing.assert_allclose(x, np.array(skilled.RANKS) / 8)
    np.testing.assert_allclose(y, level(np.array([0.25, 0.5, 1, 1])))
    assert lines(lora)["random entries"][1] == pytest.approx([BASE] * 3)
    assert lora.get_xscale() == "log"
    assert heights(lora) >= {BASE, TUNED}
    points = [
        {str(c.get_label()): c.lines[0].get_xydata()[0] for c in ax.containers}
        for ax in (lora, full)
    ]
    np.testing.assert_allclose(points[0]["the adapter's own file"], (skilled.ADAPTER, TUNED))
    assert "the adapter's own file" not in points[1]
    for shown in points:
        np.testing.assert_allclose(shown["tuned, 16 bits an entry"], (skilled.DENSE, TUNED))
        np.testing.assert_allclose(
            shown["signs and one scale (1 bit)"], (skilled.ONE_BIT, level(0.4))
        )
    assert {"principal weights", "singular vectors at 8, 3, 2 bits"} <= set(legend(figure))


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.compression(family(2)))
    for words_ in (
        "rank 0.50 bits (1.00 [0.92, 1.08])",
        "adapter 2.00 bits",
        "random not reached",
    ):
        assert words_ in said, said


def test_a_gain_that_may_be_nothing_is_not_compressed_in_words():
    made = skilled.compression(family(1))
    gains = made.table["metric"] == "gain"
    empty = replace(made, table=made.table.assign(value=made.table["value"].mask(gains)))
    assert "lora-r1: no gain to store" in figures.headline(empty)
