"""What is the spectrum of the change? Singular values and effective rank of W_tuned - W_base."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, interval, matrices_changed
from workbench.results.result import Result, how_many_changed, matrix_columns
from workbench.stats import bootstrap

KEY = "spectral.delta_spectrum"
HEADING = "Spectrum of the change"
FLOOR = 1e-6  # of the largest singular value: below it a float32 difference is rounding


def quarter_circle(size: int) -> np.ndarray:
    """(size,) singular values, descending, of a large square matrix of independent entries.

    Quantiles of the quarter-circle law sqrt(4 - s^2) / pi on [0, 2] (entries of variance 1/size).
    """
    grid = np.linspace(0, 2, 4001)
    below = (grid / 2 * np.sqrt(4 - grid**2) + 2 * np.arcsin(grid / 2)) / np.pi
    return np.interp(1 - (np.arange(size) + 0.5) / size, below, grid)


def effective_rank(sigma: np.ndarray) -> float:
    """exp(-sum p ln p) with p = sigma / sum sigma (Roy & Vetterli 2007)."""
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def sigma_rows(result: Result) -> pd.DataFrame:
    """The rows of metric "sigma" with `relative`: over the largest of the same matrix."""
    rows = result.metric("sigma")
    rows = rows[rows["value"].notna()]
    largest = rows.groupby(["member", *matrix_columns(rows)], dropna=False)["value"].transform(
        "max"
    )
    return rows.assign(relative=rows["value"] / largest.where(largest > 0))


@style.styled
def delta_spectra(result: Result, ax: Axes | None = None) -> Figure:
    """Singular values of the change over its largest: median and quartiles over matrices.

    The control is a square matrix of independent entries, of as many singular values as the
    largest matrix shown.
    """
    rows = sigma_rows(result)
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    rows = rows[rows["relative"] > FLOOR]
    lowest = 1.0
    for name, look in style.looks(result).items():
        ours = rows[rows["member"] == name].groupby("rank")["relative"]
        middle = ours.median()
        if middle.empty:
            continue
        low, high = ours.quantile(0.25), ours.quantile(0.75)
        index = middle.index.to_numpy() + 1
        here.fill_between(index, low, high, color=look.colour, alpha=0.2, lw=0)
        here.plot(
            *(index, middle),
            color=look.colour,
            marker=look.marker,
            # About evenly spaced markers on a logarithmic axis.
            markevery=list(np.unique(np.geomspace(1, len(index), 6).astype(int) - 1)),
            label=look.label,
        )
        lowest = min(lowest, float(low.min()))
    size = int(rows["rank"].max()) + 1
    random = quarter_circle(size)
    here.plot(
        *(np.arange(size) + 1, random / random[0]),
        color=style.GREY,
        ls=style.DASHES[0],
        label="random square matrix",
        zorder=1,
    )
    here.set(
        xscale="log",
        yscale="log",
        xlabel=f"index of the singular value (1 = largest) {marks.LOG}",
        ylabel=f"σ / largest σ of ΔW {marks.LOG}",
        xlim=(0.9, size * 1.1),
        ylim=(max(lowest * 0.7, FLOOR), 1.3),
    )
    marks.log_ticks(here.xaxis, 1, size)
    marks.log_ticks(here.yaxis, lowest, 1)
    style.legend(axes, outside=ax is None)
    keys = [name for name in ("layer", "component") if name in rows]
    counts = rows.drop_duplicates(["member", *keys]).groupby("member").size()
    marks.counted(axes, counts, "matrices", outside=ax is None)
    return figure


def has_ranks(result: Result) -> bool:
    """Whether any matrix of `result` changed, so that its change has a rank."""
    return result.has("effective_rank") and not _ranks(result).empty


def _ranks(result: Result) -> pd.DataFrame:
    rows = result.metric("effective_rank")
    return rows[rows["value"] > 0]


@style.styled
def effective_ranks(result: Result, ax: Axes | None = None) -> Figure:
    """Effective rank of the change: a point per matrix that changed, a bar at the median.

    Dashed: a LoRA's ceiling, its rank r; for a full fine-tune the effective rank of a random square
    matrix with as many singular values as its middle matrix (drawn if the table holds sigma).
    """
    rows = _ranks(result)
    if rows.empty:
        raise WorkbenchError("Expected an effective rank of at least one matrix, found none.")
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    looks = style.looks(result)
    for place, (name, look) in enumerate(looks.items()):
        values = rows.loc[rows["member"] == name, "value"].to_numpy(dtype=float)
        # Golden-ratio steps spread the points evenly, and the same way each time.
        spread = (np.arange(values.size) * 0.618034 % 1 - 0.5) * 0.5
        here.scatter(
            place + spread, values, s=6, color=look.colour, marker=look.marker, alpha=0.55, lw=0
        )
        if values.size:
            here.hlines(np.median(values), place - 0.32, place + 0.32, color=look.colour, lw=2)
        reference = _ceiling(result, name)
        if reference:
            here.hlines(reference, place - 0.42, place + 0.42, color=style.GREY,
                        ls=style.DASHES[0], lw=1, zorder=4)  # fmt: skip
    here.plot([], [], color=style.GREY, ls=style.DASHES[0], lw=1, label="LoRA: r; full: random ΔW")
    here.plot([], [], color="black", lw=2, label="median over matrices")
    crowded = sum(len(look.label) for look in looks.values()) > 42
    here.set_xticks(
        range(len(looks)),
        [look.label for look in looks.values()],
        rotation=35 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor" if crowded else "default",
    )
    here.set_yscale("log", base=2)
    here.yaxis.set_major_formatter("{x:g}")
    here.set(
        xlabel="fine-tuned model",
        ylabel=f"effective rank of ΔW\n(dimensions) {marks.LOG}",
        xlim=(-0.6, len(looks) - 0.4),
        ylim=(0.8, None),
    )
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows.groupby("member").size(), "matrices", outside=ax is None)
    return figure


def _ceiling(result: Result, member: str) -> float | None:
    """What the effective rank of `member` is to be compared with, if it is known."""
    about = result.provenance.members[member]
    if about.get("kind") == "lora":
        return about.get("rank")
    rows = result.table[(result.table["metric"] == "sigma") & (result.table["member"] == member)]
    if rows.empty:
        return None
    sizes = rows.groupby(matrix_columns(rows), dropna=False).size()
    return effective_rank(quarter_circle(int(sizes.median())))


DRAWINGS = (
    Drawing(
        KEY,
        "spectrum",
        "Singular values of the change",
        delta_spectra,
        "The curves show the singular values of ΔW over the largest of the same matrix, as median "
        "and quartiles over matrices. A line that falls early is a change of few directions. The "
        "dashed line is a square matrix of independent random entries.",
        "Because each matrix is scaled by its largest value, the figure hides how large the change "
        "is. At a large index only the large matrices are left in the median, and below about 1e-6 "
        "there is only rounding.",
        applies=has("sigma"),
    ),
    Drawing(
        KEY,
        "effective-rank",
        "Effective rank of the change",
        effective_ranks,
        "Each point is a matrix, placed at exp of the entropy of σ / Σσ of its ΔW, with a bar at "
        "the median. The dashed line is the rank r of a LoRA, which it cannot exceed, and for a "
        "full fine-tune the effective rank of a random square matrix of the middle size.",
        "The effective rank counts directions whatever they do: half-precision rounding of a "
        "checkpoint alone gives a nearly full effective rank. Compare it with the relative norm "
        "and the energy in the first values.",
        applies=has_ranks,
    ),
)


def sentence(result: Result) -> Findings:
    rows = result.metric("effective_rank")
    rows = rows[rows["value"] > 0]
    changed = how_many_changed(result.table)
    parts = []
    for name in result.members:
        mean = bootstrap(rows.loc[rows["member"] == name, "value"])
        if not mean.n:
            parts.append(f"{name}: no matrix changed")
            continue
        about = result.provenance.members[name]
        ceiling = about.get("rank") if about.get("kind") == "lora" else None
        beside = [
            f"n = {mean.n}",
            *([f"ceiling {ceiling}"] if ceiling else []),
            *matrices_changed(changed[name]),
        ]
        parts.append(f"{name}: {interval(mean.value, mean.low, mean.high)} ({', '.join(beside)})")
    return (
        "The mean effective rank of the change has a 95% interval over the n matrices that changed"
    ), parts
