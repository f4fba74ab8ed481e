"""Which edit gives back what was forgotten, and what does it cost the task?"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "edits.repair"
HEADING = "Repairing the model"
# Okabe & Ito; alpha, the control, in grey.
LINES = {
    "alpha": (style.GREY, style.DASHES[0]), "layers": ("#0072B2", "-"),
    "intruders": ("#D55E00", "-"),
    "rank": ("#009E73", "-"), "movement": ("#CC79A7", "-"),
    "random": ("#CC79A7", style.DASHES[0]), "harmful": ("#56B4E9", "-"),
    "reweighted": ("#E69F00", "-"),
    "1-bit": ("#56B4E9", style.DASHES[0]), "tiers": ("#E69F00", style.DASHES[0]),
}  # fmt: skip
ENDS = {"tuned": ("fine-tuned", "s"), "base": ("base", "D")}


@style.styled
def cost_and_gain(result: Result, ax: Axes | None = None) -> Figure:
    """Loss on pre-training-like text (up) against the task's score (across) along the strengths of
    every kind of edit; a panel per model. Ringed: the strength that one half chose."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.8,
        share=(True, True),
    )
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = result.table[result.table["member"] == member]
        for arm, points in _curves(own).items():
            colour, dashes = LINES[arm]
            here.plot(points["score"], points["loss"], color=colour, marker="o", ms=2.5, lw=1.0,
                      ls=dashes, zorder=2.5 if arm == "alpha" else 2, label=arm)  # fmt: skip
            picked = points[points["chosen"]]
            here.plot(picked["score"], picked["loss"], color=colour, marker="o", ms=7, mfc="none",
                      ls="", mew=1.0)  # fmt: skip
        for arm, (label, marker) in ENDS.items():
            end = _points(own[own["arm"] == arm])
            here.plot(end["score"], end["loss"], color=style.BLACK, marker=marker, ms=5, ls="",
                      mec="white", mew=0.6, zorder=5, label=label)  # fmt: skip
        style.name(here, look)
        here.margins(x=0.08, y=0.1)
    style.first_column(axes, "loss on pre-training-like text\n(nats/token)")
    for here in axes[-1]:
        here.set_xlabel("score on the task")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    prompts, texts = (result.metric(one) for one in ("score", "loss"))
    counts = [(prompts.loc[prompts["own"].eq(True), "n"], "prompts"), (texts["n"], "texts")]
    marks.counted(axes, counts, "", outside=ax is None)
    return figure


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """x -> the task's score and the loss there."""
    rows = rows.assign(x=rows["x"].fillna(1.0))
    score = rows[rows["own"].eq(True) & (rows["metric"] == "score")].set_index("x")["value"]
    loss = rows[rows["metric"] == "loss"].set_index("x")["value"]
    return pd.DataFrame({"score": score, "loss": loss}).sort_index()


def _curves(own: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Kind of edit -> its points, and which one was chosen."""
    found = {}
    for arm in dict.fromkeys(own["arm"]):
        if arm in ENDS:
            continue
        rows = own[own["arm"] == arm]
        points = _points(rows[rows["metric"].isin(("score", "loss"))])
        picked = rows.loc[rows["metric"] == "recommended", "x"]
        found[arm] = points.assign(chosen=points.index.isin(picked))
    return found


DRAWINGS = (
    Drawing(
        KEY,
        "repair",
        "What each edit gives back, and what it costs",
        cost_and_gain,
        "Each line is one kind of edit along its strengths, from the fine-tuned model (square) "
        "towards the base (diamond): the task's score (across) against the loss on text like the "
        "pre-training data (up). Lower and further right is better. A ring marks the strength that "
        "one half of the prompts and texts chose; alpha, a smaller change, is the control.",
        "The points are of all prompts and texts, those that chose too; the change at the chosen "
        "strength, on the other half alone, is in the table. A line below alpha's by less than the "
        "intervals in the table says nothing.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        losses = own[own["metric"] == "chosen_loss_change"].dropna(subset=["value"])
        if losses.empty:
            continue
        best = losses.loc[losses["value"].idxmin()]
        arm = own[own["arm"] == best["arm"]]
        score = arm[(arm["metric"] == "chosen_score_change") & arm["own"].eq(True)].iloc[0]
        good = bool(arm.loc[arm["metric"] == "recommended", "value"].eq(1).any())
        if best["value"] >= 0:
            parts.append(f"{member}: no edit that keeps the score has a smaller loss")
            continue
        strength = "" if pd.isna(best["x"]) else f" at strength {best['x']:g}"
        said = "recommended"
        if not good:
            sure = best["high"] < 0
            said = "not recommended: " + ("the score may fall" if sure else "the loss may not fall")
        parts.append(
            f"{member}: {best['arm']}{strength} changes the loss by {change(best, '+.2f')} nats a "
            f"token and the score by {change(score, '+.2f')} ({said})"
        )
    return "Of the edits that keep the task's score, chosen on other prompts and texts", parts
