"""What does a prefix take of attention and add to it, and what does it leave alone?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.heat_maps import Map, heat_maps
from workbench.figures.patching.layer_maps import by_head
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.prefix"
HEADING = "What a prefix does to attention"
SAME, RUNS = "with - without prefix", "tuned - base"
PANELS = {
    "prefix_mass": "attention on the prefix",
    "bias_share": "prefix's share of attention's\noutput (norms)",
    "bias_direction": "energy of what it adds\nin its mean direction",
}
RANDOM = "random prefix of the same norms"
FLOOR = 1e-9  # a distance below it is drawn as this


def _layers(result: Result, metric: str, side: str = "tuned") -> pd.DataFrame:
    """Rows of whole layers."""
    rows = result.metric(metric)
    return rows[(rows["side"] == side) & rows["head"].isna()].sort_values("layer")


@style.styled
def by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Mass, share of the output and constancy of what a prefix adds in every layer, with those of
    random prefixes of the same norms, a curve per model."""
    figure, axes = style.panels(ax, 1, 3, width=style.WIDE, height=2.3)
    for here, (metric, label) in zip(axes.flat, PANELS.items(), strict=True):
        rows, told = _layers(result, metric), RANDOM
        for member, look in style.looks(result).items():
            own = rows[rows["member"] == member]
            x = own["layer"].to_numpy(float)
            marks.curve(here, x, own, look, layers=True)
            marks.control(here, x, own["baseline"], style.DASHES[0], told, marker=look.marker)
            told = None
        here.set(xlabel="layer", ylabel=label, ylim=(0, _top(rows)))
        marks.layer_ticks(here, rows["layer"].unique())
    style.legend(axes, outside=ax is None)
    marks.counted(axes, _layers(result, "prefix_mass")["n"], "prompts", outside=ax is None)
    return figure


def _top(rows: pd.DataFrame) -> float:
    """The end of an axis from 0."""
    most = np.nanmax([rows[name].max() for name in ("value", "high", "baseline")])
    return 1.08 * float(most) if most > 0 else 1.0


@style.styled
def content(result: Result, ax: Axes | None = None) -> Figure:
    """How far attention over the content differs from the base's run, and from that of the same
    states without the prefix, in every layer on a logarithmic scale."""
    figure, axes = style.panels(ax, 1, 1, width=style.COLUMN, height=2.5)
    here = axes.flat[0]
    here.set_yscale("log")
    same, runs = (_layers(result, "largest_content_change", side) for side in (SAME, RUNS))
    known: Sequence[str | None] = ("null: same states, no prefix", "what rounding may do")
    for member, look in style.looks(result).items():
        ours, theirs = (
            rows[rows["member"] == member].assign(value=rows["value"].clip(lower=FLOOR))
            for rows in (runs, same)
        )
        x = ours["layer"].to_numpy(float)
        marks.curve(here, x, ours.assign(low=np.nan, high=np.nan), look, layers=True)
        marks.control(here, x, theirs["value"], style.DASHES[0], known[0], marker=look.marker)
        here.plot(x, theirs["baseline"], color=style.GREY, lw=0.8, ls=style.DASHES[1],
                  label=known[1], zorder=0)  # fmt: skip
        known = (None, None)
    here.set(xlabel="layer", ylabel=f"largest change of attention\nover the content {marks.LOG}")
    marks.layer_ticks(here, runs["layer"].unique())
    style.legend(axes, outside=ax is None)
    marks.counted(axes, runs["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def heads(result: Result, ax: Axes | None = None) -> Figure:
    """The attention that every head pays to the prefix, layers upwards, a map per model on one
    colour scale."""
    table = result.metric("prefix_mass")
    table = table[table["head"].notna()]
    looks = style.looks(result)
    maps = [
        Map(looks[member].label, by_head(own), looks[member].colour)
        for member, own in table.groupby("member", sort=False)
    ]
    layers = sorted({int(layer) for layer in table["layer"]})
    legend = f"attention on the prefix;\na random prefix: {table['baseline'].mean():.2g}"
    return heat_maps(
        ax, maps, high=max(float(table["value"].max()), 1e-9), legend=legend, xlabel="head",
        layers=layers, counts=(table["n"], "prompts"),
    )  # fmt: skip


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "What a prefix takes and adds in every layer",
        by_layer,
        "The curves show, layer by layer, the share of attention that goes to the prefix (mean "
        "over heads and tokens), the norm of what this adds to attention's output against the norm "
        "of the whole, and which part of its energy lies in its mean direction, which is taken "
        "from other prompts. Bands are 95% intervals over prompts. Dashed: prefixes of the same "
        "norms in random directions, given the same states.",
        "Attention on virtual tokens of small values has no effect, so read the share of the "
        "output beside the mass. Any prefix of few tokens adds much the same everywhere: only what "
        "lies above the dashed curve was learned.",
        applies=has("prefix_mass"),
    ),
    Drawing(
        KEY,
        "content",
        "What a prefix leaves alone",
        content,
        "Each curve is the largest total variation distance, over heads, tokens and prompts, "
        "between the attention over the content in the tuned model and in the base. Dashed: "
        "between that of a layer behind its prefix and of the same states without it, which theory "
        "says is 0. The dotted line is what rounding may do.",
        "The largest of many distances grows with the number of prompts and heads. A change in "
        "deeper layers comes from the states that earlier biases made, and not from the prefix of "
        "that layer. A distance below 1e-9 is drawn there.",
        applies=has("largest_content_change"),
    ),
    Drawing(
        KEY,
        "heads",
        "Heads that attend to the prefix",
        heads,
        "Each cell is the share of a head's attention that goes to the prefix, averaged over the "
        "tokens of the prompts, with layers upwards. All models share one colour scale.",
        "A head that rests on the prefix may do nothing, as one that rests on the first token.",
        applies=has("prefix_mass"),
    ),
)


def sentence(result: Result) -> Findings:
    """Whether the theory holds, and the layer in which the prefix adds most of the output."""
    parts = []
    for member in result.members:
        same, mass, share = (
            rows[rows["member"] == member].set_index("layer")
            for rows in (
                _layers(result, "largest_content_change", SAME), _layers(result, "prefix_mass"),
                _layers(result, "bias_share"),
            )
        )  # fmt: skip
        holds = bool((same["value"] <= same["baseline"]).all())
        told = "as without it, up to rounding" if holds else "CHANGED, which theory excludes"
        at = share["value"].idxmax() if share["value"].notna().any() else share.index[0]
        parts.append(
            f"{member}: the relative attention over the content is {told}; most in layer {at}, "
            f"where it takes {change(mass.loc[at], '.2f')} of attention (random prefix: "
            f"{mass.loc[at, 'baseline']:.2f}) and adds {change(share.loc[at], '.2f')} of the "
            f"output's norm (random: {share.loc[at, 'baseline']:.2f}; n = "
            f"{int(mass.loc[at, 'n'])} prompts)"
        )
    return "What the prefix does to attention", parts
