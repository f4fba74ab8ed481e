"""Which verdict does each margin give? A panel per measure, a row per model, the margin along x."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.results.result import Result
from workbench.results.sensitivity import sensitivity

# Apart for every kind of colour vision, and in grey by their lightness.
COLOURS = {"alike": "#0072B2", "different": "#E69F00", "undecided": "#D9D9D9"}


def has_margins(result: Result) -> bool:
    """Whether anything was compared within a margin."""
    return bool((result.table["metric"] == "difference").any())


@style.styled
def verdicts_by_margin(result: Result, ax: Axes | None = None) -> Figure:
    """What the difference of each model from the full fine-tune says at every margin; the dashed
    line is the margin that was used."""
    told = sensitivity(result)
    if told.empty:
        raise WorkbenchError(
            "Expected differences from a full fine-tune, found none; the members of the result "
            "were measured only."
        )
    measures = list(told["measure"].unique())
    looks = style.looks(result)
    most = int(told.groupby("measure")["member"].nunique().max())
    rows, columns = style.grid_shape(len(measures), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=rows * (0.18 * most + 0.62) + 0.15,
    )
    style.blank(axes, len(measures))
    for here, measure in zip(axes.flat, measures, strict=False):
        own = told[told["measure"] == measure]
        low, high = _scale(here, own)
        for place, (_, row) in enumerate(own.iterrows()):
            turns = high if math.isnan(row["alike_from"]) else min(row["alike_from"], high)
            for says, left, right in ((row["below"], low, turns), ("alike", turns, high)):
                if left < right:
                    here.barh(place, right - max(left, low), 0.7, max(left, low),
                              color=COLOURS[says], lw=0)  # fmt: skip
        here.axvline(own["margin"].iloc[0], color=style.BLACK, ls=style.DASHES[0], lw=1)
        unit = "factor" if own["arm"].iloc[0] == "ratio" else "difference"
        log = ", log scale" if here.get_xscale() == "log" else ""
        here.set_xlabel(f"margin of {style.text(measure, 28)}\n({unit}{log})")
        names = [looks[member].label if member in looks else member for member in own["member"]]
        here.set_yticks(range(len(own)), names)
        here.set_ylim(most - 0.4, -0.6)
    for says, colour in COLOURS.items():
        axes[0, 0].fill_between([], [], [], color=colour, label=says)
    axes[0, 0].plot([], [], color=style.BLACK, ls=style.DASHES[0], lw=1, label="margin used")
    style.legend(axes, outside=ax is None)
    return figure


def _scale(here: Axes, own: pd.DataFrame) -> tuple[float, float]:
    """The axis of margins, from an eighth of the one used (of a factor: from 1) to beyond the
    largest at which a verdict turns."""
    margin, turns = float(own["margin"].iloc[0]), float(own["alike_from"].max())
    ratio = own["arm"].iloc[0] == "ratio"
    low, beyond = (1.0, margin**2) if ratio else (margin / 8, margin * 8)
    high = max(beyond, 1.2 * turns) if math.isfinite(turns) else beyond
    here.set_xlim(low, high)
    if high / low > 3:
        here.set_xscale("log")
        marks.log_ticks(here.xaxis, low, high)
        here.set_xlim(low, high)
    return low, high
