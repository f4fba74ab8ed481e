"""What does the tuned model need that the base does not? Heads, MLPs, layers, neurons taken out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.knockout"
HEADING = "Knockouts"
METRIC = "log_probability"
CHANGE = "tuned - base"
MOST = 8  # components of each model
NAMES = {"mlp": "MLP", "layer": "layer", "head": "head", "neuron": "neuron"}
# The arm that is drawn is the first there is.
ORDER = ("mean", "mean_position", "resample", "zero", "other")


def named(row: pd.Series) -> str:
    """A component by its place: "head 4.2", "MLP 3", "layer 3", "neuron 3.17"."""
    name, own = f"{NAMES[row['component']]} {int(row['layer'])}", row["component"]
    return f"{name}.{int(row[own])}" if own in ("head", "neuron") else name


def arm(result: Result) -> str:
    """The arm that is drawn."""
    there = set(result.metric(METRIC)["arm"])
    return next(name for name in ORDER if name in there)


@style.styled
def needed(result: Result, ax: Axes | None = None) -> Figure:
    """The heads, MLPs and neurons that the tuned model needs most beyond the base: what their
    knockout does to each side, a panel per model."""
    members, drawn = result.members, arm(result)
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.6,
    )
    looks, table = style.looks(result), result.metric(METRIC)
    table = table[(table["arm"] == drawn) & (table["component"] != "layer")]
    for here, member in zip(axes.flat, members, strict=False):
        own = table[table["member"] == member]
        change = own[own["side"] == CHANGE].sort_values("value", kind="stable").head(MOST)
        names = [named(row) for _, row in change.iterrows()]
        keys = [name for name in ("component", "layer", "head", "neuron") if name in own]
        sides = {
            side: rows.merge(change[keys], on=keys, how="right")
            for side, rows in own.groupby("side")
        }
        at = np.arange(len(names), dtype=float)
        look = looks[member]
        for shift, side, colour, marker in (
            (-0.15, "tuned", look.colour, look.marker), (0.15, "base", style.GREY, "o"),
        ):  # fmt: skip
            told = sides[side]
            here.hlines(at + shift, told["low"], told["high"], color=colour, lw=1)
            here.plot(told["value"], at + shift, marker, color=colour, ms=3.5, label=side)
        null = sides["tuned"]["baseline"]
        here.plot(null, at - 0.15, "|", color="black", ms=6, label="tuned, mean of all of the kind")
        here.axvline(0, color=style.GREY, lw=0.8, ls=style.DASHES[1], zorder=0)
        here.set_yticks(at, names)
        here.invert_yaxis()
        style.name(here, look)
    for here in axes[-1]:
        here.set_xlabel("change of the answer's\nlog-probability (nats)")
    style.first_column(axes, "component")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def layers_needed(result: Result, ax: Axes | None = None) -> Figure:
    """What taking out a whole layer costs each model, the base dashed."""
    figure, axes = style.panels(ax, 1, 1, width=style.COLUMN, height=2.4)
    here, drawn = axes.flat[0], arm(result)
    table = result.metric(METRIC)
    table = table[(table["arm"] == drawn) & (table["component"] == "layer")].sort_values("layer")
    for member, look in style.looks(result).items():
        own = table[(table["member"] == member) & (table["side"] == "tuned")]
        marks.curve(here, own["layer"].to_numpy(float), own, look, layers=True)
    base = table[(table["member"] == result.members[0]) & (table["side"] == "base")]
    marks.control(here, base["layer"].to_numpy(float), base["value"], style.DASHES[0], "base")
    here.set(xlabel="layer taken out", ylabel="change of the answer's\nlog-probability (nats)")
    marks.layer_ticks(here, table["layer"].unique())
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


def _kinds(result: Result) -> set[str]:
    return set(result.metric(METRIC)["component"]) if has(METRIC)(result) else set()


DRAWINGS = (
    Drawing(
        KEY,
        "needed",
        "What the tuned model needs beyond the base",
        needed,
        "Each row is a head, MLP or neuron that is taken out at every token, with what this "
        "does to the answer's log-probability in the tuned model and in the base. A tick marks the "
        "mean over all components of the kind. Bars are 95% intervals over prompts.",
        "Components can stand in for each other, so what is used need not be missed. The rows are "
        "the largest differences on the same prompts; the headline's were chosen on one half and "
        "are reported on the other.",
        applies=lambda result: bool(_kinds(result) - {"layer"}),
    ),
    Drawing(
        KEY,
        "layers",
        "Whole layers taken out",
        layers_needed,
        "The curve shows what happens to the answer's log-probability when all that a layer adds "
        "to the stream is replaced. The base is dashed, and bands are 95% intervals over prompts.",
        "The first layers are needed by any model, whatever fine-tuning changed: compare with the "
        "base.",
        applies=lambda result: "layer" in _kinds(result),
    ),
)


def sentence(result: Result) -> Findings:
    """The components that were picked on one half of the prompts, on the other half."""
    rows, drawn, told = result.metric("picked"), arm(result), []
    for member in result.members:
        own = rows[(rows["member"] == member) & (rows["arm"] == drawn)]
        said = [f"{named(row)} by {change(row, '.2f')}" for _, row in own.iterrows()]
        told.append(f"{member}: {', '.join(said)} (n = {int(own['n'].max())} prompts)")
    head = (
        "A knockout changes the answer's log-probability more in the tuned model than in the base"
    )
    return f"{head} (nats, {drawn} ablation)", told
