"""Where does the behaviour live: heat maps and curves over layers, circuits side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.maps import Map, heat_maps
from workbench.results.result import Result

ACTIVATION, CROSS, RESTORE = "patching.activation", "patching.cross_model", "patching.restore"
CIRCUIT, MASK, PATH = "patching.circuit", "patching.mask", "patching.path"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe & Ito
HEADED = ("z", "head", "q", "k", "v", "pattern")
NAMES = {
    "resid_pre": "stream before the layer", "resid_post": "stream after the layer",
    "resid_mid": "stream between", "attn_out": "attention", "mlp_out": "MLP", "z": "head (z)",
    "mlp_hidden": "MLP neurons", "mlp_hidden+attn_out": "neurons and attention",
    "layer": "parameters of the layer", "mlp.down_proj": "parameters: down_proj",
}  # fmt: skip
RECOVERED = "recovered:logit_difference", "recovered:log_probability"
CONTROL = "another prompt's"
TOKENS = 40  # of a prompt's end that fit two columns
Panel = tuple[str, pd.DataFrame]


def headed(result: Result) -> bool:
    """Whether single heads were patched."""
    return bool(result.table["head"].notna().any())


def streams(result: Result) -> bool:
    """Whether whole layers were patched."""
    table = result.table[result.table["arm"] == "patch"]
    return bool((table["layer"].notna() & table["head"].isna() & table["neuron"].isna()).any())


def few_units(result: Result) -> bool:
    """Whether a mask covers heads or whole MLPs, and not thousands of neurons."""
    return "neuron" not in result.table or not result.table["neuron"].notna().any()


def metric_of(result: Result) -> str:
    """The recovered logit difference; without foils the log-probability."""
    return next((m for m in RECOVERED if result.has(m)), RECOVERED[1])


@style.styled
def layer_position(result: Result, ax: Axes | None = None, *, component: str = "") -> Figure:
    """Recovered share of every layer (upwards) and position; a panel for the base, one per member.

    component: which of those patched; the first without heads. Beside each name what a random place
    of the panel recovers.
    """
    own = result.metric(metric_of(result))
    own = own[own["head"].isna() & own["neuron"].isna() & own["component"].notna()]
    component = component or str(own["component"].iloc[0])
    own = own[own["component"] == component]
    positions = list(dict.fromkeys(own[own["arm"] == "patch"]["position"]))[-TOKENS:]
    labels = _labels(result, positions)
    across = "position" if labels[0] == positions[0] else "token of the first prompt"
    return _maps(
        ax, _sides(result, own), "position", positions, labels, across,
        f"recovered, {component}\n(0: corrupt, 1: clean)",
    )  # fmt: skip


@style.styled
def layer_head(result: Result, ax: Axes | None = None, *, position: str = "-1") -> Figure:
    """Recovered share of every head (across) and layer (upwards) at one position.

    position: the last token where it was patched, else the first position there is.
    """
    own = result.metric(metric_of(result))
    own = own[own["component"].isin(HEADED)]
    own = own[own["component"] == own["component"].iloc[0]]
    known = list(dict.fromkeys(own["position"]))
    position = position if position in known else str(known[0])
    own = own[own["position"] == position]
    panels = (
        _sides(result, own)
        if "side" in own
        else _directions(result, own, own["direction"].nunique() > 1)
    )
    where = {"-1": "last token", "all": "all tokens"}.get(position, position)
    scale = "0: corrupt, 1: clean" if "side" in own else "0: destination, 1: source"
    heads = sorted(int(h) for h in own["head"].dropna().unique())
    return _maps(
        ax, panels, "head", heads, [str(h) for h in heads], "head",
        f"recovered, {where}\n({scale})",
    )  # fmt: skip


@style.styled
def by_layer(result: Result, restored: Result | None = None, ax: Axes | None = None) -> Figure:
    """Recovered share, or KRS where the answers are the base's own, against the layer: a curve per
    component, with its 95% interval; black: restored parameters; a panel per member and direction.

    Crosses: the strongest patches with another prompt's activations, at the edge where they lie
    beyond it. Dashed grey: what a random
    layer of the first component recovers.
    """
    unlearning = result.provenance.parameters.get("answer") == "base"
    metric = "krs" if unlearning else metric_of(result)
    own = _whole_layers(result, metric)
    several = own["direction"].nunique() > 1
    panels = _directions(result, own, several)
    rows, columns = style.grid_shape(len(panels), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.6,
        share=(True, True),
    )
    low, high = _range([own for _, own in panels])
    for here, (name, own) in zip(axes.flat, panels, strict=False):
        here.set_ylim(low, high)
        for place, component in enumerate(dict.fromkeys(own["component"])):
            part = own[own["component"] == component]
            colour = COLOURS[place % len(COLOURS)]
            label = NAMES.get(component, component)
            _curve(here, part[part["arm"] == "patch"], colour, label)
            turned = part[part["arm"] == "shuffled"]
            here.plot(turned["layer"], turned["value"].clip(low, high), "x", color=colour, ms=4,
                      clip_on=False, label=CONTROL if place == 0 else None)  # fmt: skip
            random = part[part["arm"] == "random"]["value"]
            if place == 0 and len(random):
                here.axhline(random.iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1,
                             label="a random layer")  # fmt: skip
        if restored is not None and restored.has(metric):
            also = _whole_layers(restored, metric)
            own = dict(_directions(restored, also, several)).get(name)
            if own is not None:
                kept = own[own["arm"] == "patch"]
                label = NAMES.get(str(kept["component"].iloc[0]), "restored parameters")
                _curve(here, kept, "k", label)
        for level in (0, 1):
            here.axhline(level, color=style.GREY, lw=0.5, zorder=0)
        here.set_title(style.text(name, 34), loc="left")
        here.xaxis.get_major_locator().set_params(integer=True)
    scale = "KRS" if unlearning else "recovered"
    for here in axes[:, 0]:
        here.set_ylabel(f"{scale}\n(0: destination, 1: source)")
    for here in axes[-1]:
        window = result.provenance.parameters.get("window", 1)
        here.set_xlabel("layer" + (f" (middle of {window})" if window > 1 else " (0 = first)"))
    style.blank(axes, len(panels))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def by_group(result: Result, ax: Axes | None = None) -> Figure:
    """Recovered share of every group of heads, a bar per member with its 95% interval; grey: random
    groups of as many heads, their middle 95%."""
    own = result.metric(metric_of(result))
    own = own[own["component"] == "group"]
    groups = list(dict.fromkeys(own["group"]))
    looks = style.looks(result)
    panels = [(d, own[own["direction"] == d]) for d in dict.fromkeys(own["direction"])]
    figure, axes = style.panels(
        *(ax, 1, len(panels)), width=style.WIDE if len(panels) > 1 or len(looks) > 3 else
        style.COLUMN, height=2.4, share=(False, True),
    )  # fmt: skip
    step = 0.8 / len(looks)
    for here, (name, part) in zip(axes.flat, panels, strict=True):
        for number, (member, look) in enumerate(looks.items()):
            rows = part[part["member"] == member]
            for arm in ("random", "patch"):
                found = rows[rows["arm"] == arm].set_index("group").reindex(groups)
                x = np.arange(len(groups)) - 0.4 + step * (number + 0.5)
                colour = style.GREY if arm == "random" else look.colour
                label = "random heads" if arm == "random" else look.label
                _dots(here, x, found, colour, "_" if arm == "random" else look.marker, label)
        here.set_xticks(range(len(groups)), [style.text(g) for g in groups], rotation=25,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_title(_arrow(name), loc="left")
        for level in (0, 1):
            here.axhline(level, color=style.GREY, lw=0.5, zorder=0)
        here.set_xlabel("group of heads")
    what = metric_of(result).removeprefix("recovered:").replace("_", " ")
    axes[0, 0].set_ylabel(f"recovered {what}\n(0: destination, 1: source)")
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def faithfulness(result: Result, ax: Axes | None = None, *, measure: str = "score") -> Figure:
    """Faithfulness of the base's circuit and of each member's own, in the base and in the member.

    Bars with 95% intervals over prompts; grey: random circuits of as many heads. 1: as good as the
    whole model. The number in a bar is the circuit's size in heads.
    """
    table = result.table
    own = table[table["metric"] == f"faithfulness:{measure}"]
    rows, columns = style.grid_shape(len(result.members))
    figure, axes = style.panels(
        *(ax, rows, columns), width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.6, share=(True, True),
    )  # fmt: skip
    looks = style.looks(result)
    cases = [("base", "base"), ("base", "tuned"), ("tuned", "tuned"), ("tuned", "base")]
    ticks = ["base's\nin base", "base's in\nmember", "member's\nin member", "member's\nin base"]
    for here, member in zip(axes.flat, result.members, strict=False):
        mine = own[own["member"] == member]
        sizes = table[(table["member"] == member) & (table["metric"] == "size")]
        for place, (circuit, side) in enumerate(cases):
            one = mine[(mine["circuit"] == circuit) & (mine["side"] == side)]
            colour = looks[member].colour if circuit == "tuned" else "#56B4E9"
            _bar(here, place - 0.2, one[one["arm"] == "patch"], colour,
                 {"base": "base's circuit", "tuned": "member's circuit"}[circuit])  # fmt: skip
            _bar(here, place + 0.2, one[one["arm"] == "random"], "#bbbbbb", "random, same size")
            size = sizes[(sizes["circuit"] == circuit) & (sizes["side"] == side)]["value"]
            if len(size):
                here.annotate(f"{int(size.iloc[0])}", (place - 0.2, 0.03), ha="center")
        here.axhline(1, color=style.GREY, lw=0.8, ls=style.DASHES[0], label="the whole model")
        here.set_xticks(range(4), ticks)
        here.set_title(looks[member].label, loc="left", color=looks[member].colour)
    for here in axes[:, 0]:
        here.set_ylabel(f"faithfulness ({measure.replace('_', ' ')})")
    for here in axes[-1]:
        here.set_xlabel("circuit, and the model it runs in")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def overlap(result: Result, ax: Axes | None = None) -> Figure:
    """Overlap (Jaccard) of each member's circuit with the base's, whole and group by group; grey:
    the middle 95% of random circuits of the same sizes."""
    own = result.metric("jaccard")
    own = own[own["circuit"] == "base & tuned"].assign(group=own["group"].fillna("whole circuit"))
    groups = list(dict.fromkeys(own["group"]))
    figure, axes = style.panels(ax, 1, 1, width=style.COLUMN, height=2.4)
    here, looks = axes[0, 0], style.looks(result)
    step = 0.7 / len(looks)
    for number, (member, look) in enumerate(looks.items()):
        rows = own[own["member"] == member].set_index("group").reindex(groups)
        x = np.arange(len(groups)) - 0.35 + step * (number + 0.5)
        here.vlines(x, rows["low"], rows["high"], color="#bbbbbb", lw=4,
                    label="random circuits (95%)" if number == 0 else None)  # fmt: skip
        here.plot(x, rows["value"], ls="none", marker=look.marker, color=look.colour,
                  label=look.label)  # fmt: skip
    here.set_xticks(range(len(groups)), [style.text(g) for g in groups], rotation=25, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    here.set(ylim=(-0.05, 1.05), ylabel="heads in common\n(Jaccard index)", xlabel="group of heads")
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def paths(result: Result, ax: Axes | None = None) -> Figure:
    """Change of the logit difference by every head through each group's receivers, layers upwards:
    a row for the base and one per member, a column per group. Blue: the head supports the answer.
    """
    own = result.metric("logit_change")
    own = own[own["arm"] == "patch"]
    groups = list(dict.fromkeys(own["group"]))
    sides = _sides(result, own)
    panels = [
        (f"{name}\n{group}", part[part["group"] == group]) for name, part in sides
        for group in groups
    ]  # fmt: skip
    heads = sorted(int(h) for h in own["head"].unique())
    return _maps(
        ax, panels, "head", heads, [str(h) for h in heads], "sender head",
        "change of logit difference\n(0: none)", columns=len(groups),
    )  # fmt: skip


@style.styled
def masks(result: Result, ax: Axes | None = None) -> Figure:
    """Learned share taken from the source, 1 - m, of every head, layers upwards; a panel for the
    base and one per member. Beside each name the score of the rounded mask and of random ones."""
    own = result.metric("mask").assign(arm="patch")
    unit = "head" if "head" in own else "MLP"
    own = own.assign(value=1 - own["value"])
    if unit == "MLP":
        own = own.assign(MLP=0)
    heads = sorted(int(h) for h in own[unit].unique())
    panels = []
    for name, part in _sides(result, own):
        member = result.members[0] if name == "base" else name
        side = "base" if name == "base" else "tuned"
        scores = result.metric("score")
        scores = scores[(scores["member"] == member) & (scores["side"] == side)]
        told = scores.set_index("arm")["value"]
        score = f"score {told['patch']:.2f} (random {told['random']:.2f})"
        panels.append((f"{name}\n{score}", part))
    return _maps(
        ax, panels, unit, heads, [str(h) for h in heads], unit, "taken from the\nsource, 1 − m"
    )


def _maps(
    ax: Axes | None,
    panels: Sequence[Panel],
    across: str,
    keys: Sequence[Any],
    labels: Sequence[str],
    xlabel: str,
    legend: str,
    columns: int = 4,
) -> Figure:
    """Heat maps of the patches, layer by `across`; beside each name what a random place gives."""
    shown = [part[part["arm"] == "patch"] for _, part in panels]
    layers = range(int(max(part["layer"].max() for part in shown if len(part))) + 1)
    made = []
    for (name, part), own in zip(panels, shown, strict=True):
        grid = own.pivot_table("value", "layer", across, sort=False)
        grid = grid.reindex(index=list(layers), columns=list(keys)).to_numpy(float)
        random = part[part["arm"] == "random"]["value"]
        note = f" (random: {random.mean():.2f})" if len(random) else ""
        title = "\n".join(style.text(line, 60) for line in name.split("\n"))
        made.append(Map(title + note, grid))
    return heat_maps(ax, made, legend=legend, xlabel=xlabel, labels=list(labels), columns=columns)


def _sides(result: Result, table: pd.DataFrame) -> list[Panel]:
    """The base once, as the first member's pair has it, and every member."""
    first = result.members[0]
    found = [("base", table[(table["member"] == first) & (table["side"] == "base")])]
    found += [
        (m, table[(table["member"] == m) & (table["side"] == "tuned")]) for m in result.members
    ]
    return [(name, part) for name, part in found if len(part)]


