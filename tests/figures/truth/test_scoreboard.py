"""The scoreboard's figures show the numbers of its table."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.looking import words
from tests.figures.synthetic import scoreboard
from workbench import figures
from workbench.figures.truth.scoreboard import errors, intervals, places


def test_every_cell_is_the_auroc_of_a_method_and_a_pair():
    made = scoreboard()
    (here, _) = places(made).axes
    (image,) = here.images
    grid = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    rows = made.metric("auroc")
    names = [label.get_text() for label in here.get_yticklabels()]
    truths = [label.get_text() for label in here.get_xticklabels()]
    assert truths[-1] == "all"
    assert grid.shape == (len(names), len(truths)) == (3, 4)
    for _, row in rows.iterrows():
        at = names.index(f"{row['method']}, {row['place']}"), truths.index(row["truth"])
        assert grid[at] == row["value"]
    assert np.isnan(grid).sum() == 2  # nothing is known of heads of one pair, nor on average


def test_rates_stand_where_their_values_are():
    made = scoreboard()
    (here,) = errors(made).axes
    right, wrong = (one.lines[0].get_xdata() for one in here.containers)  # pyright: ignore
    assert list(right) == [1.0, 0.5]
    assert list(wrong) == [0.0, 0.25]


def test_coverage_stands_beside_what_is_stated():
    (here,) = intervals(scoreboard()).axes
    stated, covered = here.lines[0].get_xdata(), here.containers[0].lines[0].get_xdata()  # pyright: ignore
    assert list(stated) == [0.95, 0.95]  # pyright: ignore
    assert list(covered) == [0.94, 0.81]
    assert here.get_xlim()[0] <= 0.5


def test_the_sentence_has_the_mean_and_what_it_is_beyond_the_norm():
    lead, parts = figures.findings(scoreboard())
    assert "higher score" in lead
    assert (
        parts[0]
        == "patching.restore by matrix: 0.80 on 3 pairs, +0.10 against the norm of the change"
    )
    assert "0.70 on 3 pairs" in parts[-1]
    assert "all" in words(places(scoreboard()))
    assert figures.headline(scoreboard()).endswith(".")
    assert pytest.approx(0.8) == scoreboard().metric("auroc")["value"].iloc[3]
