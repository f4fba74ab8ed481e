"""Does the part of the change that other runs made too carry the task?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "edits.siblings"
HEADING = "The part of the change that replicates"
PARTS = ("replicated", "rest", "random")
ENDS = ("base", "tuned", "matrices", "mean", "stock")


@style.styled
def replicated_parts(result: Result, ax: Axes | None = None) -> Figure:
    """The score of the base with each part of the change, by the side whose directions are shared;
    a panel per model, with the ends and the merged models. Hollow: random parts as large."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        shown = [(arm, "") for arm in ENDS]
        shown += [(arm, side) for side in ("input", "output") for arm in PARTS]
        for x, (arm, side) in enumerate(shown):
            at = own[(own["arm"] == arm) & own["side"].fillna("").eq(side)]
            colour = style.BLACK if arm == "base" else look.colour
            face = "white" if arm == "random" else colour
            here.vlines(x, at["low"], at["high"], color=colour, lw=1, alpha=0.75)
            here.plot([x], at["value"], look.marker, color=colour, mfc=face, ms=4)
        names = [f"{arm} ({side})" if side else arm for arm, side in shown]
        here.set_xticks(np.arange(len(shown)), names, rotation=50, ha="right",
                        rotation_mode="anchor", fontsize=6)  # fmt: skip
        here.set_ylim(-0.05, 1.05)
        style.name(here, look)
    return labelled(
        figure, axes, ("score (fraction right)", table), "part of the change", result, ax
    )


DRAWINGS = (
    Drawing(
        KEY,
        "parts",
        "What the replicated part does alone",
        replicated_parts,
        "Each mark is the score of the base with one part of the change: what lies in the leading "
        "directions of the other models' changes (replicated), what is left (rest), and a random "
        "part as large (random, hollow), with 95% intervals over prompts. Mean and stock merge all "
        "models.",
        "Models that share a start or the order of their data share more than the task. A part "
        "that carries the task beside a rest that carries it too shows redundancy.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    for member in result.members:
        own = table[table["member"] == member].fillna({"side": ""})
        score = own[own["metric"] == "score"].set_index(["arm", "side"])
        energy = own[own["metric"] == "energy"].set_index("side")["value"]
        said = [
            f"{change(score.loc[('replicated', side)], '.2f')} with the shared {side}s "
            f"({energy[side]:.0%} of the change; random {score.loc[('random', side), 'value']:.2f})"
            for side in ("input", "output")
        ]
        ends = {arm: score.loc[(arm, ""), "value"] for arm in ("base", "tuned", "stock")}
        parts.append(
            f"{member}: {', '.join(said)}; base {ends['base']:.2f}, tuned {ends['tuned']:.2f}, "
            f"centre {ends['stock']:.2f} (n = {score.loc[('tuned', ''), 'n']:.0f})"
        )
    return "What of the change other models made too scores alone", parts
