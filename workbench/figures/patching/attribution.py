"""What effect of a patch do gradients predict, and how right are they?"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.heat_maps import Map, heat_maps
from workbench.figures.patching.layer_maps import by_head
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.attribution"
HEADING = "Attribution: all places by one gradient"
ENTRY = ["side", "component", "layer", "head", "neuron", "position"]  # one patch of a member
SIDES = {"base": "base", "tuned": "tuned", "tuned->base": "tuned into base"}


@style.styled
def attribution_against_exact(result: Result, ax: Axes | None = None) -> Figure:
    """First-order effect against the exact patch, a panel per model: filled the strongest entries,
    hollow random others. Line: where both are equal. Above: Spearman's ρ of the two groups."""
    members = result.members
    rows, columns = style.grid_shape(len(members))
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=(2.6 if columns == 1 else 1.9) * rows + 0.5,
        share=(True, True),
    )
    looks = style.looks(result)
    for here, member in zip(axes.flat, members, strict=False):
        entries = checked(result, member)
        said = []
        for side, own in entries.groupby("side", sort=False):
            colour = style.GREY if side == "base" else looks[member].colour
            marker = {"base": "o", "tuned->base": "^"}.get(str(side), looks[member].marker)
            for group, part in own.groupby("group", sort=False):
                here.plot(
                    *(part["exact"], part["attribution"], marker),
                    ms=3.5,
                    color=colour,
                    mfc=colour if group == "top" else "none",
                    mew=0.7,
                    ls="",
                )
            shown = {"tuned": looks[member].label}.get(str(side), SIDES[str(side)])
            neutral = style.BLACK if side == "tuned->base" else colour
            here.plot([], [], marker, ms=3.5, color=neutral, ls="", label=shown)
            said.append(f"{SIDES[str(side)]}: ρ = {_agreement(result, member, str(side))}")
        here.plot([], [], "o", ms=3.5, color=style.GREY, mfc="none", ls="",
                  label="hollow: random entries")  # fmt: skip
        here.axline((0, 0), slope=1, color=style.GREY, lw=0.8, ls=style.DASHES[0], zorder=0,
                    label="equal")  # fmt: skip
        style.name(here, looks[member], "\n" + "\n".join(said), fontsize=style.SMALL)
    style.first_column(axes, "attribution\n(share recovered)")
    for here in axes[-1]:
        here.set_xlabel("exact patch\n(share recovered)")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("exact")["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def attribution_by_head(result: Result, ax: Axes | None = None) -> Figure:
    """Attribution of every head, summed over the positions that were asked for, layers upwards: the
    base, then a map per fine-tuned model, on one colour scale centred on 0."""
    table = result.metric("attribution")
    table = table[(table["arm"] == "patch") & (table["component"] == "z")]
    if (table["position"] == "all").any():
        table = table[table["position"] == "all"]
    looks = style.looks(result)
    grids = []
    first = table[(table["member"] == result.members[0]) & (table["side"] == "base")]
    if len(first):
        grids.append(Map("base", by_head(first), style.GREY))
    for side, into in (("tuned", ""), ("tuned->base", " into base")):
        for member, look in looks.items():
            own = table[(table["member"] == member) & (table["side"] == side)]
            if len(own):
                grids.append(Map(look.label + into, by_head(own), look.colour))
    return heat_maps(
        ax, grids, legend="share recovered;\n0: no effect", xlabel="head",
        counts=(table["n"], "prompts and positions"),
    )  # fmt: skip


def checked(result: Result, member: str) -> pd.DataFrame:
    """The entries patched exactly: columns of ENTRY, group, attribution, exact."""
    table = result.table[(result.table["member"] == member) & (result.table["arm"] == "patch")]
    exact = table[table["metric"] == "exact"].rename(columns={"value": "exact"})
    first = table[table["metric"] == "attribution"].rename(columns={"value": "attribution"})
    return exact[[*ENTRY, "group", "exact"]].merge(first[[*ENTRY, "attribution"]], on=ENTRY)


def _agreement(result: Result, member: str, side: str) -> str:
    """Spearman's rank correlation of the strongest and of the random entries, as text."""
    table = result.metric("rank_correlation")
    own = table[(table["member"] == member) & (table["side"] == side)].set_index("group")["value"]
    return ", ".join(f"{own[group]:.2f}" for group in ("top", "random") if group in own.index)


DRAWINGS = (
    Drawing(
        KEY,
        "exact",
        "First-order effect against the exact patch",
        attribution_against_exact,
        "Each point compares the share of the clean - corrupt gap that the gradient predicts with "
        "the share that the patch itself recovers (for tuned into base: of the tuned - base gap). "
        "The strongest entries are filled, random other entries are hollow, and on the dashed line "
        "both are equal. Above each panel is Spearman's ρ of the strongest and of the random "
        "entries.",
        "The strongest entries are chosen by the prediction, so its errors among them point "
        "outwards, and places whose effect the gradient misses (saturated softmaxes) are mostly "
        "not shown.",
        applies=has("exact"),
    ),
    Drawing(
        KEY,
        "heads",
        "Heads by attribution",
        attribution_by_head,
        "The maps show the first-order effect of every head's output (z), summed over the named "
        "positions, with layers upwards; red is towards the clean answer. There is a map for the "
        "base, one for each fine-tuned model, and one for each model's activations put into the "
        "base on the same prompts.",
        "'Into base' is a share of a different gap than the other maps, so compare places and not "
        "depths of colour. The effects of several heads add up here although their patches do not.",
        applies=lambda result, *others: bool((result.table["component"] == "z").any()),
    ),
)


def sentence(result: Result) -> Findings:
    """How well the gradient ranks what exact patches show."""
    own = result.metric("rank_correlation")
    parts = []
    for member in result.members:
        said = [
            f"{row['side']}, {row['group']} entries {change(row, '.2f')} (n = {int(row['n'])})"
            for _, row in own[own["member"] == member].iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return "Spearman's ρ compares attribution with the exact patch", parts
