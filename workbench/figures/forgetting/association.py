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
UNITS = {"KL on the task": "KL on the task (nats/token)"}
LABELS = {"loss": LOSS, "score": "mean drop of the other tasks'\nscores"}


@style.styled
def forgetting_by_measure(result: Result, ax: Axes | None = None, *, outcome: str = "") -> Figure:
    """Forgetting against every measure of the change; above each panel Spearman's rho, and what it
    is given the score on the task that was learned.

    outcome: "loss" or "score"; the loss by default.
    """
    table = result.table
    outcome = outcome or "loss"
    lost = result.metric("forgetting")
    lost = lost[lost["outcome"] == outcome].set_index("member")
    found = result.metric("spearman")
    found = found[found["outcome"] == outcome].set_index("measure")
    given = _given(result, outcome)
    measures = list(dict.fromkeys(result.metric("measure")["measure"]))
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(measures), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=(2.0 if given.empty else 2.15) * rows + 0.4,
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
        told = [_rho(row)]
        if measure in given.index:
            told.append(f"given score: {_rho(given.loc[measure])}")
        if pd.notna(row["baseline"]):
            told.append(f"null: ρ = {row['baseline']:.2f}")
        here.set_title("\n".join(told), loc="left", fontsize=style.SMALL)
        here.set_xlabel(style.text(UNITS.get(str(measure), str(measure)), 28))
        here.margins(0.12)
    style.first_column(axes, LABELS[outcome])
    style.legend(axes, outside=ax is None)
    items, models = lost["n"], found["n"]
    what = "texts" if outcome == "loss" else "prompts"
    marks.counted(axes, [(models, "models"), (items, what)], "", outside=ax is None)
    return figure


def _given(result: Result, outcome: str) -> pd.DataFrame:
    """The partial correlations by measure, none in a table of before there were any."""
    rows = result.table[result.table["metric"] == "spearman_partial"]
    return rows[rows["outcome"] == outcome].set_index("measure")


def _rho(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return "undefined"
    return f"ρ = {row['value']:.2f} ({_p(row)})"


def _p(row: pd.Series) -> str:
    return "p < 0.01" if row["p"] < 0.01 else f"p = {row['p']:.2f}"


DRAWINGS = (
    Drawing(
        KEY,
        "measures",
        "What goes with forgetting",
        forgetting_by_measure,
        "Each point is a fine-tuned model: the rise of its pre-training loss (95% interval over "
        "texts) against a measure of its change. Above each panel is Spearman's ρ over the models "
        "with the exact permutation p, below it the partial ρ given the score on the learned task, "
        "and for intruders also the ρ of random changes of the same norm.",
        "There are only a few models, and their ranks, learning rates and norms differ together. "
        "Models that differ in their seed alone are not independent, and a KL on a task that the "
        "base cannot do at all is about as large for every model. This is an association, and one "
        "more model can reverse any sign.",
    ),
)


def sentence(result: Result) -> Findings:
    """Spearman's rho of the loss with every measure."""
    found = result.metric("spearman")
    found = found[found["outcome"] == "loss"]
    given = _given(result, "loss")
    parts = []
    for _, row in found.iterrows():
        said = f"{row['measure']}: ρ {change(row, '.2f')} ({_p(row)})"
        if row["measure"] in given.index:
            own = given.loc[row["measure"]]
            said += ", given the task's score " + (
                "undefined" if pd.isna(own["value"])
                else f"ρ {change(own, '.2f')} ({_p(own)})"
            )  # fmt: skip
        parts.append(said)
    count = f"{len(result.members)} models"
    recipes = found["recipes"].iloc[0] if "recipes" in found else float("nan")
    if recipes < len(result.members):
        count += f" of {recipes:g} recipes"
    return f"Spearman's ρ relates forgetting to measures of the change (n = {count})", parts
