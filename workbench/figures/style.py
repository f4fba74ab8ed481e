"""How does every figure look? Sizes, type, panels and legends, in one place; how a model looks is
in `looks`, and what is drawn in a panel in `marks`."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.transforms import ScaledTranslation

from workbench.errors import WorkbenchError
from workbench.figures.looks import FULL as FULL
from workbench.figures.looks import LORA as LORA
from workbench.figures.looks import NAME as NAME
from workbench.figures.looks import Look, text
from workbench.figures.looks import as_saved as as_saved
from workbench.figures.looks import assign as assign
from workbench.figures.looks import family as family
from workbench.figures.looks import looks as looks
from workbench.figures.looks import saved as saved

COLUMN, WIDE = 3.4, 7.0  # inches: one and two columns of a paper
DPI = 200  # of figures on the page
SCREEN = 144  # dots per inch at which 8 pt type reads well in a notebook
PIXELS = 1.25 * 96  # of CSS per printed inch: 8 pt type reads as 10 pt
SMALL, NORMAL = 7, 8  # points
BLACK = "#222222"
GREY = "#767676"  # base, nulls and controls
PALE = "#ececec"  # cells without a value
MAP = "viridis"
DIVERGING = "RdBu_r"  # centred on 0
# Of curves that are no models, tasks and components: Okabe & Ito.
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK)
DASHES = ((0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # how controls are distinguished
RC: Any = {  # matplotlib types the keys of an rc mapping as literals
    "font.size": SMALL,
    "axes.labelsize": NORMAL,
    "axes.titlesize": NORMAL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "image.cmap": MAP,
    "pdf.fonttype": 42,  # text stays text
}
P = ParamSpec("P")


class Drawn(Figure):
    """A figure that a notebook shows by itself; pyplot, which does that for its own, knows none of
    ours."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=DPI)
        width, height = (round(PIXELS * inches) for inches in self.get_size_inches())
        return image.getvalue(), {"width": width, "height": height}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """`draw` under this style, leaving the caller's rcParams as they were."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return inner


def panels(
    ax: Axes | None,
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = COLUMN,
    height: float = 2.6,
    share: tuple[Any, Any] = (False, False),
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes: a new one, or the place where `ax` stands.

    width, height: inches, of a new figure. share: sharex, sharey as in plt.subplots.
    Several panels divide the place of `ax`, so `ax` must come from plt.subplots or a GridSpec;
    raises WorkbenchError where it does not.
    """
    sharex, sharey = share
    if ax is None:
        figure = Drawn(figsize=(width, height), layout="constrained", dpi=SCREEN)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        for one in axes.flat:
            # Ticks are made lazily, after the rc context has gone.
            one.tick_params(labelsize=SMALL, width=0.6, length=2.5, pad=2)
        return figure, axes
    if rows * columns == 1:
        ax.spines[["top", "right"]].set_visible(False)
        return cast(Figure, ax.get_figure(root=True)), np.array([[ax]])
    place = ax.get_subplotspec()
    if place is None:
        raise WorkbenchError(
            "A figure of several panels divides the axes it is given, and these were placed by "
            "hand; pass axes made by plt.subplots, or no ax."
        )
    ax.set_axis_off()
    grid = place.subgridspec(rows, columns)
    return cast(Figure, ax.get_figure(root=True)), grid.subplots(
        squeeze=False, sharex=sharex, sharey=sharey
    )


def name(here: Axes, look: Look, more: str = "", **where: Any) -> None:
    """A model's name above its panel, in a shade of its colour that reads on white."""
    shown, size = fitted(here, look.label + more, where.pop("fontsize", NORMAL))
    here.set_title(shown, loc="left", color=ink(look.colour), fontsize=size, **where)


def inches(here: Axes) -> tuple[float, float]:
    """About how wide and high a panel of its own grid will be, before it is laid out."""
    place, figure = here.get_subplotspec(), here.get_figure(root=False)
    assert figure is not None
    whole = figure.bbox.transformed(here.get_figure(root=True).dpi_scale_trans.inverted())  # pyright: ignore
    rows, columns = place.get_gridspec().get_geometry() if place else (1, 1)
    return (0.66 if columns > 1 else 0.8) * whole.width / columns, 0.62 * whole.height / rows


def fitted(here: Axes, title: str, size: float) -> tuple[str, float]:
    """A title and the size of type at which it is no wider than its panel: what stands in brackets
    or behind a colon on a line of its own, and smaller type, if it must."""
    room = 72 * inches(here)[0] / 0.58
    if max(map(len, title.split("\n"))) * size > room:
        title = title.replace(" (", "\n(") if " (" in title else title.replace(": ", ":\n")
    return title, min(size, max(4.5, room / max(map(len, title.split("\n")))))


