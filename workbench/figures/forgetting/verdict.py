"""Retained, suppressed or erased? The evidence on one capability as a grid."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.verdict"
HEADING = "Retained, suppressed or erased"
# Okabe & Ito's blue and orange, pale enough for numbers in black.
READINGS = {"kept": "#9CCBE8", "lost": "#F4C58A", "unclear": "#DDDDDD", "not measured": "#FFFFFF"}
MEASURES = ("output", "probe", "revival", "conjugate", "loss")
SCALES = {"loss": "loss\n(nats/token)", "output": "output", "probe": "probe",
          "revival": "revival", "conjugate": "conjugate"}  # fmt: skip


@style.styled
def verdict_grid(result: Result, ax: Axes | None = None) -> Figure:
    """The evidence on one capability, a row per model, and the verdict it supports. Colours: how a
    cell is read; numbers: shares of the base's (loss: nats per token above it)."""
    looks = style.looks(result)
    figure, axes = style.panels(
        *(ax, 1, 1), width=style.WIDE, height=0.3 * max(len(looks), 2) + 1.05, share=(False, False)
    )  # fmt: skip
    here = axes[0, 0]
    table = result.table
    last = len(MEASURES)
    for row, member in enumerate(looks):
        own = table[table["member"] == member].set_index("arm")
        for column, arm in enumerate(MEASURES):
            cell = own.loc[arm]
            here.add_patch(_cell(column, row, READINGS[str(cell["reading"])]))
            shown = "–" if pd.isna(cell["value"]) else (
                change(cell, ".2f")
            )  # fmt: skip
            here.text(column, row, shown, ha="center", va="center", fontsize=5.5)
        here.text(last, row, str(own.loc["verdict", "reading"]).lower(), ha="center", va="center",
                  fontsize=7, weight="bold")  # fmt: skip
    here.set_xlim(-0.5, last + 0.5)
    here.set_ylim(len(looks) - 0.5, -0.5)
    here.set_xticks(range(last + 1), [*(SCALES[m] for m in MEASURES), "verdict"])
    here.xaxis.tick_top()
    here.set_yticks(range(len(looks)), [style.text(look.label) for look in looks.values()])
    here.tick_params(length=0)
    here.spines[:].set_visible(False)
    for name, colour in READINGS.items():
        here.plot([], [], ls="", marker="s", ms=7, mfc=colour, mec=style.GREY, mew=0.5, label=name)
    here.set_ylabel("model")
    task = style.text(str(table["task"].iloc[0]))
    here.set_xlabel(f"evidence on {task} (share of the base's, 95% interval)")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("evidence")["n"], "prompts", outside=ax is None)
    return figure


def _cell(column: int, row: int, colour: str) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.44), 0.96, 0.88, fc=colour, ec=style.GREY, lw=0.4)


DRAWINGS = (
    Drawing(
        KEY,
        "grid",
        "Retained, suppressed or erased?",
        verdict_grid,
        "The grid shows the evidence on one capability of the base, with a row per fine-tuned "
        "model. Output is the number of right answers as a share of the base's. Probe, revival and "
        "conjugate show what each of them still finds of the lost answers. Blue means retained "
        "(kept), orange means lost (for the loss, a rise of 0.05 nats or more), and grey means "
        "that the interval includes the line between the two.",
        "A verdict is no more than its grid: few lost answers give wide intervals, and what these "
        "methods did not find may be found by others.",
    ),
)


def sentence(result: Result) -> Findings:
    said = result.metric("verdict")["says"].tolist()
    return "The evidence supports these verdicts", [one.rstrip(".") for one in said]
