"""How much of the change can be taken back?"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member
from workbench.figures.skills.scores import RANDOM, finish, model_lines, own_rows
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "skills.restore"
HEADING = "How much of the change can be taken back"
ORDERS = {
    "movement": ("largest change |Δ| first", None, "-", "o"),
    "relative": ("largest |Δ| / |θ₀| first", "#0072B2", "-", "D"),
    "smallest": ("smallest |Δ| first", style.BLACK, "-", "s"),
    "random": ("random entries first", *RANDOM[1:]),
}


@style.styled
def restoration(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the share of N set back to the base, a line per order; a panel per model.

    metric: any of `Readout.rows`. Bars: 95% intervals of the first order and of random. Rings: the
    largest share that cost nothing on the choosing half, with the range of that choice.
    """
    table, free = own_rows(result, metric), own_rows(result, "free")
    figure, axes, members = by_member(result, ax, 1.9, share=(True, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        ends = own[own["arm"].isin(["tuned", "outside"])]
        shown = [arm for arm in ORDERS if (own["arm"] == arm).any()]
        for arm in shown:
            label, colour, dashes, marker = ORDERS[arm]
            # Every order starts at the tuned model and ends with the whole of the blocks set back.
            line = pd.concat([own[own["arm"] == arm], ends]).sort_values("x")
            colour = colour or look.colour
            if arm in (shown[0], "random"):
                band(here, line, colour, place=(arm == "random", 2))
            if arm == "random":
                marks.control(here, line["x"], line["value"], dashes, label)
            else:
                here.plot(line["x"], line["value"], color=colour, ls=dashes, marker=marker, ms=3,
                          label=label)  # fmt: skip
            chosen = free[(free["member"] == member) & (free["arm"] == arm)]
            for row in chosen.to_dict("records"):
                height = line.loc[line["x"] == row["value"], "value"].iloc[0]
                here.errorbar(
                    row["value"], height,
                    xerr=[[row["value"] - row["low"]], [row["high"] - row["value"]]],
                    ls="", marker="o", ms=6.5, mfc="none", mew=0.9, color=colour, elinewidth=2.5,
                    alpha=0.7, zorder=4,
                )  # fmt: skip
        model_lines(here, own)
        style.name(here, look)
    axes[0, 0].plot([], [], ls="", marker="o", ms=6.5, mfc="none", mew=0.9, color=style.BLACK,
                    label="free (with its range)")  # fmt: skip
    finish(result, ax, axes, table, "share q of the parameters set back to the base")
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "shares",
        "How much of the update can be taken back",
        restoration,
        "The curves show the score of the tuned model after a share of its parameters is set back "
        "to the base, in each order; bars are 95% intervals over prompts. The rings mark the "
        "largest share that cost at most 0.02 on one half of the prompts, with the range of that "
        "choice. Random entries are the control.",
        "Restoring the smallest changes first takes back many entries and little of the change. "
        "The rings show what the half that chose them allows, which few prompts blur; the cost in "
        "the table is that of the other half. If few parameters changed at all, restoring the "
        "others costs nothing.",
    ),
)


def sentence(result: Result) -> Findings:
    """What could be set back at no cost, in every order, and which updates were harmful."""
    free, cost, harmful = (own_rows(result, m) for m in ("free", "cost", "harmful"))
    parts = []
    for member in result.members:
        here = free[free["member"] == member].set_index("arm")
        paid = cost[cost["member"] == member].set_index("arm")
        said = [
            f"{ORDERS[arm][0]} {change(here.loc[arm], '.0%')} "
            f"(score {change(paid.loc[arm], '+.3f')} on the other half)"
            for arm in here.index
        ]
        # Of several orders one, which other prompts chose; older results have none such.
        own = harmful[(harmful["member"] == member) & (harmful["arm"] == "best")]
        said += [
            f"harmful updates, {ORDERS[row['chosen']][0]} {row['x']:.0%}: {change(row, '+.3f')}"
            for _, row in own[own["low"] > 0].iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return (
        f"The share of the parameters set back for at most 0.02 of score is chosen on "
        f"{int(free['n'].max())} prompts"
    ), parts
