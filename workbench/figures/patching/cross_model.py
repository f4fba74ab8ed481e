"""What does one model recover with the other's activations, by layer, by head and by group?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.patching.layer_maps import arrow, by_direction
from workbench.figures.patching.recovered import (
    HEADED,
    has_heads,
    has_layers,
    layer_head,
    metric_of,
    strongest_patch,
)
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "patching.cross_model"
HEADING = "One model with the other's activations"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe & Ito
NAMES = {
    "resid_pre": "stream before the layer", "resid_post": "stream after the layer",
    "resid_mid": "stream between", "attn_out": "attention", "mlp_out": "MLP", "z": "head (z)",
    "mlp_hidden": "MLP neurons", "mlp_hidden+attn_out": "neurons and attention",
    "layer": "parameters of the layer", "mlp.down_proj": "parameters: down_proj",
}  # fmt: skip
CONTROL = "another prompt's"


@style.styled
def by_layer(result: Result, restored: Result | None = None, ax: Axes | None = None) -> Figure:
    """Recovered share, or KRS where the answers are the base's own, against the layer: a curve per
    component, with its 95% interval; black: restored parameters; a panel per model and direction.

    Crosses: the strongest patches with another prompt's activations, at the edge where they lie
    beyond it. Dashed grey: what a random layer of the first component recovers.
    """
    unlearning = result.provenance.parameters.get("answer") == "base"
    metric = "krs" if unlearning else metric_of(result)
    own = _whole_layers(result, metric)
    several = own["direction"].nunique() > 1
    panels = by_direction(result, own, several)
    rows, columns = style.grid_shape(len(panels), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.6,
        share=(True, True),
    )
    low, high = _range([own for _, own in panels])
    looks, layers = style.looks(result), own["layer"].dropna().unique()
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
            own = dict(by_direction(restored, also, several)).get(name)
            if own is not None:
                kept = own[own["arm"] == "patch"]
                label = NAMES.get(str(kept["component"].iloc[0]), "restored parameters")
                _curve(here, kept, "k", label)
        for level in (0, 1):
            here.axhline(level, color=style.GREY, lw=0.5, zorder=0)
        look = looks.get(name.split(": ")[0])
        here.set_title(style.text(name, 34), loc="left",
                       color=style.ink(look.colour if look else style.BLACK))  # fmt: skip
        marks.layer_ticks(here, layers)
    scale = "KRS" if unlearning else "recovered"
    for here in axes[:, 0]:
        here.set_ylabel(f"{scale}\n(0: destination, 1: source)")
    for here in axes[-1]:
        window = result.provenance.parameters.get("window", 1)
        here.set_xlabel("layer" + (f" (middle of {window})" if window > 1 else " (0 = first)"))
    style.blank(axes, len(panels))
    style.legend(axes, outside=ax is None)
    counts = pd.concat([own[own["arm"] == "patch"]["n"] for _, own in panels])
    marks.counted(axes, counts, "prompts", outside=ax is None)
    return figure


def _whole_layers(result: Result, metric: str) -> pd.DataFrame:
    """Rows of patches of whole layers on all tokens (or wherever they were), and their controls."""
    own = result.metric(metric)
    heads = own["head"].notna() if "head" in own else False
    own = own[~heads & own["component"].notna() & (own["component"] != "group")]
    alone = ~own["component"].isin(HEADED) & (own["layer"].notna() | (own["arm"] == "random"))
    return own[alone].sort_values("layer", kind="stable")


def _curve(here: Axes, rows: pd.DataFrame, colour: str, label: str | None) -> None:
    x = rows["layer"].to_numpy(float)
    marks.intervals(here, x, rows["low"], rows["high"], colour, value=rows["value"], layers=True)
    here.plot(x, rows["value"], color=colour, marker=".", ms=3, label=label)


def _range(tables: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Limits that show 0, 1 and every patch, not what controls and wide intervals reach."""
    values = pd.concat([own[own["arm"] == "patch"]["value"] for own in tables]).clip(-2, 3)
    return min(-0.3, values.min() - 0.1), max(1.3, values.max() + 0.1)


@style.styled
def by_group(result: Result, ax: Axes | None = None) -> Figure:
    """Recovered share of every group of heads, a mark per model with its 95% interval; grey: random
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
                # The control stands beside its model, not behind it.
                beside = 0.22 * step * (1 if arm == "random" else -1)
                x = np.arange(len(groups)) - 0.4 + step * (number + 0.5) + beside
                colour = style.GREY if arm == "random" else look.colour
                label = "random heads" if arm == "random" else look.label
                _dots(here, x, found, colour, "_" if arm == "random" else look.marker, label)
        here.set_xticks(range(len(groups)), [style.text(g) for g in groups], rotation=25,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_title(arrow(name), loc="left")
        for level in (0, 1):
            here.axhline(level, color=style.GREY, lw=0.5, zorder=0)
        here.set_xlabel("group of heads")
    what = metric_of(result).removeprefix("recovered:").replace("_", " ")
    axes[0, 0].set_ylabel(f"recovered {what}\n(0: destination, 1: source)")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, own.loc[own["arm"] == "patch", "n"], "prompts", outside=ax is None)
    return figure


def _dots(
    here: Axes, x: np.ndarray, rows: pd.DataFrame, colour: str, marker: str, label: str
) -> None:
    value = rows["value"].to_numpy(float)
    spread = np.abs(np.stack([value - rows["low"], rows["high"] - value]).astype(float))
    here.errorbar(x, value, yerr=spread, fmt=marker, color=colour, capsize=2, lw=1, ms=4,
                  label=label)  # fmt: skip


def _grouped(result: Result) -> bool:
    return bool((result.table["component"] == "group").any())


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "Patching one model into the other, layer by layer",
        by_layer,
        "The curves show the share of what separates the two models on the same prompts that is "
        "recovered when one model runs with the other's activations at a layer (coloured) or with "
        "its parameters (black). Bands are 95% intervals over prompts. The dashed grey line is the "
        "mean over layers of the first curve, which a layer picked at random gives. KRS is the "
        "same by squared error on the logits of the base's own answer. A patch of a run's own "
        "activations changes nothing, to the last bit.",
        "After the place of a change every stream recovers all of it, whether anything was changed "
        "there or not, so only the parameters localise the change. The crosses show another "
        "prompt's activations (at the edge if they lie beyond it). If they recover as much, the "
        "patch carries what all prompts share and not this answer: compare agreement and score.",
        companion="patching.restore",
        alone=True,
        applies=lambda result, *others: has_layers(result),
    ),
    Drawing(
        KEY,
        "heads",
        "Patching one model's heads into the other",
        layer_head,
        "Each cell is the share of the gap between the two models that a head alone recovers (red) "
        "or widens (blue). Next to each fine-tuned model is the mean over its heads, which is what "
        "a random head gives.",
        "Heads that work together recover little alone. If the two models hardly differ on these "
        "prompts, every share is noise, and the notes of the result state it.",
        applies=lambda result, *others: has_heads(result) and not _grouped(result),
    ),
    Drawing(
        KEY,
        "groups",
        "Patching the circuit's groups across the pair",
        by_group,
        "The marks show the share of the gap between base and fine-tuned model that each group of "
        "heads of the base's circuit recovers at its own position, with 95% intervals over "
        "prompts. Grey shows random groups of as many heads at the same position.",
        "The circuit was found on other prompts of the same kind. A group may recover a gain that "
        "arises elsewhere and only passes through it.",
        applies=lambda result, *others: _grouped(result),
    ),
)


def sentence(result: Result) -> Findings:
    """The strongest patch of each component, beside a random one."""
    return strongest_patch(result)
