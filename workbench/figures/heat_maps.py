"""Heat maps over layers on one colour scale, side by side, and numbers in the cells of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from workbench.figures import marks, style

TURNED = 3  # characters from which labels below are turned


class Map(NamedTuple):
    """One panel. grid: (layer, column), NaN where there is nothing."""

    title: str
    grid: np.ndarray
    colour: str = "k"


def heat_maps(
    ax: Axes | None,
    maps: Sequence[Map],
    *,
    legend: str,
    xlabel: str,
    labels: Sequence[str] = (),
    high: float | None = None,
    columns: int = 4,
    layers: Sequence[int] = (),
    counts: tuple[Any, str] = ((), ""),
) -> Figure:
    """Layers upwards, a panel per map.

    high: the scale's end, from 0; None for a diverging scale centred on 0. labels: of the columns,
    their numbers where there are none. columns: panels in a row at most. layers: of the rows, from
    0 where they are not given. counts: the n of the values, and of what, see `marks.counted`.
    """
    count = maps[0].grid.shape[1]
    wide = count > 16
    rows, columns = style.grid_shape(len(maps), 1 if wide else min(columns, len(maps)))
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 and not wide else style.WIDE,
        height=max(1.15 if wide else 1.5, tall(len(maps[0].grid))) * rows + 0.7,
        share=(True, True),
    )
    finite = np.concatenate([one.grid[np.isfinite(one.grid)] for one in maps])
    most = float(np.abs(finite).max()) if finite.size and finite.any() else 1.0
    limits = (-most, most, style.DIVERGING) if high is None else (0.0, high, style.MAP)
    labels = labels or [str(i) for i in range(count)]
    turned = max(map(len, labels)) > TURNED
    image: AxesImage | None = None
    titles = [style.fitted(axes[0, 0], one.title, style.SMALL) for one in maps]
    size = min(own for _, own in titles)
    for here, one, (title, _) in zip(axes.flat, maps, titles, strict=False):
        here.set_facecolor(style.PALE)
        image = here.imshow(
            *(one.grid, limits[2]), origin="lower", aspect="auto", vmin=limits[0], vmax=limits[1]
        )
        here.set_xticks(range(count), labels, rotation=60 if turned else 0,
                        ha="right" if turned else "center", rotation_mode="anchor")  # fmt: skip
        here.tick_params(axis="x", labelsize=6 if count > 12 else style.SMALL)
        layered(here, layers or range(len(one.grid)))
        here.set_title(title, loc="left", fontsize=size, color=style.ink(one.colour))
        here.spines[:].set_visible(False)
    style.first_column(axes, "layer")
    for here in axes[-1]:
        here.set_xlabel(xlabel)
    style.blank(axes, len(maps))
    assert image is not None
    style.colour_bar(image, list(axes.flat), legend)
    marks.counted(axes, *counts, outside=ax is None)
    return figure


def tall(layers: int) -> float:
    """Inches that a panel of so many layers needs for a label at each."""
    return 0.11 * min(layers, marks.MOST) + 0.25


def layered(here: Axes, layers: Sequence[int]) -> None:
    """Rows of a map as layers, upwards; the lowest one is called so where it is outside of them."""
    marks.layer_ticks(here, layers, across=False, at=range(len(layers)),
                      named=lambda layer: "none" if layer < 0 else str(layer))  # fmt: skip


def annotate(here: Axes, image: AxesImage, form: str) -> None:
    """Every cell's number in black or white, whichever reads on its colour; small where the cells
    are."""
    grid = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    small = 5 if grid.shape[1] > 7 or grid.shape[0] > 12 else 6
    for (row, column), value in np.ndenumerate(grid):
        if pd.notna(value):
            colour = style.on(image.cmap(image.norm(value)))
            here.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=small,
                      color=colour)  # fmt: skip
