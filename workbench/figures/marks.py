"""What is drawn in a panel: values with their intervals, controls, ticks, and how many items the
numbers are of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from workbench.figures import style
from workbench.figures.looks import Look

FEW = 8  # values of x below which intervals are bars: a band would claim what lies between them
GAP = 2.5  # times the median step: across a wider one no band is drawn
MOST = 32  # layers, each with a tick of its own
LOG = "(log scale)"


def intervals(
    here: Axes,
    x: Any,
    low: Any,
    high: Any,
    colour: str,
    *,
    value: Any = None,
    layers: bool = False,
    place: tuple[int, int] = (0, 1),
) -> None:
    """95% intervals over x: a band where x is measured densely, else an error bar at every x.

    A band ends at a step much wider than the others, since nothing was measured between. layers: x
    are neighbouring layers, between which there is nothing to measure, so that a band always fits,
    but for a single one.
    value: of error bars, to which an interval that misses it (of a value that is no mean) is drawn.
    place: the how-manieth of how many curves with the same x; their bars stand side by side.
    """
    x, low, high = (np.asarray(one, dtype=float) for one in (x, low, high))
    whole = np.isfinite(low) & np.isfinite(high) & np.isfinite(x)
    if not whole.any():
        return
    if (layers and len(np.unique(x)) > 1) or len(np.unique(x)) >= FEW:
        for part in _parts(x, layers or here.get_xscale() != "linear"):
            here.fill_between(x[part], low[part], high[part], color=colour, alpha=0.15, lw=0)
        return
    if value is not None:
        value = np.asarray(value, dtype=float)
        low, high = np.fmin(low, value), np.fmax(high, value)
    number, count = place
    shift = (number - (count - 1) / 2) * 0.012
    if here.get_xscale() == "log":
        span = math.log(max(x.max() / x.min(), 2))
        at = x * np.exp(shift * span)
    else:
        at = x + shift * ((x.max() - x.min()) or 1)
    here.vlines(at[whole], low[whole], high[whole], color=colour, lw=0.9, alpha=0.75)


def _parts(x: np.ndarray, whole: bool) -> list[slice]:
    """Runs of x, sorted, without a wide gap inside."""
    steps = np.diff(x)
    if whole or not len(steps):
        return [slice(None)]
    ends = np.flatnonzero(steps > GAP * np.median(steps)) + 1
    return [slice(a, b) for a, b in pairwise([0, *ends, len(x)]) if b - a > 1]


def curve(
    here: Axes, x: np.ndarray, rows: pd.DataFrame, look: Look, *, layers: bool = False,
    place: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    """One model's values over x with their 95% intervals."""
    intervals(here, x, rows["low"], rows["high"], look.colour, value=rows["value"], layers=layers,
              place=place)  # fmt: skip
    size = 3 if len(x) <= 16 else 1.8
    here.plot(x, rows["value"], color=look.colour, marker=look.marker, ms=size, label=look.label)


def control(
    here: Axes, x: Any, y: Any, dashes: Any, label: str | None, *, marker: str = "o", **more: Any
) -> None:
    """A control's curve: grey, broken and hollow, above the values, so that both show where they
    coincide."""
    drawn = {"color": style.GREY, "ls": dashes, "lw": 1.0, "mfc": "white", "mew": 0.8, "ms": 2.8}
    here.plot(x, y, marker=marker, label=label, zorder=5, **(drawn | more))


def framed(here: Axes, column: float, row: float) -> None:
    """A frame around a cell of a matrix: its value is one for certain."""
    box = Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, fill=False)
    box.set(edgecolor=style.BLACK, linewidth=1.2)
    here.add_patch(box)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5 within two decades, else powers of ten."""
    near = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def layer_ticks(
    here: Axes,
    layers: Iterable[float],
    *,
    across: bool = True,
    named: Callable[[int], str] = str,
    at: Sequence[float] | None = None,
) -> None:
    """A tick for every layer, up to MOST of them; labels as many as have room.

    across: on the x axis, else on y. named: what a layer is called. at: where the ticks stand, the
    layers themselves where None.
    """
    shown = sorted({int(layer) for layer in layers})
    places = np.asarray(shown if at is None else at, dtype=float)
    width, height = style.inches(here)
    points = 72 * (width if across else height) / max(len(shown), 1)
    size = style.SMALL if points >= (12 if across else 9) else 5

    def needed(layers: list[int]) -> int:
        widest = max((len(named(layer)) for layer in layers), default=1)
        room = size * (0.62 * widest + 0.5) if across else size * 1.15
        return max(1, math.ceil(room / points))

    # The first one's longer name has room where all have a label, not where only some do.
    every = needed(shown[1:])
    every = every if every == 1 else needed(shown)
    if len(shown) > MOST:
        shown, places, every = shown[::every], places[::every], 1
    axis = here.xaxis if across else here.yaxis
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_ticklabels([named(one) if i % every == 0 else "" for i, one in enumerate(shown)])
    axis.set_tick_params(labelsize=size)


def layer_name(layer: int) -> str:
    """A layer on an axis: the embedding, which is before the first one, by its name."""
    return "emb" if layer < 0 else str(layer)


def counted(axes: np.ndarray, counts: Any, what: str, *, outside: bool) -> None:
    """How many items the numbers are of, e.g. "n = 200 prompts", where they differ the range.

    counts: of one kind of item, or of several kinds a list of (counts, what). outside: the figure
    is ours, and it stands in its lower right corner; else below the first label of the last row.
    """
    several = isinstance(counts, list) and isinstance(next(iter(counts), None), tuple)
    pairs: list[tuple[Any, str]] = counts if several else [(counts, what)]
    said = ", ".join(one for one in (number(*pair) for pair in pairs) if one)
    if not said:
        return
    if outside:
        figure = axes.flat[0].get_figure(root=True)
        figure.set_figheight(figure.get_figheight() + 0.16)
        figure.supxlabel(said, x=0.995, ha="right", fontsize=6, color=style.GREY)
        return
    lowest = axes[-1, 0]
    lowest.set_xlabel(f"{lowest.get_xlabel()}\n({said})".strip())


def number(counts: Any, what: str) -> str:
    """ "n = 200 prompts", "n = 20 to 200 prompts"; "" where nothing was counted."""
    values = pd.to_numeric(pd.Series(np.ravel(counts)), errors="coerce").dropna()
    if values.empty:
        return ""
    few, most = int(values.min()), int(values.max())
    several = str(few) if few == most else f"{few} to {most}"
    return f"n = {several} {what}"
