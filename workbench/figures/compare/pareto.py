"""At an equal score, which kind of fine-tuning forgets less? Every recipe as a point, a curve per
method over its learning rates, and the difference at equal scores."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import error_bars
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "compare.pareto"
HEADING = "Who forgets less at an equal score?"


@style.styled
def score_against_forgetting(result: Result, ax: Axes | None = None) -> Figure:
    """Score (across) and forgetting (up) of every recipe, with 95% intervals, and of every run; a
    curve joins a method's learning rates, and a number beside a point names its rate."""
    points, runs = result.metric("point"), result.metric("run")
    figure, axes = style.panels(ax, 1, 1, width=style.COLUMN, height=2.9)
    here = axes[0, 0]
    for number, (member, look) in enumerate(style.looks(result).items()):
        own = points[points["member"] == member].sort_values("rate")
        each = runs[runs["member"] == member]
        here.plot(each["x"], each["value"], ls="", marker=look.marker, ms=3, mfc="none",
                  mec=look.colour, mew=0.6, alpha=0.7, zorder=2)  # fmt: skip
        across = pd.DataFrame({"value": own["x"], "low": own["x_low"], "high": own["x_high"]})
        here.errorbar(own["x"], own["value"], error_bars(own), error_bars(across), lw=1.1,
                      color=look.colour, marker=look.marker, ms=4, elinewidth=0.6, zorder=3,
                      label=look.label)  # fmt: skip
        for _, row in own.iterrows():
            # Curves meet where every rate scores alike, so their rates stand on either side.
            away, align = ((-5, "right"), (5, "left"))[number % 2]
            here.annotate(f"{row['rate']:.2g}", (row["x"], row["value"]), (away, -2), fontsize=6,
                          textcoords="offset points", ha=align, color=look.colour)  # fmt: skip
    here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=0.9, zorder=0, label="base")
    here.set_yscale("symlog", linthresh=0.1)
    here.set_xlabel("score on the task")
    here.set_ylabel("rise of the loss (nats/token)\n" + marks.LOG)
    here.margins(0.16)
    style.legend(axes, outside=ax is None)
    counts = [(points["n"], "texts"), (points["runs"], "runs a point")]
    marks.counted(axes, counts, "", outside=ax is None)
    return figure


def sentence(result: Result) -> Findings:
    """The difference at the score where the curves are read."""
    table = result.table
    rows = table[(table["metric"] == "difference") & table["read"].eq(True)]
    if rows.empty:
        return "There is no full fine-tune at several learning rates to compare with", []
    parts = []
    for _, top in rows.iterrows():
        how = {"different": "more" if top["value"] > 0 else "less", "alike": "as much"}
        said = how.get(str(top["says"]), "undecided whether more or less")
        parts.append(
            f"{top['member']} against {top['versus']} at a score of {top['x']:.2f}: {said} "
            f"({change(top, '+.2f')} nats/token, {int(top['runs'])} runs a point)"
        )
    return "Forgetting at an equal score, of the learning rate that forgets least", parts


DRAWINGS = (
    Drawing(
        KEY,
        "curves",
        "Score against forgetting, over learning rates",
        score_against_forgetting,
        "Each filled mark is a recipe, the mean of its runs (hollow marks), with 95% intervals "
        "over items and runs in both directions; the number beside it is its learning rate. A line "
        "joins the learning rates of one method. At an equal score the lower curve forgets less.",
        "A method whose best learning rate was not tried is shown worse than it is. Points of two "
        "runs have wide intervals, and those of one run have intervals over items alone.",
    ),
)
