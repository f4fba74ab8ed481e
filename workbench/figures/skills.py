"""How few parameters carry the skill, where they are, and whether two skills share them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import scores, style
from workbench.figures.maps import Map, heat_maps
from workbench.figures.scores import BLACK, own_rows
from workbench.results.result import Result

LOCALIZE, OVERLAP, COMPOSE = "skills.localize", "skills.overlap", "skills.compose"
ENOUGH = 0.95  # of the gain
# How an arm is drawn: label, colour (None: the member's), dashes, marker.
CURVES = {
    "learned": ("learned mask", None, "-", "o"),
    "movement": ("largest change |Δ|", BLACK, "-", "s"),
    "rank": ("best low rank of Δ", "#0072B2", "-", "D"),
    "gradient": ("largest gradient", "#009E73", style.DASHES[0], "^"),
    "principal": ("principal weights", "#E69F00", style.DASHES[0], "v"),
    "magnitude": ("largest weights |θ₀|", "#CC79A7", style.DASHES[0], "<"),
    "random": ("random entries", style.GREY, style.DASHES[1], "x"),
}
POINTS = {"layer": ("one layer", "$L$"), "component": ("one kind of matrix", "$M$"),
          "bias": ("biases", "$b$")}  # fmt: skip


@style.styled
def graft_scores(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score of the base with a share of the change, against that share; a panel per member.

    metric: any of `localize`'s ("agreement", "ece" ...). Grey lines: base and tuned model. Bands:
    95% intervals over prompts, of the learned mask and of random entries.
    """
    table = own_rows(result, metric)
    figure, axes, members = scores.by_member(result, ax, 1.7, share=(True, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        for arm, (label, colour, dashes, marker) in CURVES.items():
            line = own[(own["arm"] == arm) & (own["x"] > 0)].sort_values("x")
            if line.empty:
                continue
            shown = colour or look.colour
            if arm in ("learned", "random"):
                scores.band(here, line, shown)
            here.plot(line["x"], line["value"], color=shown, ls=dashes, marker=marker, ms=3,
                      lw=1.6 if arm == "learned" else 1.0, zorder=4 if arm == "learned" else 3,
                      label=label)  # fmt: skip
        for arm, (label, mark) in POINTS.items():
            points = own[own["arm"] == arm]
            if len(points):
                here.plot(points["x"], points["value"], ls="", marker=mark, ms=3.5, mew=0.3,
                          color="#56B4E9", label=label, zorder=2)  # fmt: skip
        scores.ends(here, own)
        here.set_xscale("log")
        here.set_title(look.label, loc="left", color=look.colour)
    taken = table.loc[table["x"].between(0, 1, inclusive="neither"), "x"]
    # A decade at least, in which a single sparsity has room for its ticks.
    low, high = (taken.min() / 2, min(1.0, taken.max() * 2)) if len(taken) else (0.1, 1.0)
    low = min(low, high / 10)
    axes[0, 0].set_xlim(low, high)
    style.log_ticks(axes[0, 0].xaxis, low, high)
    scores.finish(result, ax, axes, table, "share of the parameters in the blocks")
    return figure


@style.styled
def graft_places(result: Result, ax: Axes | None = None, *, arm: str = "") -> Figure:
    """How much of every matrix a graft takes, over its share of all: layers upwards, log2 scale; a
    panel per member.

    arm: "learned" or "movement"; the first there is. The graft shown is the smallest with 95% of
    the gain, or the largest.
    """
    cells = result.metric("entries")
    arm = arm or str(cells["arm"].iloc[0])
    cells = cells[cells["arm"] == arm]
    kinds = list(dict.fromkeys(cells["component"]))
    maps = []
    for member, look in style.looks(result).items():
        own = cells[cells["member"] == member]
        sparsity, _ = chosen_sparsity(result, member, arm)
        own = own[own["sparsity"] == sparsity]
        grid = own.pivot(index="layer", columns="component", values="value")[kinds]
        share = float(own["baseline"].iloc[0])
        ratio = np.log2(np.maximum(grid.to_numpy(float), share / 16) / share)
        maps.append(Map(f"{look.label}: {share:.2%}", ratio, look.colour))
    return heat_maps(
        ax, maps, legend=f"{CURVES[arm][0]}: log₂ of\n(share of a matrix /\na random graft's)",
        xlabel="matrix", labels=style.short_components(kinds), columns=3,
    )  # fmt: skip


def chosen_sparsity(result: Result, member: str, arm: str) -> tuple[float, bool]:
    """The smallest sparsity of an arm with 95% of the gain on the prompts that choose, or its
    largest; whether it has that gain."""
    gains = result.metric("choosing_gain")
    gains = gains[(gains["member"] == member) & (gains["arm"] == arm)].sort_values("sparsity")
    enough = gains[gains["value"] >= ENOUGH]
    return float((enough if len(enough) else gains.tail(1))["sparsity"].iloc[0]), bool(len(enough))


@style.styled
def overlap_matrix(result: Result, ax: Axes | None = None) -> Figure:
    """Share of graft j (across) that graft i (up) takes too, over what chance gives, log2; in every
    cell the share and, below, chance for any places, and for random places within each matrix."""
    table = result.metric("overlap").set_index(["first", "second"])
    within = result.metric("within").set_index(["first", "second"])["value"]
    names = list(dict.fromkeys(result.table["first"]))
    size = len(names)
    figure, axes = style.panels(
        ax, width=min(style.WIDE, 2.0 + 0.8 * size), height=min(6.0, 1.1 + 0.62 * size)
    )
    here, grid = axes[0, 0], np.full((size, size), np.nan)
    for i, j in np.ndindex(size, size):
        if i == j:
            continue
        row = table.loc[(names[i], names[j])]
        grid[i, j] = np.log2(max(row["value"], 1e-9) / row["baseline"])
    most = max(1.0, float(np.nanmax(np.abs(grid))))
    for (i, j), value in np.ndenumerate(grid):
        if i != j:
            row = table.loc[(names[i], names[j])]
            told = f"{row['value']:.2g}\n{row['baseline']:.2g} | {within[names[i], names[j]]:.2g}"
            dark = abs(value) > 0.7 * most
            here.text(j, i, told, ha="center", va="center", fontsize=5.5,
                      color="white" if dark else "black")  # fmt: skip
    image = here.imshow(grid, cmap=style.DIVERGING, vmin=-most, vmax=most, origin="lower")
    here.set_facecolor(style.PALE)
    labels = [style.text(name, 26) for name in names]
    here.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
    here.set_yticks(range(size), labels)
    here.set_xlabel("graft j")
    here.set_ylabel("graft i")
    here.spines[:].set_visible(False)
    style.colour_bar(image, here, "log₂ of overlap\nover chance")
    return figure


ARMS = {"graft": "grafts", "random": "random entries", "whole": "whole changes"}


@style.styled
def composition(result: Result, ax: Axes | None = None) -> Figure:
    """Score of every task (across) under every set of grafts (up): the grafts, as many random
    entries, and the members' whole changes summed; the lowest row is the base."""
    table = result.metric("score")
    tasks = list(dict.fromkeys(table["task"]))
    sets = list(dict.fromkeys(table.loc[table["arm"] == "graft", "skills"]))
    base = table[table["arm"] == "base"].set_index("task")["value"]
    figure, axes = style.panels(
        *(ax, 1, len(ARMS)), width=style.WIDE, height=1.3 + 0.22 * (len(sets) + 1),
        share=(True, True),
    )  # fmt: skip
    image = None
    for here, (arm, title) in zip(axes[0], ARMS.items(), strict=True):
        own = table[table["arm"] == arm].set_index(["skills", "task"])["value"]
        grid = np.array([base[tasks], *([own[s, t] for t in tasks] for s in sets)])
        image = here.imshow(grid, cmap=style.MAP, vmin=0, vmax=1, origin="lower", aspect="auto")
        for i, j in np.ndindex(*grid.shape):
            colour = "white" if grid[i, j] < 0.6 else "black"
            here.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
        here.set_xticks(range(len(tasks)), [style.text(t, 18) for t in tasks], rotation=40,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_yticks(range(len(sets) + 1), ["none (base)", *(style.text(s, 30) for s in sets)])
        here.set_title(title, loc="left")
        here.set_xlabel("task")
        here.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("skills put in")
    assert image is not None
    style.colour_bar(image, list(axes.flat), "score")
    return figure