def _directions(result: Result, table: pd.DataFrame, several: bool) -> list[Panel]:
    """A panel per member and direction that the table holds, named by both where there are several
    directions."""
    return [
        (f"{member}: {_arrow(direction)}" if several else member, part)
        for member in result.members
        for direction in dict.fromkeys(table["direction"])
        if len(part := table[(table["member"] == member) & (table["direction"] == direction)])
    ]


def _whole_layers(result: Result, metric: str) -> pd.DataFrame:
    """Rows of patches of whole layers on all tokens (or wherever they were), and their controls."""
    own = result.metric(metric)
    heads = own["head"].notna() if "head" in own else False
    own = own[~heads & own["component"].notna() & (own["component"] != "group")]
    alone = ~own["component"].isin(HEADED) & (own["layer"].notna() | (own["arm"] == "random"))
    return own[alone].sort_values("layer", kind="stable")


def _curve(here: Axes, rows: pd.DataFrame, colour: str, label: str | None) -> None:
    x = rows["layer"].to_numpy(float)
    here.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
    here.plot(x, rows["value"], color=colour, marker=".", ms=3, label=label)


def _dots(
    here: Axes, x: np.ndarray, rows: pd.DataFrame, colour: str, marker: str, label: str
) -> None:
    value = rows["value"].to_numpy(float)
    spread = np.abs(np.stack([value - rows["low"], rows["high"] - value]).astype(float))
    here.errorbar(x, value, yerr=spread, fmt=marker, color=colour, capsize=2, lw=1, ms=4,
                  label=label)  # fmt: skip


def _bar(here: Axes, x: float, rows: pd.DataFrame, colour: str, label: str) -> None:
    if rows.empty:
        return
    row = rows.iloc[0]
    spread = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
    here.bar(x, row["value"], 0.38, color=colour, label=label)
    here.errorbar(x, row["value"], yerr=spread, fmt="none", color="k", capsize=2, lw=0.8)


def _labels(result: Result, positions: Sequence[str]) -> list[str]:
    """Tokens where all prompts are of one length and each token was patched, else the names."""
    tokens = list(result.provenance.parameters.get("tokens") or [])
    named = {"-1": "last token", "all": "all tokens"}
    found = []
    for position in positions:
        if position.isdigit() and int(position) < len(tokens):
            found.append(style.text(tokens[int(position)].strip() or "·", 10))
        else:
            found.append(named.get(position, position))
    return found


def _range(tables: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Limits that show 0, 1 and every patch, not what controls and wide intervals reach."""
    values = pd.concat([own[own["arm"] == "patch"]["value"] for own in tables]).clip(-2, 3)
    return min(-0.3, values.min() - 0.1), max(1.3, values.max() + 0.1)


def _arrow(direction: str) -> str:
    return direction.replace("->", " → ")
