"""Scores of edited models: their rows, how each way of choosing entries is drawn, and base and
tuned model as lines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workbench.figures import marks, style
from workbench.results.result import Result

ENOUGH = 0.95  # of the gain
MEASURES = {"ece": "calibration error", "log_probability": "log p(answer) (nats)"}
# How an arm is drawn: label, colour (None: the model's), dashes, marker.
CURVES = {
    "learned": ("learned mask", None, "-", "o"),
    "movement": ("largest change |Δ|", style.BLACK, "-", "s"),
    "rank": ("best low rank of Δ", "#0072B2", "-", "D"),
    "gradient": ("largest gradient", "#009E73", style.DASHES[0], "^"),
    "principal": ("principal weights", "#E69F00", style.DASHES[0], "v"),
    "magnitude": ("largest weights |θ₀|", "#CC79A7", style.DASHES[0], "<"),
    "random": ("random entries", style.GREY, style.DASHES[1], "o"),
}
RANDOM = CURVES["random"]


def own_rows(result: Result, metric: str) -> pd.DataFrame:
    """The rows of a metric on the task's own prompts."""
    rows = result.metric(metric)
    return rows[rows["own"].eq(True)]


def model_lines(here: Axes, own: pd.DataFrame, *more: str) -> None:
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


def has_curve(result: Result, *arms: str) -> bool:
    """Whether some arm has two sizes to draw a curve through; of one the headline has it."""
    rows = own_rows(result, "score")
    rows = rows[rows["arm"].isin(arms) & (rows["x"] > 0)]
    return bool((rows.groupby(["member", "arm"])["x"].nunique() > 1).any())


def finish(
    result: Result, ax: Axes | None, axes: np.ndarray, table: pd.DataFrame, xlabel: str
) -> None:
    metric, task = table["metric"].iloc[0], table["task"].dropna().iloc[0]
    style.first_column(axes, f"{MEASURES.get(metric, metric)} on {task}")
    for here in axes[-1]:
        here.set_xlabel(xlabel)
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
