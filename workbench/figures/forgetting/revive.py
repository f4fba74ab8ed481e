"""How soon does it come back? Scores by steps of training on what was lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import by_member, labelled
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "forgetting.revive"
HEADING = "Revival"
CONTROLS: tuple[tuple[str, str, Any, str], ...] = (
    ("never", "never knew", style.DASHES[1], "o"),
    ("relabelled", "relabelled", style.DASHES[2], "s"),
    ("random weights", "random weights", style.DASHES[0], "^"),
)


@style.styled
def revival_curves(result: Result, ax: Axes | None = None) -> Figure:
    """Score against steps of training on the lost task, mean over runs (bars: their range); a panel
    per model. Black: the base; broken lines: models that never knew, and exchanged answers."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        here.set_xscale("log", base=2)
        own = table[table["member"] == member]
        for arm, label, dashes, marker, colour in (
            ("base", "base", "-", "o", style.BLACK),
            ("tuned", "tuned model", "-", look.marker, look.colour),
            *((*one, style.GREY) for one in CONTROLS),
        ):
            line = own[own["arm"] == arm]
            if line.empty:
                continue
            by_step = line.groupby("x")["value"].agg(["mean", "min", "max"])
            x = np.where(by_step.index > 0, by_step.index, 0.5)
            if arm in ("base", "tuned"):
                here.plot(x, by_step["mean"], color=colour, ls=dashes, lw=1.2, label=label,
                          marker=marker, ms=3)  # fmt: skip
            else:
                marks.control(here, x, by_step["mean"], dashes, label, marker=marker)
            marks.intervals(here, x, by_step["min"], by_step["max"], colour)
        steps = sorted(own["x"].unique())
        here.xaxis.set_major_locator(FixedLocator([s if s > 0 else 0.5 for s in steps]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels([f"{s:.0f}" for s in steps])
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    return labelled(figure, axes, ("score", table), f"training steps {marks.LOG}", result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "curves",
        "How soon does it come back?",
        revival_curves,
        "The curves show the score on held-out prompts after the given number of steps of training "
        "on the capability, and the bars show the range over runs. What was only suppressed is "
        "back within a few steps, before a model that never knew it, or the exchanged answers, "
        "have learned anything.",
        "Answers that are wrong by accident are right when they are asked again: regained_share "
        "in the table also counts those that go wrong. "
        "Random weights lack everything else, too, and the rule of exchanged answers may share "
        "what distinguishes the questions. Only a model trained without the task is a matched "
        "control.",
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
            + ("not reached" if pd.isna(row["value"]) else f"{row['value']:.0f}")
            + (f" (in {row['n']:.0f} of {runs} runs)" if 0 < row["n"] < runs else "")
            for arm in arms
            for row in [steps.loc[(member, arm)]]
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return f"These are the steps until the score is back at {share:g} of the base's", parts
