"""Scores of edited models, a panel per member: what the figures of skills share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.results.result import Result

BLACK = "#222222"
NAMES = {"ece": "calibration error", "log_probability": "log p(answer) (nats)"}


def own_rows(result: Result, metric: str) -> pd.DataFrame:
    """The rows of a metric on the task's own prompts."""
    rows = result.metric(metric)
    return rows[rows["own"].eq(True)]


def by_member(
    result: Result, ax: Axes | None, height: float, *, share: tuple[bool, bool]
) -> tuple[Figure, np.ndarray, Iterable[tuple[Axes, tuple[str, style.Look]]]]:
    """A panel for each member; a column's width for one, two columns' for several."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 2 if len(looks) > 1 else 1)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=height * rows + 0.7,
        share=share,
    )
    return figure, axes, list(zip(axes.flat, looks.items(), strict=False))


def band(here: Axes, line: pd.DataFrame, colour: str) -> None:
    here.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)


def bars(rows: pd.DataFrame) -> np.ndarray:
    """Lengths of error bars; an interval may miss a value that is not a mean (calibration)."""
    value = rows["value"]
    return np.array([value - rows["low"], rows["high"] - value]).clip(0)


def ends(here: Axes, own: pd.DataFrame, *more: str) -> None:
    """Grey lines at base and tuned model, named beside the panel, where no curve runs; and at
    further ends that differ from the tuned model."""
    ends = {arm: own.loc[own["arm"] == arm, "value"].iloc[0] for arm in ("base", "tuned", *more)}
    ends = {arm: end for arm, end in ends.items() if arm not in more or end != ends["tuned"]}
    order = sorted(ends, key=ends.__getitem__)
    for arm, end in ends.items():
        # The lowest name hangs from its line, so that near lines keep their names readable.
        place = {order[0]: "top", order[-1]: "bottom"}.get(arm, "center")
        here.axhline(end, color=style.GREY, lw=0.7, zorder=0)
        here.annotate(arm, (1.01, end), xycoords=("axes fraction", "data"), va=place, fontsize=6,
                      color=style.GREY, annotation_clip=False)  # fmt: skip


def finish(
    result: Result, ax: Axes | None, axes: np.ndarray, table: pd.DataFrame, xlabel: str
) -> None:
    metric, task = table["metric"].iloc[0], table["task"].dropna().iloc[0]
    style.first_column(axes, f"{NAMES.get(metric, metric)} on {task}")
    for here in axes[-1]:
        here.set_xlabel(xlabel)
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
