"""Which measure of the change goes with forgetting? A panel per measure, a point per model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import error_bars
from workbench.figures.task_and_loss import LOSS
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.association"
HEADING = "What goes with forgetting"
LABELS = {"loss": LOSS, "score": "mean drop of the other tasks'\nscores"}


@style.styled
def forgetting_by_measure(result: Result, ax: Axes | None = None, *, outcome: str = "") -> Figure:
    """Forgetting against every measure of the change; Spearman's rho above each panel.

    outcome: "loss" or "score"; the loss by default.
    """
    table = result.table
    outcome = outcome or "loss"
    lost = result.metric("forgetting")
    lost = lost[lost["outcome"] == outcome].set_index("member")
    found = result.metric("spearman")
    found = found[found["outcome"] == outcome].set_index("measure")
    measures = list(dict.fromkeys(result.metric("measure")["measure"]))
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(measures), 4)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.4,
        share=(False, True),
    )
    style.blank(axes, len(measures))  # every panel has a label of its own
    for here, measure in zip(axes.flat, measures, strict=False):
        own = table[(table["metric"] == "measure") & (table["measure"] == measure)]
        own = own.set_index("member")["value"]
        for member, look in looks.items():
            row = lost.loc[[member]]
            bars = None if row["low"].isna().any() else error_bars(row)
            here.errorbar(own[member], row["value"], bars, color=look.colour, marker=look.marker,
                          ms=4, elinewidth=0.9, ls="", label=look.label)  # fmt: skip
        here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, zorder=0, label="base")
        row = found.loc[measure]
        beside = "" if pd.isna(row["baseline"]) else f"\nnull: ρ = {row['baseline']:.2f}"
        here.set_title(f"ρ = {row['value']:.2f} (p = {row['p']:.2f}){beside}", loc="left",
                       fontsize=style.SMALL)  # fmt: skip
        here.set_xlabel(style.text(measure, 28))
        here.margins(0.12)
    style.first_column(axes, LABELS[outcome])
    style.legend(axes, outside=ax is None)
    items, models = lost["n"], found["n"]
    what = "texts" if outcome == "loss" else "prompts"
    marks.counted(axes, [(models, "models"), (items, what)], "", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "measures",
        "What goes with forgetting",
        forgetting_by_measure,
        "Each point is a fine-tuned model: the rise of its pre-training loss (95% interval over "
        "texts) against a measure of its change. Above each panel is Spearman's ρ over the models "
        "with the exact permutation p, and for intruders also the ρ of random changes of the same "
        "norm.",
        "There are only a few models, and their ranks, learning rates and norms differ together. "
        "This is an association, and one more model can reverse any sign.",
    ),
)


def sentence(result: Result) -> Findings:
    """Spearman's rho of the loss with every measure."""
    found = result.metric("spearman")
    found = found[found["outcome"] == "loss"]
    parts = [
        f"{row['measure']}: ρ {change(row, '.2f')} (p = {row['p']:.2f})"
        for _, row in found.iterrows()
    ]
    count = len(result.members)
    return f"Spearman's ρ relates forgetting to measures of the change (n = {count} models)", parts
