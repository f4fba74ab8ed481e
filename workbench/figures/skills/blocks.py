"""Which matrices of the change are needed, and which suffice?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.heat_maps import Map, heat_maps
from workbench.figures.member_panels import band, by_member
from workbench.figures.skills.scores import MEASURES, RANDOM, finish, model_lines, own_rows
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "skills.blocks"
HEADING = "Which matrices of the change are needed"
EDITS = ("efficacy", "generality", "locality")


@style.styled
def greedy_blocks(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the number of matrices on, each time the one that helps most, and for random
    orders; a panel per model, below every point the matrix added.

    metric: any of `Readout.rows`. Bars, or bands of many steps: 95% intervals over prompts.
    """
    table = own_rows(result, metric)
    kinds = list(dict.fromkeys(table["component"].dropna()))
    short = dict(zip(kinds, style.short_components(kinds), strict=True))
    figure, axes, members = by_member(result, ax, 2.2, share=(False, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        base = own[own["arm"] == "base"]
        path = own[own["arm"] == "greedy"].sort_values("x")
        for place, (arm, colour) in enumerate((("random", style.GREY), ("greedy", look.colour))):
            line = pd.concat([base, own[own["arm"] == arm]]).sort_values("x")
            band(here, line, colour, place=(place, 2))
            if arm == "random":
                marks.control(here, line["x"], line["value"], RANDOM[2], "random order")
            else:
                here.plot(line["x"], line["value"], color=colour, marker=look.marker, ms=3,
                          label="best next matrix")  # fmt: skip
        model_lines(here, own, "all")
        told = [f"{x:.0f}: {layer:.0f}.{short[component]}" for x, layer, component
                in zip(path["x"], path["layer"], path["component"], strict=True)]  # fmt: skip
        here.set_xticks(range(len(path) + 1), ["0", *told], rotation=50, ha="right",
                        rotation_mode="anchor", fontsize=6)  # fmt: skip
        style.name(here, look)
    finish(result, ax, axes, table, "matrices switched on (number: layer.matrix added)")
    figure.align_xlabels(list(axes.flat))
    return figure


@style.styled
def block_changes(
    result: Result, ax: Axes | None = None, *, metric: str = "score", tested: bool = True
) -> Figure:
    """Change of the score by every matrix, layers upwards: "off", the tuned model with the base's
    matrix, less the tuned one; "alone", the base with the tuned matrix, less the base.

    metric: "score" or "log_probability". tested: mark with a dot where the 95% interval excludes 0.
    """
    table = own_rows(result, f"{metric}_change")
    kinds = list(dict.fromkeys(table["component"]))
    maps, marks = [], []
    for member, look in style.looks(result).items():
        for arm in ("off", "alone"):
            own = table[(table["member"] == member) & (table["arm"] == arm)]
            clear = own.assign(value=(own["low"] > 0) | (own["high"] < 0))
            grid, dots = (
                one.pivot_table("value", "layer", "component").reindex(columns=kinds)
                for one in (own, clear)
            )
            # Layers without a changed matrix keep their place.
            layers = range(int(table["layer"].max()) + 1)
            grid, dots = grid.reindex(layers), dots.reindex(layers)
            maps.append(Map(f"{look.label}: {arm}", grid.to_numpy(float), look.colour))
            marks.append(np.argwhere(dots.eq(True).to_numpy()))
    given = None if ax is None else ax.get_figure(root=True)
    before = [] if given is None else given.axes
    named = MEASURES.get(metric, metric)
    figure = heat_maps(
        ax, maps,
        legend=f"change of\n{named}\n(off: from tuned,\nalone: from base)",
        xlabel="matrix", labels=style.short_components(kinds), columns=4,
        counts=(table["n"], "prompts"),
    )  # fmt: skip
    mine = [one for one in figure.axes if one not in before and one.images]
    for here, dots in zip(mine, marks, strict=False):
        if tested and len(dots):
            here.plot(dots[:, 1], dots[:, 0], ls="", marker="o", ms=2.4, mew=0.5,
                      mec="white", color=style.BLACK)  # fmt: skip
    return figure


@style.styled
def block_edits(result: Result, ax: Axes | None = None) -> Figure:
    """Efficacy, generality and locality of every matrix alone as an edit of the base, layers
    upwards; the mean over the sets of prompts where there are several."""
    table = result.table[result.table["arm"] == "alone"]
    kinds = list(dict.fromkeys(table["component"].dropna()))
    layers = range(int(table["layer"].max()) + 1)
    maps = []
    for member, look in style.looks(result).items():
        for metric in EDITS:
            own = table[(table["member"] == member) & (table["metric"] == metric)]
            if len(own):
                grid = own.pivot_table("value", "layer", "component").reindex(layers)
                shown = grid.reindex(columns=kinds).to_numpy(float)
                maps.append(Map(f"{look.label}: {metric}", shown, look.colour))
    return heat_maps(
        ax, maps, high=1.0, xlabel="matrix",
        legend="share of prompts\n(locality:\nsaid as the base)",
        labels=style.short_components(kinds), columns=3,
        counts=(table.loc[table["metric"].isin(EDITS), "n"], "prompts"),
    )  # fmt: skip


def _greedy(result: Result) -> bool:
    return bool((result.table["arm"] == "greedy").any())


DRAWINGS = (
    Drawing(
        KEY,
        "greedy",
        "The fewest matrices that suffice",
        greedy_blocks,
        "The curve shows the score of the base while matrices of the change are switched on one "
        "after the other. Each step adds the matrix that lowers the loss most on one half of the "
        "prompts, and the score is on the other half. Grey shows random orders. Below each point "
        "is the matrix that was added.",
        "A greedy path can miss matrices that help only together.",
        applies=_greedy,
    ),
    Drawing(
        KEY,
        "changes",
        "Every matrix switched off, and alone",
        block_changes,
        "Each cell is the change of the score when the tuned model gets one matrix of the base "
        "(off), or the base gets one matrix of the tuned model (alone), with layers upwards. A dot "
        "means that the 95% interval excludes 0.",
        "Off shows what is needed, and alone shows what suffices: a skill spread over many "
        "matrices has neither. Some dots are chance, because one map has dozens of intervals.",
        applies=has("score_change"),
    ),
    Drawing(
        KEY,
        "edits",
        "Every matrix alone as an edit",
        block_edits,
        "Each cell is one matrix of the change put into the base: the score on what was taught "
        "(efficacy), on rewordings of it (generality), and the share of unrelated prompts to which "
        "the first token of the answer stays the base's (locality).",
        "A matrix that does nothing has a perfect locality: read it where the efficacy is above "
        "the base's. The greedy path shows what several matrices do together.",
        applies=lambda result, *_: result.has("locality") or result.has("generality"),
    ),
)


def sentence(result: Result) -> Findings:
    """Where the greedy path ended, beside random orders, and the matrix most missed."""
    scores, off = (own_rows(result, m) for m in ("score", "score_change"))
    parts = []
    for member in result.members:
        own = scores[scores["member"] == member]
        said = []
        for arm, label in (("greedy", "matrices best first"), ("random", "at random")):
            path = own[own["arm"] == arm].sort_values("x")
            if len(path):
                last = path.iloc[-1]
                said.append(f"{last['x']:.0f} {label} {change(last, '.2f')}")
        here = off[(off["member"] == member) & (off["arm"] == "off")]
        most = here.loc[here["value"].idxmin()]
        where = f"layer {most['layer']:.0f} {most['component']}"
        told = f"most missed of {len(here)} {where} {change(most, '+.2f')}"
        parts.append(f"{member}: {', '.join([*said, told])}")
    return (
        f"Few matrices of the change give these scores (95% over {int(scores['n'].max())} prompts)",
        parts,
    )
