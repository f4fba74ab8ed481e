"""Do two skills share their parameters?"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "skills.overlap"
HEADING = "Do two skills share their parameters?"
MOST = 8  # grafts whose cells have room for chance, too


@style.styled
def overlap_matrix(result: Result, ax: Axes | None = None) -> Figure:
    """Share of graft j (across) that graft i (up) takes too, over what chance gives, log2; in every
    cell the share and, below, chance for any places, and for random places within each matrix."""
    table = result.metric("overlap").set_index(["first", "second"])
    within = result.metric("within").set_index(["first", "second"])["value"]
    names = list(dict.fromkeys(result.table["first"]))
    size = len(names)
    figure, axes = style.panels(
        ax, width=min(style.WIDE, 2.0 + 0.8 * size), height=min(6.0, 1.1 + 0.62 * size)
    )
    here, grid = axes[0, 0], np.full((size, size), np.nan)
    for i, j in np.ndindex(size, size):
        if i == j:
            continue
        row = table.loc[(names[i], names[j])]
        grid[i, j] = np.log2(max(row["value"], 1e-9) / row["baseline"])
    most, colours = max(1.0, float(np.nanmax(np.abs(grid)))), mpl.colormaps[style.DIVERGING]
    for (i, j), value in np.ndenumerate(grid):
        if i != j:
            row = table.loc[(names[i], names[j])]
            chance = f"\n{row['baseline']:.2g} | {within[names[i], names[j]]:.2g}"
            told = f"{row['value']:.2g}{chance if size <= MOST else ''}"
            shade = colours((value / most + 1) / 2)
            here.text(j, i, told, ha="center", va="center", fontsize=5.5, color=style.on(shade))
    image = here.imshow(grid, cmap=style.DIVERGING, vmin=-most, vmax=most, origin="lower")
    here.set_facecolor(style.PALE)
    labels = [style.text(name, 26) for name in names]
    here.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
    here.set_yticks(range(size), labels)
    here.set_xlabel("graft j")
    here.set_ylabel("graft i")
    here.spines[:].set_visible(False)
    style.colour_bar(image, here, "log₂ of overlap\nover chance")
    marks.counted(axes, table["n"], "entries of graft j", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "matrix",
        "Do the grafts share their parameters?",
        overlap_matrix,
        "Each cell is the share of the entries of graft j (across) that graft i (up) takes too. "
        "The second line (of up to 8 grafts) is what as many random entries give | what random "
        "places within each matrix give if every matrix has as many as before. The colour is the "
        "first number over the second, as log2.",
        "Models trained from one base by one recipe change the same large columns whatever they "
        "learn. Grafts of different sizes are compared by the share of the second one.",
    ),
)


def sentence(result: Result) -> Findings:
    rows = result.metric("overlap")
    within = result.metric("within")["value"].to_numpy()
    parts = [
        f"{row['second']} in {row['first']}: {row['value']:.3f} (chance {row['baseline']:.3f}, "
        f"95% range {row['null_low']:.3f} to {row['null_high']:.3f}; within matrices {inner:.3f})"
        for (_, row), inner in zip(rows.iterrows(), within, strict=True)
    ]
    return "Another graft takes this share of a graft's entries too", parts[:8]
