"""Which base singular vector does each tuned one resemble? |U_tuned^T U_base| as pictures."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style, tensors
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "spectral.similarity"
HEADING = "Similarity of singular vectors"
CELLS = 192  # per side of the whole matrix, about one per printed dot of its panel


def weakest(result: Result, top: int = 10) -> str:
    """The matrix, of those that every model has, with the smallest largest cosine of its top."""
    stored = tensors.by_member(result)  # "layer.component" -> |U_tuned^T U_base|, (tuned, base)
    shared = set.intersection(*(set(named) for named in stored.values()))
    if not shared:
        raise WorkbenchError(
            "Expected a similarity matrix that every model has, found none; "
            "run spectral.similarity on the same matrices of every model."
        )
    return min(
        sorted(shared), key=lambda n: min(own[n][:top].max(1).min() for own in stored.values())
    )


def pooled(array: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """`array` in at most (cells, cells) blocks, each its maximum: a mean would hide a diagonal."""
    for axis in (0, 1):
        step = math.ceil(array.shape[axis] / cells)
        starts = np.arange(0, array.shape[axis], step)
        array = np.maximum.reduceat(array, starts, axis=axis)
    return array


def chance(size: int) -> float:
    """About the largest |cosine| of one random direction against `size` orthogonal ones.

    sqrt(2 ln(size) / size), the leading term for the largest of `size` normal variables.
    """
    return min(1.0, math.sqrt(2 * math.log(max(size, 2)) / size))


@style.styled
def similarity_matrix(
    result: Result, ax: Axes | None = None, *, matrix: str | None = None, top: int = 10
) -> Figure:
    """|cosine| of tuned (y) against base (x) left singular vectors: the top ones, and all.

    matrix: "layer.component"; by default the one with the weakest match in any model (`weakest`).
    The dashed mark on the colour bar is what a random direction reaches (`chance`).
    Raises if a model lacks the matrix.
    """
    matrix = weakest(result, top) if matrix is None else matrix
    stored = tensors.by_member(result)
    missing = [member for member, named in stored.items() if matrix not in named]
    if missing:
        known = sorted(stored[missing[0]])
        raise WorkbenchError(f"No similarity matrix {matrix!r} for {missing}; there are {known}.")
    rows, pairs = style.grid_shape(len(stored), columns=2)
    figure, axes = style.panels(
        *(ax, rows, 2 * pairs),
        width=style.WIDE if pairs > 1 else style.COLUMN,
        height=rows * 1.85 + 0.75,
    )
    image = None
    size = 0
    for i, (name, look) in enumerate(style.looks(result).items()):
        array = stored[name][matrix]
        size = array.shape[1]
        near, whole = axes.flat[2 * i], axes.flat[2 * i + 1]
        for one, shown, extent in ((near, array[:top, :top], top), (whole, pooled(array), 0)):
            edge = (0.5, shown.shape[1] + 0.5, shown.shape[0] + 0.5, 0.5)
            if not extent:
                edge = (0.5, array.shape[1] + 0.5, array.shape[0] + 0.5, 0.5)
            image = one.imshow(shown, vmin=0, vmax=1, extent=edge, interpolation="nearest")
            one.set_xlabel("base index")
            one.set_ylabel("tuned index")
        style.name(near, look)
        whole.set_title(f"all {array.shape[0]}", loc="right")
        near.set_xticks([1, *range(5, min(top, array.shape[1]) + 1, 5)])
        near.set_yticks([1, *range(5, min(top, array.shape[0]) + 1, 5)])
    for one in axes.flat[2 * len(stored) :]:
        one.set_axis_off()
    assert image is not None
    bar = figure.colorbar(
        image,
        ax=list(axes.flat),
        orientation="horizontal",
        aspect=40,
        pad=0.02,
        label=f"|cosine| in {style.text(matrix, 40)}\n(dashed: largest of a random direction)",
    )
    marks.counted(axes, [size], "base vectors", outside=ax is None)
    bar.ax.axvline(chance(size), color="white", ls=style.DASHES[0], lw=1.2)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "matrix",
        "Tuned against base singular vectors",
        similarity_matrix,
        "Each cell is the absolute cosine between a tuned (y) and a base (x) left singular vector, "
        "for the top ones and for all of them (where each dot is the maximum of its block). An "
        "unchanged direction is a bright cell on the diagonal, a moved one is a bright cell off "
        "it, and an intruder is a row without one. The dashed mark on the colour bar is what a "
        "random direction reaches.",
        "Unless you chose one, this is the matrix with the weakest match in any model, and not a "
        "typical one. Blocks of near-equal singular values look blurred without any new direction.",
    ),
)


def sentence(result: Result) -> Findings:
    top = 10
    parts = []
    for name, named in tensors.by_member(result).items():
        best = [float(value) for array in named.values() for value in array[:top].max(1)]
        weak = min(best, default=float("nan"))
        parts.append(
            f"{name}: median {pd.Series(best).median():.3f}, weakest {weak:.3f} "
            f"(n = {len(best)} vectors, matrices: {len(named)})"
        )
    return f"The largest cosine with the base is of the top-{top} tuned vectors", parts
