"""What a test sees in a figure."""

from __future__ import annotations

import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench import figures
from workbench.figures import style
from workbench.results.result import Result

# What says "control" in a figure: a legend entry, a panel title, or the colour bar's label.
CONTROL = re.compile(r"random|base\b|neighbour|shrunk|chance|null")


def words(figure: Figure) -> str:
    """Everything written in a figure."""
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def check(name: str, figure: Figure) -> None:
    for ax in figure.axes:
        if not ax.axison or not ax.has_data():
            continue
        if ax.get_label() == "<colorbar>":
            assert ax.get_xlabel() or ax.get_ylabel(), name
            continue
        lowest = ax.get_subplotspec() is None or ax.get_subplotspec().is_last_row()
        first = ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col()
        assert ax.get_xlabel() or not lowest, name
        assert ax.get_ylabel() or not first, name
    assert CONTROL.search(words(figure)), f"{name} has no control"


def inside(name: str, figure: Figure, *, below: bool = True) -> None:
    """Nothing of a figure that was laid out is cut off; below: nor at its lower edge."""
    tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert tight.x0 >= -1, name
    assert tight.y0 >= -1 or not below, name
    assert tight.x1 <= figure.bbox.x1 + 1, name
    assert tight.y1 <= figure.bbox.y1 + 1, name


def apart(name: str, figure: Figure) -> None:
    """No text of a figure that was laid out lies on another one, or is cut off."""
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    corners = [(text, outline(text, renderer)) for text in written(figure)]
    for number, (text, mine) in enumerate(corners):
        assert mine[:, 0].min() >= -1, (name, text.get_text())
        assert mine[:, 1].min() >= -1, (name, text.get_text())
        assert mine[:, 0].max() <= figure.bbox.x1 + 1, (name, text.get_text())
        assert mine[:, 1].max() <= figure.bbox.y1 + 1, (name, text.get_text())
        for other, theirs in corners[number + 1 :]:
            near = (mine.max(0) > theirs.min(0)).all() and (theirs.max(0) > mine.min(0)).all()
            assert not (near and overlap(mine, theirs)), (name, text.get_text(), other.get_text())


def written(figure: Figure) -> list[mpl.text.Text]:
    """Every text that a figure shows; of tick labels those of the ticks that are drawn."""
    unseen: set[mpl.text.Text] = set()
    for ax in figure.axes:
        own = set(ax.findobj(mpl.text.Text))
        labels = set()
        for axis in (ax.xaxis, ax.yaxis):
            mine = set(axis.findobj(mpl.text.Text))
            labels |= mine
            if ax.axison and ax.get_visible():
                ticks = axis._update_ticks()  # type: ignore[attr-defined]
                seen = {one for tick in ticks for one in (tick.label1, tick.label2)}
                labels -= seen | {axis.label, axis.offsetText}
        unseen |= labels if ax.get_visible() else own
    return [
        text for text in figure.findobj(mpl.text.Text)
        if text not in unseen and text.get_visible() and text.get_text().strip()
    ]  # fmt: skip


def outline(text: mpl.text.Text, renderer: mpl.backend_bases.RendererBase) -> np.ndarray:
    """(4, 2) corners in pixels of the box around a text, turned as it is."""
    angle = text.get_rotation()
    text.set_rotation(0)
    box = text.get_window_extent(renderer)
    text.set_rotation(angle)
    turned = text.get_window_extent(renderer)
    if angle % 90 == 0:
        return turned.corners()[[0, 1, 3, 2]]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (box.width / 2, box.height / 2)
    centre = (turned.x0 + turned.x1) / 2, (turned.y0 + turned.y1) / 2
    return half @ np.array([[c, s], [-s, c]]) + centre


def overlap(first: np.ndarray, second: np.ndarray, slack: float = 1.5) -> bool:
    """Whether two convex outlines share more than `slack` pixels in every direction: on no line
    through an edge's normal are their shadows apart (separating axes)."""
    for shape in (first, second):
        for edge in np.roll(shape, -1, 0) - shape:
            normal = np.array([-edge[1], edge[0]]) / max(np.hypot(*edge), 1e-9)
            mine, theirs = first @ normal, second @ normal
            if min(mine.max(), theirs.max()) - max(mine.min(), theirs.min()) < slack:
                return False
    return True


def of_handle(handle: Any) -> Any:
    """The colour of a legend's entry."""
    if hasattr(handle, "get_markeredgecolor") and handle.get_linestyle() == "None":
        return handle.get_markeredgecolor()
    colour = handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
    return colour if isinstance(colour, str) else np.ravel(colour)[:3]


def lines(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What every labelled line of a panel shows."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in ax.lines
    }


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def heights(ax: Axes) -> set[float]:
    """Where the grey lines of the two models run."""
    grey = [line for line in ax.lines if line.get_color() == style.GREY]
    return {round(float(y[0]), 6) for y in (line.get_ydata() for line in grey) if len(y) == 2}


def known(folder: str, *without: str) -> set[tuple[str, str]]:
    """(analysis, figure) of every figure of the analyses of a folder."""
    return {
        (drawing.analysis, drawing.name)
        for drawing in figures.CATALOGUE
        if drawing.analysis.split(".")[0] == folder and drawing.analysis not in without
    }


def of_key(results: list[Result], key: str) -> Result:
    """The one Result of an analysis."""
    (found,) = [one for one in results if one.analysis == key]
    return found
