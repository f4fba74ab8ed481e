"""What do both sides think at every layer, where do their heads look, and what do gradients say?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.figures.maps import Map, heat_maps
from workbench.results.result import Result

LENS, PATTERNS, ATTRIBUTION = "patching.lens", "patching.patterns", "patching.attribution"
BASE = style.Look(style.GREY, "", "base")
CHANGE = "tuned - base"
ITSELF = "base against itself"
KEYS = 60  # tokens of a prompt's end that fit two columns
ENTRY = ["side", "component", "layer", "head", "neuron", "position"]  # one patch of a member
SIDES = {"base": "base", "tuned": "tuned", "tuned->base": "tuned into base"}


@style.styled
def lens_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Log-probability of the answer read from every layer, base and tuned, a panel per member; in
    the last one KL(tuned || base) of every member. Bands: 95% intervals over prompts."""
    members = result.members
    rows, columns = style.grid_shape(len(members) + 1, 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns < 3 else style.WIDE,
        height=1.5 * rows + 0.6,
        share=(True, False),
    )
    looks = style.looks(result)
    table = result.metric("log_probability")
    places = axes.flat[: len(members)]
    for here, member in zip(places, members, strict=True):
        own = table[table["member"] == member].sort_values("layer")
        for side, look in (("tuned", looks[member]), ("base", BASE)):
            rows_of = own[own["side"] == side]
            style.band(here, rows_of["layer"].to_numpy(float), rows_of, look)
        here.lines[-1].set_linestyle(style.DASHES[0])  # the base, on top where both agree
        here.sharey(axes.flat[0])
        here.set_title(looks[member].label, loc="left", color=looks[member].colour)
    last = axes.flat[len(members)]
    table = result.metric("kl")
    for member, look in looks.items():
        own = table[(table["member"] == member) & (table["side"] == CHANGE)].sort_values("layer")
        style.band(last, own["layer"].to_numpy(float), own, look)
    last.axhline(0, color=style.GREY, ls=style.DASHES[1], lw=1, label=ITSELF, zorder=0)
    last.set_title("KL(tuned ‖ base)", loc="left")
    last.set_ylabel("KL (nats)")
    style.first_column(axes, "log-probability\nof the answer (nats)")
    if last in axes[:, 0]:
        last.set_ylabel("KL (nats)")
    axes.flat[0].xaxis.get_major_locator().set_params(integer=True)
    for here in axes[-1]:
        here.set_xlabel("layer (−1: input)")
    style.blank(axes, len(members) + 1)
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def pattern_differences(result: Result, ax: Axes | None = None) -> Figure:
    """Distance of every head's last-token pattern from the base's, layers upwards, a map per member
    on one colour scale."""
    table = result.metric("tvd")
    table = table[table["position"] == "last token"]
    high = max(float(table["value"].max()), 1e-9)
    looks = style.looks(result)
    grids = {
        member: Map(looks[member].label, _by_head(own), looks[member].colour)
        for member, own in table.groupby("member", sort=False)
    }
    label = "total variation distance;\n0: base against itself"
    return heat_maps(ax, list(grids.values()), high=high, legend=label, xlabel="head")


