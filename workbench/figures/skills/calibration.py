"""Does a model's confidence show how often it is right? Reliability diagrams."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.skills.scores import own_rows
from workbench.figures.wording import Findings, change, interval
from workbench.results.result import Result

KEY = "skills.calibration"
HEADING = "Calibration"
GRAFTS = ("#D55E00", "#0072B2", "#CC79A7", "#009E73")  # Okabe & Ito, far from a LoRA's first
AREA = 60  # points squared, of a dot that holds every prompt


@style.styled
def reliability(result: Result, ax: Axes | None = None, *, binning: str = "width") -> Figure:
    """Accuracy against mean confidence of every bin, with Wilson intervals; a panel per model.

    binning: "width", bins equally wide, or "mass", of equally many prompts. The area of a dot is
    the bin's share of the prompts. Above each panel the calibration error by these bins and the
    95% range of a perfectly calibrated model with the same confidences.
    """
    table = own_rows(result, "reliability")
    table = table[table["binning"] == binning]
    errors = own_rows(result, "ece_mass" if binning == "mass" else "ece")
    looks, arms = style.looks(result), list(dict.fromkeys(table["arm"]))
    rows, columns = style.grid_shape(len(looks), 2 if len(looks) > 1 else 1)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=(2.3 + 0.11 * len(arms)) * rows + 0.7,
        share=(True, True),
    )
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        here.plot([0, 1], [0, 1], color=style.GREY, lw=0.7, ls=style.DASHES[1], zorder=0,
                  label="perfectly calibrated")  # fmt: skip
        own = table[table["member"] == member]
        told = errors[errors["member"] == member].set_index("arm")
        shown = [arm for arm in arms if arm in told.index]
        for place, arm in enumerate(shown):
            colour, dashes = _drawn(arm, shown, look)
            line = own[own["arm"] == arm].sort_values("x")
            bars = np.array([line["value"] - line["low"], line["high"] - line["value"]]).clip(0)
            here.errorbar(line["x"], line["value"], yerr=bars, color=colour, ls=dashes, lw=1.0,
                          elinewidth=0.7, zorder=2 + place, label=style.text(arm))  # fmt: skip
            here.scatter(line["x"], line["value"], color=colour, linewidths=0, clip_on=False,
                         s=6 + AREA * line["n"] / line["n"].sum(), zorder=2 + place)  # fmt: skip
            # Above the panel no dot can lie under it.
            here.annotate(_error(arm, told.loc[arm]), (0, 1), (0, 6 + 8 * (len(shown) - 1 - place)),
                          xycoords="axes fraction", textcoords="offset points", fontsize=6,
                          color=style.ink(colour))  # fmt: skip
        here.set(xlim=(0, 1), ylim=(0, 1))
        style.name(here, look, pad=8 * len(shown) + 7)
    style.first_column(axes, f"accuracy on {table['task'].iloc[0]}")
    for here in axes[-1]:
        here.set_xlabel("mean confidence in the first token")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, errors["n"], "prompts", outside=ax is None)
    return figure


def _drawn(arm: str, arms: list[str], look: style.Look) -> tuple[str, object]:
    if arm == "base":
        return style.BLACK, "-"
    if arm == "tuned":
        return look.colour, "-"
    place = [a for a in arms if a not in ("base", "tuned")].index(arm)
    free = [colour for colour in GRAFTS if colour != look.colour]
    return free[place % len(free)], style.DASHES[0]


def _error(arm: str, row: pd.Series) -> str:
    return (
        f"{style.text(arm)}: ECE {row['value']:.3f}; perfect "
        f"{row['baseline']:.3f} [{row['null_low']:.3f}, {row['null_high']:.3f}]"
    )


DRAWINGS = (
    Drawing(
        KEY,
        "reliability",
        "Does confidence show how often the model is right?",
        reliability,
        "The dots show the accuracy against the mean confidence of the answer's first token in ten "
        "bins, with Wilson intervals; the area of a dot is its share of the prompts. Above each "
        "panel are the calibration error (ECE) and the mean and 95% range of a perfectly "
        "calibrated model with the same confidences.",
        "An error within that range shows nothing. Bins with few prompts scatter.",
        applies=has("reliability"),
    ),
)


def sentence(result: Result) -> Findings:
    errors = own_rows(result, "ece")
    parts = []
    for member in result.members:
        said = [
            f"{row['arm']} {change(row, '.3f')} (perfect "
            f"{interval(row['baseline'], row['null_low'], row['null_high'], '.3f')})"
            for _, row in errors[errors["member"] == member].iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    count = int(errors["n"].max())
    return f"The first token has this calibration error (95% over {count} prompts)", parts
