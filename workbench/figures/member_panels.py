"""One panel per fine-tuned model, and the intervals in it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.results.result import Result


def by_member(
    result: Result, ax: Axes | None, height: float, *, share: tuple[bool, bool]
) -> tuple[Figure, np.ndarray, Iterable[tuple[Axes, tuple[str, style.Look]]]]:
    """A panel for each fine-tuned model; a column's width for one, two columns' for several."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 2 if len(looks) > 1 else 1)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=height * rows + 0.7,
        share=share,
    )
    return figure, axes, list(zip(axes.flat, looks.items(), strict=False))


def labelled(
    figure: Figure,
    axes: np.ndarray,
    y: tuple[str, pd.DataFrame],
    x: str,
    result: Result,
    ax: Axes | None,
) -> Figure:
    """The panels with their labels, one legend and the number of prompts.

    y: what is measured, and the rows that are drawn, whose task stands below it.
    """
    what, rows = y
    style.first_column(axes, f"{what}\n({style.text(str(rows['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel(x)
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows["n"], "prompts", outside=ax is None)
    return figure


def band(
    here: Axes,
    line: pd.DataFrame,
    colour: str,
    *,
    layers: bool = False,
    place: tuple[int, int] = (0, 1),
) -> None:
    """The 95% intervals of the rows of one curve, see `marks.intervals`."""
    marks.intervals(here, line["x"], line["low"], line["high"], colour, value=line["value"],
                    layers=layers, place=place)  # fmt: skip


def error_bars(rows: pd.DataFrame) -> np.ndarray:
    """Lengths of error bars; an interval may miss a value that is not a mean (calibration)."""
    value = rows["value"]
    return np.array([value - rows["low"], rows["high"] - value]).clip(0)
