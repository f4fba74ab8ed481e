"""Where each verdict turns, by hand, and against the verdicts themselves at many margins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from tests.figures.looking import inside
from tests.figures.synthetic import result
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.findings import sensitivity
from workbench.findings.equivalence import KEY, verdict
from workbench.results.result import Result

MEMBERS: dict[str, Any] = {
    "r1": {"kind": "lora", "rank": 1}, "r4": {"kind": "lora", "rank": 4}, "full": {"kind": "full"},
}  # fmt: skip
# (interval, smallest margin of alike, what is said below it)
DIFFERENCES = [
    ((-0.02, 0.03), 0.03, "undecided"),
    ((-0.04, 0.03), 0.04, "undecided"),
    ((0.01, 0.2), 0.2, "different"),
    ((-0.3, -0.1), 0.3, "different"),
    ((0.0, 0.2), 0.2, "undecided"),
    ((-0.2, 0.0), 0.2, "undecided"),
    ((0.0, 0.0), 0.0, "undecided"),
    ((math.nan, math.nan), math.nan, "undecided"),
]
RATIOS = [
    ((0.8, 1.1), 1.25, "undecided"),
    ((0.9, 1.5), 1.5, "undecided"),
    ((1.1, 2.0), 2.0, "different"),
    ((0.25, 0.5), 4.0, "different"),
    ((1.0, 2.0), 2.0, "undecided"),
]


def made(*intervals: tuple[float, float], arm: str = "difference", margin: float = 0.05) -> Result:
    rows = [
        {"metric": "difference", "measure": f"measure {i}", "member": "r1", "versus": "full",
         "value": math.nan if math.isnan(low) else (low + high) / 2, "low": low, "high": high,
         "n": 9, "arm": arm, "margin": margin, "says": "different"}
        for i, (low, high) in enumerate(intervals)
    ]  # fmt: skip
    rows.append({"metric": "measure", "measure": "score", "member": "full", "value": 1.0, "n": 9})
    return result(KEY, rows, MEMBERS)


@pytest.mark.parametrize(
    ("arm", "cases"), [("difference", DIFFERENCES), ("ratio", RATIOS)], ids=["difference", "ratio"]
)
def test_where_a_verdict_turns_by_hand(arm: str, cases: list):
    found = sensitivity(made(*(one for one, _, _ in cases), arm=arm))
    assert found["alike_from"].tolist() == pytest.approx([at for _, at, _ in cases], nan_ok=True)
    assert found["below"].tolist() == [said for _, _, said in cases]
    assert set(found["arm"]) == {arm}
    assert list(found["member"].unique()) == ["r1"]
    assert found["margin"].eq(0.05).all()
    assert found["says"].eq("different").all()


def test_it_is_what_the_verdicts_say_at_every_margin():
    """Random intervals; of a ratio in logarithms, as its verdict is."""
    draw = np.random.default_rng(0)
    for arm in ("difference", "ratio"):
        edges = np.sort(draw.normal(size=(40, 2)), axis=1)
        given = np.exp(edges) if arm == "ratio" else edges
        told = sensitivity(made(*map(tuple, given), arm=arm))
        for (low, high), row in zip(edges, told.itertuples(), strict=True):
            turns = math.log(row.alike_from) if arm == "ratio" else row.alike_from
            for margin in (turns * 0.5, turns * 0.999):
                assert verdict(low, high, margin) == row.below
            for margin in (turns * 1.001, turns * 3):
                assert verdict(low, high, margin) == "alike"


def drawn(one: Result) -> list[tuple[str, float, float]]:
    """(colour, from, to) of each bar of the first panel."""
    bars = figures.verdicts_by_margin(one).axes[0].patches
    spans = [(bar.get_facecolor(), bar.get_bbox()) for bar in bars if isinstance(bar, Rectangle)]
    return [(to_hex(colour), box.x0, box.x1) for colour, box in spans]


def test_bars_turn_where_the_table_says():
    low, high = 0.05 / 8, 0.05 * 8
    orange, blue, grey = "#e69f00", "#0072b2", "#d9d9d9"
    assert drawn(made((0.01, 0.2))) == [
        (orange, pytest.approx(low), pytest.approx(0.2)),
        (blue, pytest.approx(0.2), pytest.approx(high)),
    ]
    # What is alike at every margin shown, and what is at none.
    assert drawn(made((-0.001, 0.001))) == [(blue, pytest.approx(low), pytest.approx(high))]
    assert drawn(made((math.nan, math.nan))) == [(grey, pytest.approx(low), pytest.approx(high))]
    # The axis reaches beyond the last turn; of a factor it begins at 1.
    assert drawn(made((0.5, 2.0)))[-1][2] == pytest.approx(2.4)
    assert drawn(made((0.9, 1.1), arm="ratio", margin=1.25)) == [
        (grey, pytest.approx(1.0), pytest.approx(1 / 0.9)),
        (blue, pytest.approx(1 / 0.9), pytest.approx(1.5625)),
    ]


def test_it_is_a_figure_of_the_equivalence():
    one = made((0.01, 0.2), (-0.1, 0.02))
    (name,) = [drawing.name for drawing, _ in figures.drawings(one, [one])]
    assert name == "margins"
    figure = figures.verdicts_by_margin(one)
    figure.draw_without_rendering()
    inside("margins", figure)
    assert np.asarray(figure.axes[0].lines[0].get_xdata()).tolist() == [0.05, 0.05]
    measured = Result(KEY, one.table[one.table["metric"] == "measure"], one.provenance)
    assert sensitivity(measured).empty
    with pytest.raises(WorkbenchError, match="differences from a full fine-tune"):
        figures.verdicts_by_margin(measured)
