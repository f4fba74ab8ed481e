"""Do intruders cause the forgetting? The task and the pre-training loss as they are scaled."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.figures.forgetting import PRETRAINING, task_of
from workbench.results.result import Result

KEY = "spectral.scale"
LABELS = {
    "top": "top intruder",
    "all": "all intruders",
    "neighbour": "pre-trained neighbour",
    "random": "random vector",
    "shrink": "whole ΔW shrunk",
}
CONTROLS = ("neighbour", "random", "shrink")
BLACK = "#222222"


@style.styled
def scale_sweep(result: Result, ax: Axes | None = None) -> Figure:
    """% change of the task score (left) and of the pre-training loss (right) against lambda.

    One row per member, one line per arm with its 95% interval; the member's colour is the top
    intruder, black all of them, dashed grey the controls.
    """
    wanted = ((task_of(result), "score_change"), (PRETRAINING, "loss_change"))
    looks = style.looks(result)
    figure, axes = style.panels(
        *(ax, len(looks), 2),
        width=style.WIDE,
        height=1.5 * len(looks) + 1.1,
        share=(True, "col"),
    )
    for row, (name, look) in zip(axes, looks.items(), strict=True):
        for here, (task, metric) in zip(row, wanted, strict=True):
            rows = result.table[
                (result.table["member"] == name)
                & (result.table["task"] == task)
                & (result.table["metric"] == metric)
            ]
            _arms(here, rows.sort_values("x"), look)
            here.axhline(0, color=style.GREY, lw=0.6, zorder=0)
            here.axvline(1, color=style.GREY, lw=0.6, zorder=0)
        row[0].set_title(look.label, loc="left", color=look.colour)
        row[0].set_ylabel("task score\nchange (%)")
        row[1].set_ylabel("pre-training loss\nchange (%)")
    for here in axes[-1]:
        here.set_xlabel("scale λ of the singular value (1 = as tuned)")
    style.legend(axes, outside=ax is None)
    return figure


def _arms(here: Axes, rows, look: style.Look) -> None:
    """Every arm of one member and metric: a line, markers and an interval band."""
    known = [arm for arm in LABELS if arm in set(rows["arm"])]
    unknown = [arm for arm in dict.fromkeys(rows["arm"]) if arm not in LABELS]
    if not known:
        raise WorkbenchError(
            f"Expected arms of {sorted(LABELS)} for {look.label}, found {unknown}."
        )
    for arm in known:
        line = rows[rows["arm"] == arm]
        colour = {"top": look.colour, "all": BLACK}.get(arm, style.GREY)
        control = arm in CONTROLS
        here.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        here.plot(
            *(line["x"], line["value"]),
            color=colour,
            ls=style.DASHES[CONTROLS.index(arm)] if control else "-",
            marker=None if control else "o",
            markersize=3,
            lw=1.0 if control else 1.4,
            label=LABELS[arm],
            zorder=2 if control else 3,
        )
