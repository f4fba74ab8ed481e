"""Is a model better elsewhere than its score on the task would let expect?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import error_bars
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "compare.robustness"
HEADING = "Robust beyond the score on the task?"


@style.styled
def line_of_the_family(result: Result, ax: Axes | None = None) -> Figure:
    """Score elsewhere over the score on the task, on logit axes, a panel for each other task; the
    line is that of all points. Black: the base."""
    points = result.metric("point")
    tasks = list(dict.fromkeys(points["task"]))
    rows, columns = style.grid_shape(len(tasks), 2 if len(tasks) > 1 else 1)
    width = style.WIDE if columns > 1 else style.COLUMN
    figure, axes = style.panels(ax, rows, columns, width=width, height=2.2 * rows + 0.7)
    looks = style.looks(result)
    for here, task in zip(axes.flat, tasks, strict=False):
        own = points[points["task"] == task].set_index("member")
        n = int(own["n"].iloc[0])
        for member, look in looks.items():
            row = own.loc[[member]]
            here.errorbar(_shrunk(row["x"], n), _shrunk(row["value"], n), error_bars(row),
                          fmt=look.marker, color=look.colour, ms=4, elinewidth=0.6,
                          label=look.label)  # fmt: skip
        base = own.iloc[[0]]
        here.plot(_shrunk(base["base_x"], n), _shrunk(base["baseline"], n), "s", ms=4,
                  color=style.BLACK, label="base")  # fmt: skip
        fit = result.table[result.table["task"] == task].set_index("metric")["value"]
        across = np.linspace(0.01, 0.99, 99)
        up = fit["intercept"] + fit["slope"] * np.log(across / (1 - across))
        here.plot(across, 1 / (1 + np.exp(-up)), color=style.GREY, ls=":", lw=1)
        here.set_xscale("logit")
        here.set_yscale("logit")
        here.set_xlim(0.005, 0.995)
        here.set_ylim(0.005, 0.995)
        for axis in (here.xaxis, here.yaxis):
            axis.set_ticks([0.01, 0.1, 0.5, 0.9, 0.99], ["1%", "10%", "50%", "90%", "99%"])
            axis.set_ticks([], minor=True)
        here.set_title(style.text(task))
    style.first_column(axes, "score elsewhere (logit scale)")
    for here in axes[-1]:
        here.set_xlabel("score on the task (logit scale)")
    style.blank(axes, len(tasks))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, points["n"], "prompts", outside=ax is None)
    return figure


def _shrunk(score: pd.Series, n: int) -> pd.Series:
    return (score * n + 0.5) / (n + 1)


DRAWINGS = (
    Drawing(
        KEY,
        "line",
        "Better elsewhere than the line of the family?",
        line_of_the_family,
        "Each mark is a model: its score on the fine-tuned task (across) and on another set of "
        "prompts (up). The dotted line is fitted through all of them. A model above the line keeps "
        "more elsewhere than models of its score usually do.",
        "A line through few models, or through models that lie on none, tells little: read its "
        "correlation in the table. Each model's distance there is from the line of the others.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    rows = table[table["metric"] == "effective"]
    for task in dict.fromkeys(rows["task"]):
        own = rows[rows["task"] == task]
        told = ", ".join(f"{row['member']} {change(row, '+.2f')}" for _, row in own.iterrows())
        fit = table[(table["task"] == task) & (table["metric"] == "correlation")]["value"].iloc[0]
        parts.append(f"{task}: {told} (correlation {fit:.2f}, n = {own['n'].iloc[0]:.0f})")
    return "The score elsewhere above the line through the rest of the family", parts
