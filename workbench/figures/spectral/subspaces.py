"""Do the changes of several models have directions in common? Overlap of their subspaces."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, interval
from workbench.results.result import Result, matrix_columns
from workbench.stats import bootstrap

KEY = "spectral.subspaces"
HEADING = "Directions that models share"
SIDES = ("input", "output")
MOST = 8  # models whose cells have room for chance, too


@style.styled
def overlaps(result: Result, ax: Axes | None = None) -> Figure:
    """Mean overlap over matrices of every two models, below the diagonal of the input directions,
    above it of the output directions; in every cell it and chance, coloured by their difference."""
    rows = result.metric("overlap")
    rows = rows[rows["second"].isin(result.members)]
    means = rows.groupby(["side", "first", "second"])[["value", "baseline"]].mean()
    names = [n for n in result.members if n in {*rows["first"], *rows["second"]}]
    size = len(names)
    figure, axes = style.panels(
        ax, width=min(style.WIDE, 2.0 + 0.62 * size), height=min(6.0, 1.2 + 0.5 * size)
    )
    here, grid, told = axes[0, 0], np.full((size, size), np.nan), {}
    for (side, first, second), found in means.iterrows():
        low, high = sorted((names.index(first), names.index(second)))
        at = (high, low) if side == "input" else (low, high)
        grid[at] = found["value"] - found["baseline"]
        told[at] = f"{found['value']:.2f}\n{found['baseline']:.2f}"
    most, colours = max(0.1, float(np.nanmax(np.abs(grid)))), mpl.colormaps[style.DIVERGING]
    for (row, column), text in told.items():
        shade = colours((grid[row, column] / most + 1) / 2)
        shown = text if size <= MOST else text.partition("\n")[0]
        here.text(column, row, shown, ha="center", va="center", fontsize=5.5, color=style.on(shade))
    image = here.imshow(grid, cmap=style.DIVERGING, vmin=-most, vmax=most)
    here.set_facecolor(style.PALE)
    labels = [style.text(name, 22) for name in names]
    here.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
    here.set_yticks(range(size), labels)
    here.set_title("above the diagonal: output directions\nbelow it: input directions", loc="left")
    here.set_xlabel("fine-tuned model")
    here.set_ylabel("fine-tuned model")
    here.spines[:].set_visible(False)
    style.colour_bar(image, here, "overlap less chance")
    counts = rows.groupby(["first", "second", "side"]).size()
    marks.counted(axes, counts, "matrices", outside=ax is None)
    return figure


@style.styled
def replicated(result: Result, ax: Axes | None = None) -> Figure:
    """Share of each model's change in the leading directions of the others, by layer: mean over its
    matrices with 95% interval; a panel for each side, chance dashed."""
    table = result.metric("replicated").dropna(subset=["layer"])
    figure, axes = style.panels(
        *(ax, 1, 2), width=style.WIDE * 0.75, height=2.3, share=(True, True)
    )
    for here, side in zip(axes.flat, SIDES, strict=True):
        own = table[table["side"] == side]
        for name, look in style.looks(result).items():
            ours = own[own["first"] == name]
            if ours.empty:
                continue
            layers = sorted(ours["layer"].unique())
            each = [bootstrap(ours.loc[ours["layer"] == layer, "value"]) for layer in layers]
            marks.curve(here, np.asarray(layers, float), pd.DataFrame(each), look, layers=True)
        chance = own.groupby("layer")["baseline"].mean()
        marks.control(here, chance.index.to_numpy(float), chance, style.DASHES[0], "chance")
        here.set_title(f"{side} directions", loc="left")
        here.set_xlabel("layer")
        marks.layer_ticks(here, own["layer"].unique())
        here.set_ylim(0, 1)
    style.first_column(axes, "energy of the change in\nthe others' directions (share)")
    style.legend(axes, outside=ax is None)
    counts = table.groupby(["first", "layer", "side"]).size()
    marks.counted(axes, counts, "matrices a layer", outside=ax is None)
    return figure


def several(result: Result, *others: Result) -> bool:
    """Whether any two models changed the same matrix."""
    return result.has("replicated")


DRAWINGS = (
    Drawing(
        KEY,
        "overlaps",
        "Directions that models share",
        overlaps,
        "Each cell compares the leading directions of two models' changes, as mean over matrices: "
        "0 means orthogonal subspaces, 1 that one contains the other. The second number is what "
        "random subspaces of the same dimensions share, and the colour is the difference. Output "
        "directions are above the diagonal, input directions below it.",
        "LoRA adapters that started from the same random A share input directions for that reason, "
        "whatever they learned. Where singular values are nearly equal, the leading directions are "
        "an arbitrary part of a larger subspace.",
        applies=several,
    ),
    Drawing(
        KEY,
        "replicated",
        "What replicates in the other models",
        replicated,
        "The curves show which share of a change's energy lies in the leading directions of the "
        "other models' changes, as mean over the matrices of a layer with its 95% interval. The "
        "dashed line is the share in as many random directions.",
        "It depends on who the others are: between models of different tasks a low share is "
        "expected. Runs with the same start or the same order of the data share more than the "
        "task.",
        applies=has("replicated"),
    ),
)


def sentence(result: Result) -> Findings:
    rows = result.table[(result.table["metric"] == "overlap")]
    parts = []
    for (first, second), own in rows.groupby(["first", "second"], sort=False):
        said = []
        for side in SIDES:
            each = own[own["side"] == side]
            if each.empty:
                continue
            mean = bootstrap(each["value"])
            said.append(
                f"{side} {interval(mean.value, mean.low, mean.high, '.2f')} "
                f"(chance {each['baseline'].mean():.2f})"
            )
        counted = len(own.drop_duplicates(matrix_columns(own)))
        parts.append(f"{first} with {second}: {', '.join(said)}, n = {counted} matrices")
    whole = result.table[(result.table["metric"] == "stock")]
    centre = f"; the centre of all lies at t = {whole['value'].iloc[0]:.2f}" if len(whole) else ""
    return f"The changes share directions (mean overlap over matrices{centre})", parts[:8]
