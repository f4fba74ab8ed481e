"""How does every figure look? Sizes, type, and one colour and marker per member, in one place."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from workbench.errors import WorkbenchError, visible
from workbench.results.result import Result

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
# Okabe & Ito, Color Universal Design (2008); warm, so that no full member looks like a LoRA rank.
FULL = ("#D55E00", "#E69F00", "#CC79A7", "#A0522D")
LORA = (0.72, 0.0)  # the part of viridis that reads on white, low rank light, high rank dark
FULL_MARKERS, LORA_MARKERS = "sXP*", "o^vD<>ph"
DASHES = ((0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # how controls are told apart
NAME = 22  # characters of a member's name that fit a legend
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


class Look(NamedTuple):
    """How one member is drawn; `label` is its name, shortened and safe for matplotlib."""

    colour: str
    marker: str
    label: str


_FAMILY: ContextVar[Mapping[str, Look] | None] = ContextVar("family", default=None)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """`draw` under this style, leaving the caller's rcParams as they were."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return inner


def text(name: str, width: int = NAME) -> str:
    """`name` as matplotlib shows it literally: at most `width` characters, no mathtext."""
    name = visible(name).replace("\n", " ")
    if len(name) > width:
        name = f"{name[: width // 2]}…{name[-(width // 2 - 1) :]}"
    # A leading underscore would hide the entry from the legend.
    return (" " + name if name.startswith("_") else name).replace("$", r"\$")


def assign(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Look]:
    """One Look per member: LoRA by rank (then step) from light to dark, full ones in warm colours.

    members: as in Provenance.members. Members of unknown kind count as full.
    """
    order = {name: place for place, name in enumerate(members)}
    lora = [name for name, about in members.items() if about.get("kind") == "lora"]
    lora.sort(key=lambda n: (members[n].get("rank") or 0, members[n].get("step") or 0, order[n]))
    full = [name for name in members if name not in lora]
    ramp = mpl.colormaps[MAP](np.linspace(*LORA, len(lora)) if len(lora) > 1 else [0.5])
    looks = {
        name: Look(to_hex(ramp[i]), LORA_MARKERS[i % len(LORA_MARKERS)], text(name))
        for i, name in enumerate(lora)
    }
    for i, name in enumerate(full):
        looks[name] = Look(FULL[i % len(FULL)], FULL_MARKERS[i % len(FULL_MARKERS)], text(name))
    return looks


@contextlib.contextmanager
def family(members: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Inside the block these members look the same in every figure, whichever of them it shows."""
    token = _FAMILY.set(assign(members))
    try:
        yield
    finally:
        _FAMILY.reset(token)


def looks(result: Result) -> dict[str, Look]:
    """The Look of every member of `result`, in its order."""
    known = _FAMILY.get() or {}
    if not set(result.members) <= set(known):
        known = assign(result.provenance.members)
    return {name: known[name] for name in result.members}


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


def legend(axes: np.ndarray, *, outside: bool) -> None:
    """One legend of everything labelled in `axes`, where it covers no data.

    outside: the figure is ours, so the legend stands above the panels; else below the last row.
    """
    entries: dict[str, Any] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    lowest = axes[-1, 0]
    figure = lowest.get_figure(root=True)
    widest = max(map(len, entries)) * 0.056 + 0.45  # inches at SMALL type
    if outside:
        columns = max(1, min(len(entries), math.floor(figure.get_figwidth() / widest)))
        figure.set_figheight(figure.get_figheight() + 0.16 * math.ceil(len(entries) / columns))
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=columns
        )
        return
    below = lowest.transAxes + ScaledTranslation(0, -34 / 72, figure.dpi_scale_trans)
    lowest.legend(
        list(entries.values()),
        list(entries),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        ncols=2 if len(entries) > 4 else 1,
        borderaxespad=0,
    )


def grid_shape(panel_count: int, columns: int = 4) -> tuple[int, int]:
    """(rows, columns) of a grid for so many panels, at most `columns` wide and few left empty."""
    rows = math.ceil(panel_count / columns)
    return rows, math.ceil(panel_count / rows)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5 within two decades, else powers of ten."""
    near = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def short_components(components: list[str]) -> list[str]:
    """Component names without their module path, where that leaves them distinct."""
    ends = [name.rsplit(".", 1)[-1] for name in components]
    return [text(n, 14) for n in (ends if len(set(ends)) == len(ends) else components)]


def band(here: Axes, x: np.ndarray, rows: pd.DataFrame, look: Look) -> None:
    """One member's values over x, with their 95% intervals as a band."""
    here.fill_between(x, rows["low"], rows["high"], color=look.colour, alpha=0.15, lw=0)
    here.plot(x, rows["value"], color=look.colour, marker=look.marker, ms=3, label=look.label)


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
    """Take away the panels that no member or group fills; the one above then has the ticks."""
    for here in axes.flat[used:]:
        here.set_axis_off()
    columns = axes.shape[1]
    for column in range(columns):
        lowest = [r for r in range(axes.shape[0]) if r * columns + column < used]
        if lowest and lowest[-1] < axes.shape[0] - 1:
            here = axes[lowest[-1], column]
            here.tick_params(labelbottom=True)
            here.set_xlabel(axes[-1, 0].get_xlabel())
