"""Heat maps over layers on one colour scale, side by side, and numbers in the cells of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from workbench.figures import style

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
) -> Figure:
    """Layers upwards, a panel per map.

    high: the scale's end, from 0; None for a diverging scale centred on 0. labels: of the columns,
    their numbers where there are none. columns: panels in a row at most.
    """
    count = maps[0].grid.shape[1]
    wide = count > 16
    rows, columns = style.grid_shape(len(maps), 1 if wide else min(columns, len(maps)))
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 and not wide else style.WIDE,
        height=(1.15 if wide else 1.5) * rows + 0.7,
        share=(True, True),
    )
    finite = np.concatenate([one.grid[np.isfinite(one.grid)] for one in maps])
    most = float(np.abs(finite).max()) if finite.size and finite.any() else 1.0
    limits = (-most, most, style.DIVERGING) if high is None else (0.0, high, style.MAP)
    labels = labels or [str(i) for i in range(count)]
    turned = max(map(len, labels)) > TURNED
    image: AxesImage | None = None
    for here, one in zip(axes.flat, maps, strict=False):
        here.set_facecolor(style.PALE)
        image = here.imshow(
            *(one.grid, limits[2]), origin="lower", aspect="auto", vmin=limits[0], vmax=limits[1]
        )
        here.set_xticks(range(count), labels, rotation=60 if turned else 0,
                        ha="right" if turned else "center", rotation_mode="anchor")  # fmt: skip
        here.tick_params(axis="x", labelsize=6 if count > 12 else style.SMALL)
        here.yaxis.get_major_locator().set_params(integer=True)
        here.set_title(one.title, loc="left", fontsize=style.SMALL, color=one.colour)
        here.spines[:].set_visible(False)
    style.first_column(axes, "layer")
    for here in axes[-1]:
        here.set_xlabel(xlabel)
    style.blank(axes, len(maps))
    assert image is not None
    style.colour_bar(image, list(axes.flat), legend)
    return figure


def annotate(here: Axes, grid: np.ndarray, form: str) -> None:
    """Every cell's number, readable on its colour."""
    for (row, column), value in np.ndenumerate(grid):
        if pd.notna(value):
            here.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=6,
                      color="white" if value < 0.6 else style.BLACK)  # fmt: skip
