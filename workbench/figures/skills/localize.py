"""How few parameters carry the skill, and where are they?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.heat_maps import Map, heat_maps
from workbench.figures.member_panels import band, by_member
from workbench.figures.skills.scores import (
    CURVES,
    ENOUGH,
    finish,
    has_curve,
    model_lines,
    own_rows,
)
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "skills.localize"
HEADING = "How few parameters carry the skill"
POINTS = {"layer": ("one layer", "$L$"), "component": ("one kind of matrix", "$M$"),
          "bias": ("biases", "$b$")}  # fmt: skip


@style.styled
def graft_scores(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score of the base with a share of the change, against that share; a panel per model.

    metric: any of `localize`'s ("agreement", "ece" ...). Grey lines: base and tuned model. Bars:
    95% intervals over prompts, of the learned mask and of random entries.
    """
    table = own_rows(result, metric)
    figure, axes, members = by_member(result, ax, 1.7, share=(True, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        here.set_xscale("log")
        for arm, (label, colour, dashes, marker) in CURVES.items():
            line = own[(own["arm"] == arm) & (own["x"] > 0)].sort_values("x")
            if line.empty:
                continue
            shown = colour or look.colour
            if arm in ("learned", "random"):
                band(here, line, shown, place=(arm == "random", 2))
            if arm == "random":
                marks.control(here, line["x"], line["value"], dashes, label)
                continue
            here.plot(line["x"], line["value"], color=shown, ls=dashes, marker=marker, ms=3,
                      lw=1.6 if arm == "learned" else 1.0, zorder=4 if arm == "learned" else 3,
                      label=label)  # fmt: skip
        for arm, (label, mark) in POINTS.items():
            points = own[own["arm"] == arm]
            if len(points):
                here.plot(points["x"], points["value"], ls="", marker=mark, ms=3.5, mew=0.3,
                          color="#56B4E9", label=label, zorder=2)  # fmt: skip
        model_lines(here, own)
        style.name(here, look)
    taken = table.loc[table["x"].between(0, 1, inclusive="neither"), "x"]
    # A decade at least, in which a single sparsity has room for its ticks.
    low, high = (taken.min() / 2, min(1.0, taken.max() * 2)) if len(taken) else (0.1, 1.0)
    low = min(low, high / 10)
    axes[0, 0].set_xlim(low, high)
    marks.log_ticks(axes[0, 0].xaxis, low, high)
    finish(result, ax, axes, table, f"share of the parameters in the blocks {marks.LOG}")
    return figure


@style.styled
def graft_places(result: Result, ax: Axes | None = None, *, arm: str = "") -> Figure:
    """How much of every matrix a graft takes, over its share of all: layers upwards, log2 scale; a
    panel per model.

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
        least = share / 16 or np.nan  # of a graft that takes nothing there is no ratio
        ratio = np.log2(np.maximum(grid.to_numpy(float), least) / (16 * least))
        maps.append(Map(f"{look.label}: {share:.2%}", ratio, look.colour))
    return heat_maps(
        ax, maps, legend=f"{CURVES[arm][0]}: log₂ of\n(share of a matrix /\na random graft's)",
        xlabel="matrix", labels=style.short_components(kinds), columns=3,
        counts=(cells["n"], "entries of a matrix"),
    )  # fmt: skip


def chosen_sparsity(result: Result, member: str, arm: str) -> tuple[float, bool]:
    """The smallest sparsity of an arm with 95% of the gain on the prompts that choose, or its
    largest; whether it has that gain."""
    gains = result.metric("choosing_gain")
    gains = gains[(gains["member"] == member) & (gains["arm"] == arm)].sort_values("sparsity")
    enough = gains[gains["value"] >= ENOUGH]
    return float((enough if len(enough) else gains.tail(1))["sparsity"].iloc[0]), bool(len(enough))


DRAWINGS = (
    Drawing(
        KEY,
        "sparsity",
        "How few parameters carry the skill",
        graft_scores,
        "The curves show the score when only a share of the change is put onto the base, on "
        "prompts on which neither mask nor epoch was chosen. The learned mask is in the model's "
        "colour, at the size it ended with. The other curves choose as many entries without "
        "learning, or take the best low-rank change of as many stored numbers. The grey lines are "
        "base and tuned model, and bars are 95% intervals over prompts.",
        "A learned mask is trained on the task: part of its score is new training, which starts "
        "from the movement mask and may not have converged. The sizes of the learned mask are what "
        "it ended with, and not what was requested.",
        applies=lambda result, *_: has_curve(result, *CURVES),
    ),
    Drawing(
        KEY,
        "calibration",
        "Calibration of grafts",
        lambda result, ax=None, **options: graft_scores(
            result, ax, **({"metric": "ece"} | options)
        ),
        "The curves show the expected calibration error (10 bins of equal width) of the answer's "
        "first token for the same shares of the change.",
        "The estimate is biased upwards: a perfectly calibrated model shows the baseline in the "
        "table, and not 0. A model that is always wrong and unsure is well calibrated.",
        applies=lambda result, *_: has_curve(result, *CURVES),
    ),
    Drawing(
        KEY,
        "places",
        "Where the graft is",
        graft_places,
        "Each cell is the share of a matrix that the graft takes, over the graft's share of all "
        "parameters, as log2: red matrices contain more of it than their size gives. After each "
        "name is the size of the graft: the smallest with 95% of the gain, or the largest if none "
        "has that much.",
        "Several grafts may do equally well, and one of them is found. A matrix with little of the "
        "graft may still be needed.",
        applies=has("entries"),
    ),
)


def sentence(result: Result) -> Findings:
    """The smallest graft with 95% of the gain, learned and by movement."""
    gains, sizes = own_rows(result, "gain"), own_rows(result, "score")
    parts = []
    for member in result.members:
        own = gains[gains["member"] == member]
        scores = sizes[sizes["member"] == member].set_index("arm")["value"]
        said = [f"base {scores['base']:.2f}, tuned {scores['tuned']:.2f}"]
        for arm, (label, *_) in CURVES.items():
            rows = own[(own["arm"] == arm) & (own["x"] > 0)].sort_values("x")
            if rows.empty or (arm not in ("learned", "movement", "rank", "random")):
                continue
            sparsity, enough = chosen_sparsity(result, member, arm)
            best = rows[rows["sparsity"] == sparsity].iloc[0]
            reached = "" if enough else "not enough yet, "
            if pd.isna(best["value"]):
                said.append(f"{label}: no gain to share out")
                continue
            said.append(f"{label}: {reached}{change(best, '.2f')} at {best['x']:.3%}")
        parts.append(f"{member}: {', '.join(said)}")
    n, total = int(sizes["n"].max()), int(result.metric("N")["value"].max())
    return (
        f"The gain is of the smallest graft with 95% of it on other prompts, at its share of "
        f"N = {total:,} (95% intervals over {n} prompts)"
    ), parts
