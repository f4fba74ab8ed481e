"""Is an answer lost, or asked for in the wrong place? What comes back after a conjugation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.conjugate"
HEADING = "Lost answers with conjugate prompts"
# Okabe & Ito: blue, orange; grey is what is neither.
OUTCOMES = {"score": ("right", "#0072B2"), "switched": ("switched task", "#E69F00")}
REST = "#C8C8C8"


@style.styled
def conjugate_outcomes(result: Result, ax: Axes | None = None) -> Figure:
    """Share of prompts answered right, in another task's way, or neither, plain and after each
    conjugation; a panel per model. Black lines: how often the base is right on the same prompts;
    error bars: 95% intervals of the tuned model's share."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.7 * rows + 0.7,
        share=(True, True),
    )
    table = result.table[result.table["arm"] != "best"]
    arms = list(dict.fromkeys(table["arm"]))
    places = np.arange(len(arms))
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        told = {m: own[own["metric"] == m].set_index("arm").reindex(arms) for m in OUTCOMES}
        score, bottom = told["score"], np.zeros(len(arms))
        for metric, (label, colour) in OUTCOMES.items():
            height = told[metric]["value"].fillna(0).to_numpy()
            here.bar(places, height, 0.7, bottom, color=colour, label=label)
            bottom = bottom + height
        unknown = told["switched"]["value"].isna().any()
        here.bar(places, 1 - bottom, 0.7, bottom, color=REST,
                 label="wrong, switched or not" if unknown else "neither")  # fmt: skip
        bars = np.array([score["value"] - score["low"], score["high"] - score["value"]]).clip(0)
        here.errorbar(places, score["value"], bars, ls="", color=style.BLACK, elinewidth=0.9)
        here.hlines(score["baseline"], places - 0.42, places + 0.42, color=style.BLACK, lw=1.6,
                    label="base right", zorder=4)  # fmt: skip
        here.set_xticks(places, [style.text(arm, 16) for arm in arms], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_ylim(0, 1.03)
        style.name(here, look)
    style.first_column(axes, f"share of prompts\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("conjugation")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table.loc[table["metric"] == "score", "n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "outcomes",
        "Lost, or asked in the wrong place?",
        conjugate_outcomes,
        "The bars show the share of prompts that are answered right (blue), with an answer of the "
        "fine-tuned task (orange) or neither (grey), on plain prompts and after each conjugation, "
        "which asks the same question in a context that fine-tuning did not touch. The black lines "
        "show how often the base is right on the same prompts. Blue that grows after a "
        "conjugation was hidden and not lost.",
        "A conjugation by itself makes some questions harder, so compare with the black line and "
        "not with 1. Of answers that are wrong by accident many are right in any other wording, "
        "while others go wrong there: recovery_net in the table counts both. What does not come "
        "back after these conjugations may come back after others.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index(["arm", "metric"])
        lost, best = own.loc[("plain", "score_change")], ("best", "recovery_lost")
        said = f"{member}: {change(lost, '+.2f')} on plain prompts"
        if best in own.index:
            row = own.loc[best]
            back = "no lost answer to recover" if pd.isna(row["value"]) else (
                f"{change(row, '.2f')} of the lost answers right with {row['chosen']} (base "
                f"{row['baseline']:.2f}; n = {row['n']:.0f})"
            )  # fmt: skip
            net = ("best", "recovery_net")  # which older results have not
            if net in own.index and pd.notna(own.loc[net, "value"]):
                back += f", {change(own.loc[net], '+.2f')} of the loss net of what goes wrong there"
            said = f"{said}, {back}"
        parts.append(said)
    task = result.table["task"].iloc[0]
    return (
        f"The answers to {task} are measured plain, and after the conjugation that other prompts "
        "chose"
    ), parts
