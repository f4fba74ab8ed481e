"""What do the directions of the change do? First order against what taking one out does."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "spectral.directions"
HEADING = "What the directions of the change do"
PLACE = ["member", "layer", "component", "rank"]
CONTROLS = {"neighbour": ("s", "nearest neighbour in σ"), "random": ("o", "random direction")}


def taken_out(result: Result) -> pd.DataFrame:
    """Rows of loss_change, with the sensitivity of their direction as `told`."""
    told = result.metric("sensitivity").set_index(PLACE)["value"].rename("told")
    return result.metric("loss_change").join(told, on=PLACE)


@style.styled
def effects(result: Result, ax: Axes | None = None) -> Figure:
    """Rise of the loss where a direction is taken out, over what first order says, with 95%
    intervals over prompts; the controls hollow, at the same place."""
    rows = taken_out(result)
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    for arm, (marker, label) in CONTROLS.items():
        own = rows[rows["arm"] == arm]
        here.plot(own["told"], own["value"], ls="", marker=marker, ms=3.5, mfc="white",
                  mec=style.GREY, label=label, zorder=2)  # fmt: skip
    for name, look in style.looks(result).items():
        own = rows[(rows["member"] == name) & (rows["arm"] == "direction")]
        here.vlines(own["told"], own["low"], own["high"], color=look.colour, lw=0.9, alpha=0.7)
        here.plot(own["told"], own["value"], ls="", marker=look.marker, ms=4, color=look.colour,
                  label=look.label, zorder=4)  # fmt: skip
    ends = np.array([min(0.0, rows["told"].min()), max(0.0, rows["told"].max())])
    here.plot(ends, ends, color=style.GREY, ls=style.DASHES[1], lw=1, label="as first order says")
    here.axhline(0, color=style.GREY, lw=0.6, zorder=0)
    here.set(
        xlabel="first-order rise of the loss (nats)",
        ylabel="rise of the loss without\nthe direction (nats)",
    )
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "effects",
        "What the most sensitive directions do",
        effects,
        "Each point is a singular direction of the change, taken out of the fine-tuned model "
        "alone: how much the loss of the answer rises on prompts that did not choose it, over the "
        "rise that the gradient on the other half foretells, with 95% intervals over prompts. "
        "Hollow at the same place are the direction nearest in σ and a random one of the same σ.",
        "The first order holds for small σ. Directions that do the same replace each other, so "
        "each alone looks like nothing.",
        applies=has("loss_change"),
    ),
)


def sentence(result: Result) -> Findings:
    """The direction whose absence costs most, with its first word."""
    parts = []
    for name in result.members:
        rows = result.table[result.table["member"] == name]
        out = rows[(rows["metric"] == "loss_change") & (rows["arm"] == "direction")]
        if out.empty:
            n = int((rows["metric"] == "sensitivity").sum())
            parts.append(f"{name}: none was taken out (n = {n} directions looked at)")
            continue
        best = out.loc[out["value"].idxmax()]
        at = {key: best[key] for key in PLACE[1:]}
        same = np.logical_and.reduce([rows[key] == value for key, value in at.items()])
        words = rows[same & (rows["metric"] == "word")].sort_values("x")
        said = f", {words['side'].iloc[0]} {words['token'].iloc[0]!r}" if len(words) else ""
        parts.append(
            f"{name}: {at['layer']}.{at['component']}, number {at['rank'] + 1}{said}: "
            f"{change(best, '.3f')} nats (n = {int(best['n'])} prompts)"
        )
    return "Without the direction that matters most the loss of the answer rises", parts
