"""How much of the change can be taken back, stored in few bits, or left to few matrices?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import scores, style
from workbench.figures.maps import Map, heat_maps
from workbench.figures.scores import BLACK, own_rows
from workbench.figures.skills import CURVES
from workbench.results.result import Result

RESTORE, COMPRESSION, BLOCKS = "skills.restore", "skills.compression", "skills.blocks"
# As in CURVES: label, colour (None: the member's), dashes, marker.
RANDOM = CURVES["random"]
ORDERS = {
    "movement": ("largest change |Δ| first", None, "-", "o"),
    "relative": ("largest |Δ| / |θ₀| first", "#0072B2", "-", "D"),
    "smallest": ("smallest |Δ| first", BLACK, "-", "s"),
    "random": ("random entries first", *RANDOM[1:]),
}
STORED = {
    "rank": ("best low rank of Δ", None, "-", "o"),
    "movement": CURVES["movement"],
    "principal": CURVES["principal"],
    "random": RANDOM,
}
WHOLE = {  # one number of bits each: label, colour (None: the member's), marker, size
    "tiered": ("singular vectors at 8, 3, 2 bits", "#0072B2", "P", 5.5),
    "1-bit": ("signs and one scale (1 bit)", "#009E73", "^", 5),
    "adapter": ("the adapter's own file", None, "*", 8),
    "tuned": ("tuned, 16 bits an entry", None, "X", 5.5),
}


@style.styled
def restoration(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the share of N set back to the base, a line per order; a panel per member.

    metric: any of `Readout.rows`. Bands: 95% intervals of the first order and of random. Rings: the
    largest share that cost nothing on the choosing half, bars the range of that choice.
    """
    table, free = own_rows(result, metric), own_rows(result, "free")
    figure, axes, members = scores.by_member(result, ax, 1.9, share=(True, True))
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
                scores.band(here, line, colour)
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
        scores.ends(here, own)
        here.set_title(look.label, loc="left", color=look.colour)
    axes[0, 0].plot([], [], ls="", marker="o", ms=6.5, mfc="none", mew=0.9, color=BLACK,
                    label="free (with its range)")  # fmt: skip
    scores.finish(result, ax, axes, table, "share q of the parameters set back to the base")
    return figure


@style.styled
def bits_score(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the stored bits per entry of the base; a panel per member.

    metric: any of `Readout.rows`. Bands: 95% intervals of the low ranks and of random entries; bars
    those of the ways that have but one size.
    """
    table = own_rows(result, metric)
    figure, axes, members = scores.by_member(result, ax, 1.9, share=(True, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        for arm, (label, colour, dashes, marker) in STORED.items():
            line = own[own["arm"] == arm].sort_values("x")
            if line.empty:
                continue
            colour = colour or look.colour
            if arm in ("rank", "random"):
                scores.band(here, line, colour)
            here.plot(line["x"], line["value"], color=colour, ls=dashes, marker=marker, ms=3,
                      label=label)  # fmt: skip
        for arm, (label, colour, marker, size) in WHOLE.items():
            point = own[own["arm"] == arm]
            if len(point):
                here.errorbar(
                    point["x"], point["value"], yerr=scores.bars(point), ls="", marker=marker,
                    ms=size, mew=0, color=colour or look.colour, elinewidth=0.8, zorder=4,
                    label=label,
                )  # fmt: skip
        scores.ends(here, own)
        here.set_xscale("log")
        here.set_title(look.label, loc="left", color=look.colour)
    held = table.loc[table["x"] > 0, "x"]
    style.log_ticks(axes[0, 0].xaxis, held.min(), held.max())
    scores.finish(result, ax, axes, table, "stored bits per entry of the base")
    return figure


@style.styled
def greedy_blocks(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the number of matrices on, each time the one that helps most, beside random
    orders; a panel per member, below every point the matrix added.

    metric: any of `Readout.rows`. Bands: 95% intervals over prompts.
    """
    table = own_rows(result, metric)
    kinds = list(dict.fromkeys(table["component"].dropna()))
    short = dict(zip(kinds, style.short_components(kinds), strict=True))
    figure, axes, members = scores.by_member(result, ax, 2.2, share=(False, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        base = own[own["arm"] == "base"]
        path = own[own["arm"] == "greedy"].sort_values("x")
        for arm, label, colour, dashes, marker in (
            ("random", "random order", *RANDOM[1:]),
            ("greedy", "best next matrix", look.colour, "-", "o"),
        ):
            line = pd.concat([base, own[own["arm"] == arm]]).sort_values("x")
            scores.band(here, line, colour)
            here.plot(line["x"], line["value"], color=colour, ls=dashes, marker=marker, ms=3,
                      label=label)  # fmt: skip
        scores.ends(here, own, "all")
        told = [f"{x:.0f}: {layer:.0f}.{short[component]}" for x, layer, component
                in zip(path["x"], path["layer"], path["component"], strict=True)]  # fmt: skip
        here.set_xticks(range(len(path) + 1), ["0", *told], rotation=50, ha="right",
                        rotation_mode="anchor", fontsize=6)  # fmt: skip
        here.set_title(look.label, loc="left", color=look.colour)
    scores.finish(result, ax, axes, table, "matrices switched on (number: layer.matrix added)")
    figure.align_xlabels(list(axes.flat))
    return figure


@style.styled
def block_changes(
    result: Result, ax: Axes | None = None, *, metric: str = "score", tested: bool = True
) -> Figure:
    """Change of the score by every matrix, layers upwards: "off", the tuned model with the base's
    matrix, less the tuned one; "alone", the base with the tuned matrix, less the base.

    metric: "score" or "log_probability". tested: mark with a dot what 95% intervals tell from 0.
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
    named = scores.NAMES.get(metric, metric)
    figure = heat_maps(
        ax, maps,
        legend=f"change of\n{named}\n(off: from tuned,\nalone: from base)",
        xlabel="matrix", labels=style.short_components(kinds), columns=4,
    )  # fmt: skip
    mine = [one for one in figure.axes if one not in before and one.images]
    for here, dots in zip(mine, marks, strict=False):
        if tested and len(dots):
            here.plot(dots[:, 1], dots[:, 0], ls="", marker="o", ms=2.4, mew=0.5,
                      mec="white", color=BLACK)  # fmt: skip
    return figure
