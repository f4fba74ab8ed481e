"""Does the change act on what the layers read? Its energy on the inputs' directions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result
from workbench.stats import bootstrap

KEY = "spectral.explained"
HEADING = "The change and the layers' inputs"


def of_matrices(result: Result, metric: str) -> pd.DataFrame:
    """The rows of matrices of the first set of prompts, which are those of the task."""
    rows = result.metric(metric)
    rows = rows[rows["component"].notna()]
    return rows[rows["task"] == rows["task"].iloc[0]] if len(rows) else rows


@style.styled
def energy_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Energy of each matrix's change on the inputs, over random directions: geometric mean over
    the matrices of a layer with its 95% interval; grey: 95% range of random directions."""
    rows = of_matrices(result, "energy")
    rows = rows[rows["value"] > 0].dropna(subset=["layer"])
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    null = rows.groupby("layer")[["null_low", "null_high"]].median()
    x = null.index.to_numpy(float)
    here.fill_between(x, null["null_low"], null["null_high"], color=style.GREY, alpha=0.2, lw=0,
                      label="random directions (95%)")  # fmt: skip
    here.axhline(1, color=style.GREY, ls=style.DASHES[0], lw=1)
    for name, look in style.looks(result).items():
        own = rows[rows["member"] == name]
        if own.empty:
            continue
        layers = sorted(own["layer"].unique())
        each = [bootstrap(np.log(own.loc[own["layer"] == n, "value"])) for n in layers]
        curve = pd.DataFrame(each)
        curve[["value", "low", "high"]] = np.exp(curve[["value", "low", "high"]])
        marks.curve(here, np.asarray(layers, float), curve, look, layers=True)
    here.set_yscale("log")
    here.set(
        xlabel="layer", ylabel=f"output change on the inputs\nover random directions {marks.LOG}"
    )
    marks.layer_ticks(here, rows["layer"].unique())
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def by_directions(result: Result, ax: Axes | None = None) -> Figure:
    """Share of the change in the leading directions of the inputs, over their number: mean over
    matrices; the inputs' own share dotted, chance dashed."""
    rows, inputs = (of_matrices(result, metric) for metric in ("explained", "inputs"))
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    for name, look in style.looks(result).items():
        own = rows[rows["member"] == name]
        if own.empty:
            continue
        grid = sorted(own["x"].unique())
        each = pd.DataFrame([bootstrap(own.loc[own["x"] == x, "value"]) for x in grid])
        marks.curve(here, np.asarray(grid), each, look)
    means = rows.groupby("x")["baseline"].mean()
    marks.control(here, means.index, means, style.DASHES[0], "random directions")
    own = inputs.groupby("x")["value"].mean()
    marks.control(here, own.index, own, style.DASHES[1], "the inputs themselves", marker="s")
    here.set_xscale("log", base=2)
    here.xaxis.set_major_formatter("{x:g}")
    here.set(
        xlabel=f"leading directions of the inputs {marks.LOG}", ylabel="share of |ΔW|²", ylim=(0, 1)
    )
    style.legend(axes, outside=ax is None)
    counts = rows[rows["x"] == rows["x"].min()].groupby("member").size()
    marks.counted(axes, counts, "matrices", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "energy",
        "The change on the layers' inputs",
        energy_by_layer,
        "The curves show what the change of a matrix adds to its output on the prompts, over what "
        "the same singular values in random input directions would add, as geometric mean over the "
        "matrices of a layer with its 95% interval. The grey band is the 95% range of random "
        "directions, for the middle matrix of a layer.",
        "A few directions can hold most of the inputs' energy, those of a first token above all: a "
        "change beside them lies below 1 and may still matter for every other token.",
        applies=has("explained"),
    ),
    Drawing(
        KEY,
        "directions",
        "The change in the inputs' leading directions",
        by_directions,
        "The curves show which share of the squared change lies in the leading directions of the "
        "inputs, as mean over matrices with its 95% interval. Random directions are dashed; the "
        "share of the inputs' own energy is dotted.",
        "A change that follows the dotted line acts where the inputs are large, which is not the "
        "same as where they differ between prompts.",
        applies=has("explained"),
    ),
)


def sentence(result: Result) -> Findings:
    rows = result.metric("energy")
    whole = rows[rows["component"].isna()]
    parts = []
    for name in result.members:
        own = whole[whole["member"] == name]
        said = [
            f"{row['task']} {change(row, '.2f')}"
            for _, row in own.iterrows()
            if pd.notna(row["value"])
        ]
        n = int(own["n"].max()) if len(own) else 0
        told = f"{', '.join(said)} (n = {n} prompts)" if said else "no matrix changed"
        parts.append(f"{name}: {told}")
    return (
        "On the inputs of the prompts the change adds this many times what it would in random "
        "directions"
    ), parts
