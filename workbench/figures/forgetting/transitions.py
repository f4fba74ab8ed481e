"""Items lost and gained: by model and task, and the matrix of every model on every task."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.task_and_loss import measured
from workbench.results.result import Result

MOST = 12  # tasks that fit a page


@style.styled
def item_transitions(result: Result, ax: Axes | None = None) -> Figure:
    """Lost to the left, gained to the right, a panel per task, models downwards."""
    tasks = tasks_of(result)[:MOST]
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(tasks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=rows * (0.28 * max(len(looks), 2) + 0.55) + 0.6,
        share=(True, True),
    )
    for here, task in zip(axes.flat, tasks, strict=False):
        for metric, sign in (("lost", -1), ("gained", 1)):
            plain, less = (measured(result, task, f"{metric}{end}") for end in ("", "_adjusted"))
            for y, (name, look) in enumerate(looks.items()):
                if name in plain.index:
                    _mark(here, y, sign, plain.loc[name], look, filled=True)
                if name in less.index:  # nothing lost is the least there can be
                    few = less.loc[name, ["value", "low", "high"]].clip(lower=0)
                    _mark(here, y + 0.28, sign, few, look, filled=False)
        here.axvline(0, color=style.GREY, lw=1, zorder=0)
        here.set_yticks(range(len(looks)), [look.label for look in looks.values()])
        here.set_title(style.text(task, 30), loc="left", fontsize=style.SMALL)
    axes.flat[0].set_ylim(len(looks) - 0.4, -0.5)
    axes.flat[0].xaxis.set_major_formatter(lambda value, _: f"{abs(value):.2g}")
    for here in axes[-1]:
        here.set_xlabel("lost (1 → 0)  |  gained (0 → 1)\n(share, against the base)")
    style.first_column(axes, "model")
    style.blank(axes, len(tasks))
    marks.counted(axes, result.metric("lost")["n"], "items a task", outside=ax is None)
    return figure


def _mark(
    here: Axes, y: float, sign: int, row: pd.Series, look: style.Look, *, filled: bool
) -> None:
    if pd.notna(row["low"]):
        here.plot([sign * row["low"], sign * row["high"]], [y, y], color=look.colour, lw=1)
    face = look.colour if filled else "white"
    here.plot(sign * row["value"], y, look.marker, color=look.colour, mfc=face, ms=4)


@style.styled
def transfer_matrix(result: Result, ax: Axes | None = None) -> Figure:
    """score_change of every model (down) on every task (across), with shares lost and gained."""
    tasks = tasks_of(result)[:MOST]
    looks = style.looks(result)
    changes = {task: measured(result, task, "score_change") for task in tasks}
    grid = np.full((len(looks), len(tasks)), np.nan)
    for column, rows in enumerate(changes.values()):
        grid[:, column] = rows["value"].reindex(list(looks)).to_numpy(float)
    longest = max(len(look.label) for look in looks.values())
    figure, axes = style.panels(
        *(ax, 1, 1),
        width=style.COLUMN
        if len(tasks) == 1 or (len(tasks) <= 3 and longest <= 12)
        else style.WIDE,
        height=0.42 * len(looks) + 1.2,
    )
    here = axes.flat[0]
    most = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 0.0
    most = most or 1.0
    image = here.imshow(
        grid, style.DIVERGING.removesuffix("_r"), vmin=-most, vmax=most, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(grid):
        name, task = list(looks)[row], tasks[column]
        if pd.isna(value):
            continue
        own = changes[task].loc[name]
        lost, won = (
            measured(result, task, metric).loc[name, "value"] for metric in ("lost", "gained")
        )
        here.text(
            *(column, row), f"{value:+.2f}\n−{lost:.2f} +{won:.2f}", ha="center", va="center",
            fontsize=6, color=style.on(image.cmap(image.norm(value))),
        )  # fmt: skip
        if own["low"] > 0 or own["high"] < 0:
            marks.framed(here, column, row)
    here.set_facecolor(style.PALE)
    here.set_xticks(range(len(tasks)), [style.text(task, 16) for task in tasks], rotation=35,
                    ha="right", rotation_mode="anchor")  # fmt: skip
    here.set_yticks(range(len(looks)), [look.label for look in looks.values()])
    here.spines[:].set_visible(False)
    here.set(xlabel="task", ylabel="model")
    style.colour_bar(image, here, "change of the score\n(tuned − base)")
    marks.counted(axes, result.metric("lost")["n"], "items a task", outside=ax is None)
    return figure


def tasks_of(result: Result) -> list[str]:
    """Tasks of which items were counted, in their order."""
    return list(result.metric("lost")["task"].drop_duplicates())