@style.styled
def pattern_example(
    result: Result, ax: Axes | None = None, *, example: int | None = None
) -> Figure:
    """What one prompt's last token attends to, base and tuned, in the head that changed most, a
    panel per member (the first four). example: None for the one in which members change most."""
    table = result.metric("example_tvd")
    table = table[table["member"].isin(result.members[:4])]
    looks = style.looks(result)
    prompts = list(dict.fromkeys(table["prompt"]))
    last = table[table["x"] == table.groupby("prompt")["x"].transform("max")]
    if example is None:
        example = prompts.index(str(last.groupby("prompt")["value"].sum().idxmax()))
    if not 0 <= example < len(prompts):
        raise WorkbenchError(f"Expected an example from 0 to {len(prompts) - 1}, found {example}.")
    table = table[table["prompt"] == prompts[example]].sort_values("x")
    heads = {member: own.iloc[-1] for member, own in table.groupby("member", sort=False)}
    height = 1.0 * len(heads) + 0.7
    figure, axes = style.panels(
        ax, len(heads), 1, width=style.WIDE, height=height, share=(True, True)
    )
    for here, member in zip(axes[:, 0], result.members, strict=False):
        layer, head = int(heads[member]["layer"]), int(heads[member]["head"])
        colour = looks[member].colour
        for shift, side, fill in ((-0.2, "base", style.GREY), (0.2, "tuned", colour)):
            paid = _tensor(result, member, f"{example}/{side}/last")[layer, head, -KEYS:]
            label = side if side == "base" else looks[member].label
            here.bar(np.arange(len(paid)) + shift, paid, width=0.4, color=fill, label=label)
        title = f"{looks[member].label}: layer {layer}, head {head}"
        here.set_title(title, loc="left", color=colour)
        here.set(ylabel="attention", ylim=(0, 1))
    tokens = table.drop_duplicates("x")["token"].iloc[-KEYS:]
    written = [style.text(str(token).strip() or "·", 12) for token in tokens]
    axes[-1, 0].set_xticks(range(len(written)), written, rotation=90)
    axes[-1, 0].tick_params(axis="x", labelsize=6, length=1.5)
    axes[-1, 0].set(xlabel="token of the prompt, in order", xlim=(-0.7, len(written) - 0.3))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def attribution_against_exact(result: Result, ax: Axes | None = None) -> Figure:
    """First-order effect against the exact patch, a panel per member: filled the strongest entries,
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
            neutral = "k" if side == "tuned->base" else colour
            here.plot([], [], marker, ms=3.5, color=neutral, ls="", label=shown)
            said.append(f"{SIDES[str(side)]} ρ {_agreement(result, member, str(side))}")
        here.plot([], [], "o", ms=3.5, color="k", mfc="none", ls="", label="random entries")
        here.axline((0, 0), slope=1, color=style.GREY, lw=0.8, ls=style.DASHES[0], zorder=0,
                    label="equal")  # fmt: skip
        here.set_title("\n".join([looks[member].label, *said]), loc="left",
                       color=looks[member].colour, fontsize=style.SMALL)  # fmt: skip
    style.first_column(axes, "attribution\n(share recovered)")
    for here in axes[-1]:
        here.set_xlabel("exact patch\n(share recovered)")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def attribution_by_head(result: Result, ax: Axes | None = None) -> Figure:
    """Attribution of every head, summed over the positions that were asked for, layers upwards: the
    base, then a map per member, on one colour scale centred on 0."""
    table = result.metric("attribution")
    table = table[(table["arm"] == "patch") & (table["component"] == "z")]
    if (table["position"] == "all").any():
        table = table[table["position"] == "all"]
    looks = style.looks(result)
    grids = []
    first = table[(table["member"] == result.members[0]) & (table["side"] == "base")]
    if len(first):
        grids.append(Map("base", _by_head(first), style.GREY))
    for side, into in (("tuned", ""), ("tuned->base", " into base")):
        for member, look in looks.items():
            own = table[(table["member"] == member) & (table["side"] == side)]
            if len(own):
                grids.append(Map(look.label + into, _by_head(own), look.colour))
    return heat_maps(ax, grids, legend="share recovered;\n0: no effect", xlabel="head")


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


def _by_head(table: pd.DataFrame) -> np.ndarray:
    """(layer, head), values of several positions added up."""
    return table.pivot_table("value", "layer", "head", aggfunc="sum").to_numpy(float)


def _tensor(result: Result, member: str, name: str) -> np.ndarray:
    """A member's tensor, whether or not there are others in the Result."""
    found = result.tensors.get(f"{member}/{name}")
    return result.tensors[name] if found is None else found
