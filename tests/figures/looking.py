"""What a test sees in a figure."""

from __future__ import annotations

import re

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
