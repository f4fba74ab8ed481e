"""What does fine-tuning add to each checkpoint of a chain of bases?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.looks import Look
from workbench.figures.member_panels import by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.gains"
HEADING = "What fine-tuning adds to each base of a chain"


@style.styled
def gains_over_chain(result: Result, ax: Axes | None = None, *, task: str = "") -> Figure:
    """Score before (black) and after fine-tuning over the checkpoints of a chain; a panel per
    fine-tuned model. task: the first by default."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = _of_task(result, task)
    names = table.dropna(subset="x").sort_values("x")["checkpoint"].drop_duplicates().tolist()
    drawn = table[table["metric"] == "score"]
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for metric, seen in (("base_score", Look(style.BLACK, "s", "before")), ("score", look)):
            rows = own[own["metric"] == metric]
            marks.curve(here, rows["x"].to_numpy(float), rows, seen)
        here.set_xticks(range(len(names)), [style.text(name, 16) for name in names], rotation=25,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    return labelled(figure, axes, ("score", drawn), "checkpoint of the base", result, ax)


def _of_task(result: Result, task: str) -> pd.DataFrame:
    own = task or result.table["task"].dropna().iloc[0]
    return result.table[result.table["task"] == own]


DRAWINGS = (
    Drawing(
        KEY,
        "chain",
        "Score before and after fine-tuning, over a chain of bases",
        gains_over_chain,
        "Each point shows the share of prompts that are answered rightly at one checkpoint of the "
        "base, before fine-tuning (black) and after it, with 95% intervals over prompts. The "
        "distance of the two is the gain.",
        "A base that knows more has less to gain, so that gains fall along a chain by that alone. "
        "The table has their correlation beside what scores dealt at random would show.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = _of_task(result, "")
    for member in result.members:
        own = table[table["member"] == member]
        rows = own[own["metric"] == "gain"].sort_values("x")
        first, last = rows.iloc[0], rows.iloc[-1]
        told = (
            f"{member}: {change(first, '+.2f')} at {style.text(first['checkpoint'])} and "
            f"{change(last, '+.2f')} at {style.text(last['checkpoint'])} (n = {last['n']:.0f})"
        )
        found = own[own["metric"] == "gain_with_score"]
        if len(found) and np.isfinite(found["value"].iloc[0]):
            row = found.iloc[0]
            told += (
                f"; the gain goes with the base's score by rho = {row['value']:+.2f} "
                f"(p = {row['p']:.2f}, dealt at random {row['baseline']:+.2f})"
            )
        parts.append(told)
    return f"Gain of fine-tuning on {table['task'].iloc[0]} along a chain of bases", parts
