"""How soon does it come back? Scores by steps of training on what was lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import by_member, labelled
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "forgetting.revive"
HEADING = "Revival"
CONTROLS = (
    ("never", "never knew", style.DASHES[1]),
    ("relabelled", "relabelled", style.DASHES[2]),
    ("random weights", "random weights", ":"),
)


@style.styled
def revival_curves(result: Result, ax: Axes | None = None) -> Figure:
    """Score against steps of training on the lost task, mean over runs (band: their range); a panel
    per member. Black: the base; broken lines: models that never knew, and exchanged answers."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        for arm, label, dashes, colour in (
            ("base", "base", "-", style.BLACK),
            ("tuned", "tuned model", "-", look.colour),
            *((arm, label, dashes, style.GREY) for arm, label, dashes in CONTROLS),
        ):
            line = own[own["arm"] == arm]
            if line.empty:
                continue
            by_step = line.groupby("x")["value"].agg(["mean", "min", "max"])
            x = np.where(by_step.index > 0, by_step.index, 0.5)
            here.plot(x, by_step["mean"], color=colour, ls=dashes, lw=1.2, label=label,
                      marker="o" if arm in ("base", "tuned") else "", ms=2.5)  # fmt: skip
            here.fill_between(x, by_step["min"], by_step["max"], color=colour, alpha=0.15, lw=0)
        steps = sorted(own["x"].unique())
        here.set_xscale("log", base=2)
        here.xaxis.set_major_locator(FixedLocator([s if s > 0 else 0.5 for s in steps]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels([f"{s:.0f}" for s in steps])
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    return labelled(
        figure, axes, ("score", str(table["task"].iloc[0])), "training steps", result, ax
    )


DRAWINGS = (
    Drawing(
        KEY,
        "curves",
        "How soon does it come back?",
        revival_curves,
        "Score on held-out prompts after so many steps of training on the capability; band: range "
        "over runs. What was only suppressed is back within a few steps, before a model that never "
        "knew, or the exchanged answers, are anywhere.",
        "Random weights lack all else, too, and the rule of exchanged answers may share what "
        "tells the questions apart: only a model trained without the task is a matched control.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    steps = result.metric("steps_to_threshold").set_index(["member", "arm"])
    runs, share = (result.provenance.parameters[name] for name in ("runs", "threshold"))
    for member in result.members:
        own = result.table[result.table["member"] == member]
        arms = [a for a in own.loc[own["metric"] == "score", "arm"].unique() if a != "base"]
        said = [
            f"{arm} "
            + ("not" if pd.isna(row["value"]) else f"{row['value']:.0f}")
            + (f" (in {row['n']:.0f} of {runs} runs)" if 0 < row["n"] < runs else "")
            for arm in arms
            for row in [steps.loc[(member, arm)]]
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return f"Steps until the score is back at {share:g} of the base's", parts