def ink(colour: str) -> str:
    """`colour`, darkened until text in it has a contrast of 4.5 to white (WCAG 2.1, 1.4.3)."""
    rgb = np.array(to_rgb(colour))
    while 1.05 / (_luminance(rgb) + 0.05) < 4.5:
        rgb = rgb * 0.95
    return to_hex(tuple(map(float, rgb)))  # pyright: ignore[reportArgumentType]


def on(colour: Any) -> str:
    """Black or white, whichever reads better on `colour`."""
    return "white" if _luminance(np.array(to_rgb(colour))) < 0.18 else BLACK


def _luminance(rgb: np.ndarray) -> float:
    """Relative luminance of sRGB values (WCAG 2.1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def legend(axes: np.ndarray, *, outside: bool) -> None:
    """One legend of everything labelled in `axes`, where it covers no data.

    outside: the figure is ours, so the legend stands above the panels; else below the last row. A
    label that panels draw in several models' colours shows the first three of them.
    """
    entries: dict[str, dict[str, Any]] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, {}).setdefault(_colour(handle), handle)
    if not entries:
        return
    labels = list(entries)
    handles = [
        tuple([*own.values()][:3]) if len(own) > 1 else next(iter(own.values()))
        for own in entries.values()
    ]
    lowest = axes[-1, 0]
    figure = lowest.get_figure(root=True)
    several = {tuple: HandlerTuple(ndivide=None, pad=0.4)}
    if outside:
        # In columns as wide as their own labels, as many as fit; inches at SMALL type.
        columns = 1
        for count in range(2, len(labels) + 1):
            if sum(_widths(labels, count)) < figure.get_figwidth() - 0.1:
                columns = count
        rows = math.ceil(len(labels) / columns)
        figure.set_figheight(figure.get_figheight() + 0.16 * rows)
        figure.legend(
            handles, labels, loc="outside upper center", ncols=columns, handler_map=several
        )
        return
    below = lowest.transAxes + ScaledTranslation(0, -34 / 72, figure.dpi_scale_trans)
    lowest.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        ncols=2 if len(labels) > 4 else 1,
        borderaxespad=0,
        handler_map=several,
    )


def _widths(labels: list[str], count: int) -> list[float]:
    """Inches of each of `count` columns of a legend, which matplotlib fills one after the other."""
    few, larger = divmod(len(labels), count)
    found, start = [], 0
    for column in range(count):
        size = few + (column < larger)
        longest = max(len(one.replace("\\", "")) for one in labels[start : start + size])
        found.append(longest * 0.056 + 0.45)  # at SMALL type, with the handle
        start += size
    return found


def _colour(handle: Any) -> str:
    """The colour that a legend's handle is drawn in."""
    if hasattr(handle, "patches"):  # of bars
        return to_hex(handle.patches[0].get_facecolor())
    line = handle.lines[0] if hasattr(handle, "lines") else handle  # of error bars
    line = handle.get_children()[0] if line is None else line
    found = line.get_color() if hasattr(line, "get_color") else line.get_facecolor()
    rgb: Any = found if isinstance(found, str) else tuple(np.ravel(found)[:3])
    return to_hex(rgb) if len(rgb) else ""


def grid_shape(panel_count: int, columns: int = 4) -> tuple[int, int]:
    """(rows, columns) of a grid for so many panels, at most `columns` wide and few left empty."""
    rows = math.ceil(panel_count / columns)
    return rows, math.ceil(panel_count / rows)


def short_components(components: list[str]) -> list[str]:
    """Component names without their module path, where that leaves them distinct."""
    ends = [name.rsplit(".", 1)[-1] for name in components]
    return [text(n, 14) for n in (ends if len(set(ends)) == len(ends) else components)]


def colour_bar(image: Any, axes: Axes | list[Axes], label: str) -> None:
    """The scale of a map beside its panels."""
    figure = image.axes.get_figure(root=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=18, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def first_column(axes: np.ndarray, label: str) -> None:
    """One label on the left of every row."""
    for here in axes[:, 0]:
        here.set_ylabel(label)


def blank(axes: np.ndarray, used: int) -> None:
    """Take away the panels that no model or group fills; the one above then has the ticks."""
    for here in axes.flat[used:]:
        here.set_axis_off()
    columns = axes.shape[1]
    for column in range(columns):
        lowest = [r for r in range(axes.shape[0]) if r * columns + column < used]
        if lowest and lowest[-1] < axes.shape[0] - 1:
            here = axes[lowest[-1], column]
            here.tick_params(labelbottom=True)
            here.set_xlabel(axes[-1, 0].get_xlabel())
