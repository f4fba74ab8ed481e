"""Maps over layers: a panel for the base and one per fine-tuned model, or one per model and
direction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.heat_maps import Map, heat_maps
from workbench.results.result import Result

Panel = tuple[str, pd.DataFrame]


def layer_maps(
    ax: Axes | None,
    panels: Sequence[Panel],
    across: str,
    keys: Sequence[Any],
    labels: Sequence[str],
    xlabel: str,
    legend: str,
    columns: int = 4,
    *,
    looks: Mapping[str, style.Look] | None = None,
    counted: str = "prompts",
    high: float | None = None,
) -> Figure:
    """Heat maps of the patches, layer by `across`; beside each name what a random place gives.

    looks: of the models that the panels' names begin with. counted: what n of the rows counts.
    high: see `heat_maps`.
    """
    shown = [part[part["arm"] == "patch"] for _, part in panels]
    layers = range(int(max(part["layer"].max() for part in shown if len(part))) + 1)
    made = []
    for (name, part), own in zip(panels, shown, strict=True):
        grid = own.pivot_table("value", "layer", across, sort=False)
        grid = grid.reindex(index=list(layers), columns=list(keys)).to_numpy(float)
        random = part[part["arm"] == "random"]["value"]
        note = f" (random: {random.mean():.2f})" if len(random) else ""
        title = "\n".join(style.text(line, 60) for line in name.split("\n"))
        look = (looks or {}).get(re.split(r"\n|: ", name)[0])
        made.append(Map(title + note, grid, look.colour if look else style.BLACK))
    counts = [part["n"] for part in shown if "n" in part]
    return heat_maps(
        ax, made, legend=legend, xlabel=xlabel, labels=list(labels), columns=columns,
        counts=(pd.concat(counts) if counts else (), counted), high=high,
    )  # fmt: skip


def by_side(result: Result, table: pd.DataFrame) -> list[Panel]:
    """The base once, as the first model's pair has it, and every fine-tuned model."""
    first = result.members[0]
    found = [("base", table[(table["member"] == first) & (table["side"] == "base")])]
    found += [
        (m, table[(table["member"] == m) & (table["side"] == "tuned")]) for m in result.members
    ]
    return [(name, part) for name, part in found if len(part)]


def by_direction(result: Result, table: pd.DataFrame, several: bool) -> list[Panel]:
    """A panel per model and direction that the table holds, named by both where there are several
    directions."""
    return [
        (f"{member}: {arrow(direction)}" if several else member, part)
        for member in result.members
        for direction in dict.fromkeys(table["direction"])
        if len(part := table[(table["member"] == member) & (table["direction"] == direction)])
    ]


def arrow(direction: str) -> str:
    return direction.replace("->", " → ")


def by_head(table: pd.DataFrame) -> np.ndarray:
    """(layer, head), values of several positions added up."""
    return table.pivot_table("value", "layer", "head", aggfunc="sum").to_numpy(float)
