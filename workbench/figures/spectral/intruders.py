"""How many top singular vectors of the tuned weights resemble none of the base, and where? When do
they appear in training, and does forgetting go with them?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate, layered, tall
from workbench.figures.spectral.checkpoints import has_steps, runs, strongest
from workbench.figures.task_and_loss import LOSS, PRETRAINING, measured, point, task_of
from workbench.figures.wording import Findings, interval, matrices_changed
from workbench.results.intruder_counts import (
    NULLS,
    TUNED,
    against_chance,
    decided_only,
    intruder_counts,
    settings,
)
from workbench.results.result import Result, how_many_changed, matrix_columns
from workbench.stats import bootstrap

KEY = "spectral.intruders"
HEADING = "Intruder dimensions"


@style.styled
def intruders_by_eps(
    result: Result, ax: Axes | None = None, *, k: int | None = None, percent: bool = True
) -> Figure:
    """Intruders against eps, a line per model, its nulls broken and thin; the run's eps marked.
    A Result of method "decide" has a point per model, and a bar per null.

    percent: of the top-k vectors of all matrices that changed; else their number.
    """
    eps, k = settings(result, None, k)
    only = decided_only(result)
    counts = intruder_counts(result, eps if only else list(np.linspace(0, 1, 201)), k)
    counts["y"] = 100 * counts["fraction"] if percent else counts["count"]
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    for name, look in style.looks(result).items():
        ours = counts[(counts["member"] == name) & (counts["arm"] == TUNED)]
        here.plot(
            *(ours["eps"], ours["y"]),
            color=look.colour,
            marker=look.marker,
            markevery=25,
            label=look.label,
        )
    for name, look in style.looks(result).items():
        ours = counts[counts["member"] == name]
        for (arm, label), dashes in zip(NULLS.items(), style.DASHES, strict=True):
            null = ours[ours["arm"] == arm]
            if len(null):
                # Each null is its own model's: the same colour, thin and broken.
                here.plot(
                    *(null["eps"], null["y"]),
                    color=look.colour,
                    ls=dashes,
                    marker="_" if only else "",
                    lw=0.7,
                    alpha=0.8,
                    zorder=4,
                )
                marker = "_" if only else ""
                here.plot([], [], color=style.GREY, ls=dashes, lw=0.9, marker=marker, label=label)
    here.axvline(eps, color=style.GREY, lw=0.6, zorder=0)
    side = result.provenance.parameters.get("side", "left")
    what = f"top-{k} {side} vectors"
    here.set(
        xlabel="threshold ε on the largest cosine (unitless)",
        ylabel=f"intruders (% of {what})" if percent else f"intruders (count, {what})",
        xlim=(0, 1),
        ylim=(0, None),
    )
    style.legend(axes, outside=ax is None)
    vectors = counts.loc[(counts["arm"] == TUNED) & (counts["n"] > 0), "n"]
    marks.counted(axes, vectors, "vectors", outside=ax is None)
    return figure


@style.styled
def intruders_by_place(
    result: Result, ax: Axes | None = None, *, eps: float | None = None, k: int | None = None
) -> Figure:
    """Intruders per layer (upwards) and component: a heat map per model, and one of the null.

    The control panel is the mean over models of the first of NULLS that the table has. The scale
    ends at the largest count; the numbers are in the cells.
    """
    eps, k = settings(result, eps, k)
    counts = intruder_counts(result, eps, k, by=("member", "layer", "component"))
    counts["layer"] = counts["layer"].fillna(-1)  # matrices outside the layers: the lowest row
    layers = sorted(counts["layer"].unique())
    components = list(dict.fromkeys(counts["component"]))
    maps = {
        look.label: _grid(
            counts[(counts["member"] == name) & (counts["arm"] == TUNED)], layers, components
        )
        for name, look in style.looks(result).items()
    }
    for arm, label in NULLS.items():
        if (counts["arm"] == arm).any():
            maps[f"null: {label}"] = _grid(counts[counts["arm"] == arm], layers, components)
            break
    rows, columns = style.grid_shape(len(maps))
    high = max(1.6 if rows == 1 else 1.1, tall(len(layers)))
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=rows * high + 1.0,
        share=(True, True),
    )
    for one in axes.flat[len(maps) :]:
        one.set_axis_off()
    most = max(float(np.nanmax(values, initial=0)) for values in maps.values()) or 1.0
    image = None
    for one, (label, values) in zip(axes.flat, maps.items(), strict=False):
        one.set_facecolor(style.PALE)
        image = one.imshow(
            values, origin="lower", aspect="auto", vmin=0, vmax=most, interpolation="nearest"
        )
        if len(components) <= 14:  # wider maps have no room for them
            annotate(one, image, ".1f" if label.startswith("null: ") else ".0f")
        title, size = style.fitted(one, label, style.NORMAL)
        one.set_title(title, fontsize=size)
        one.set_xticks(range(len(components)), style.short_components(components), rotation=90)
        layered(one, [int(layer) for layer in layers])
    for i, one in enumerate(axes.flat[: len(maps)]):
        lowest = i // columns == rows - 1
        one.tick_params(labelbottom=lowest, length=0)
        if lowest:
            one.set_xlabel("component")
    for one in axes[:, 0]:
        one.set_ylabel("layer (index)")
    assert image is not None
    figure.colorbar(
        image, ax=list(axes.flat), label=f"intruders (count of {k})", aspect=30, pad=0.02,
        ticks=MaxNLocator(integer=True),
    )  # fmt: skip
    marks.counted(axes, [k], "vectors a matrix", outside=ax is None)
    return figure


def _grid(counts: pd.DataFrame, layers: list, components: list[str]) -> np.ndarray:
    """(layers, components) mean count over models, NaN where there is no such matrix."""
    mean = counts.pivot_table("count", "layer", "component", aggfunc="mean")
    return mean.reindex(index=layers, columns=components).to_numpy(dtype=float)


@style.styled
def training_steps(
    intruders: Result, retention: Result | None = None, ax: Axes | None = None
) -> Figure:
    """sigma and max_cosine of the strongest intruder (`strongest`), and the score, over steps.

    One line per run. Dashed: in the middle the null of the same matrix and index, the first of
    NULLS that there is (and eps as a thin line), below the base's score. Numbers beside sigma are
    the vector's index (1 = largest). Raises where no run has two checkpoints with a step.
    """
    if not has_steps(intruders):
        raise WorkbenchError(
            "Expected models with a training step in their provenance, at least two of one run, "
            f"and their cosines (method auto or exact), found {intruders.members}."
        )
    eps, _ = settings(intruders)
    rows = 2 if retention is None else 3
    figure, axes = style.panels(*(ax, rows, 1), height=1.15 * rows + 0.7, share=(True, False))
    found = {label: names for label, names in runs(intruders).items() if len(names) > 1}
    last = {names[-1]: intruders.provenance.members[names[-1]] for names in found.values()}
    looks = style.assign(last)
    for label, names in found.items():
        table = strongest(intruders, names)
        look = looks[names[-1]]
        steps = [intruders.provenance.members[name]["step"] for name in table.index]
        where = f"{label}: {table['layer'].iloc[0]:g}.{table['component'].iloc[0]}"
        drawn = {"color": look.colour, "marker": look.marker}
        axes[0, 0].plot(steps, table["sigma"], label=style.text(where, 48), **drawn)
        _indices(axes[0, 0], steps, table)
        axes[1, 0].plot(steps, table["max_cosine"], **drawn)
        null = next((arm for arm in NULLS if f"max_cosine:{arm}" in table), None)
        if null is not None:
            axes[1, 0].plot(
                *(steps, table[f"max_cosine:{null}"]),
                color=style.GREY,
                ls=style.DASHES[0],
                label=f"control: {NULLS[null]}, base score",
                zorder=4,
            )
        if retention is not None:
            _scores(axes[2, 0], retention, names, look)
    axes[1, 0].axhline(eps, color=style.GREY, lw=0.6, zorder=0)
    axes[0, 0].set_ylabel("σ (weight\nunits)")
    axes[0, 0].margins(y=0.3)
    axes[1, 0].set(ylabel="max cosine\n(unitless)", ylim=(-0.03, 1.05))
    if retention is not None:
        axes[2, 0].set(ylabel="task score\n(fraction)", ylim=(-0.03, 1.05))
    axes[-1, 0].set_xlabel("training step (optimizer updates)")
    style.legend(axes, outside=ax is None)
    steps = [len(run) for run in found.values()]
    what = "checkpoints a run" if len(steps) > 1 else "checkpoints"
    counts: list[tuple[object, str]] = [(steps, what)]
    if retention is not None:
        counts.append((measured(retention, task_of(retention), "score")["n"], "prompts"))
    marks.counted(axes, counts, "", outside=ax is None)
    return figure


def _indices(here: Axes, steps: list[int], table: pd.DataFrame) -> None:
    """The index of every vector beside its sigma, on white, so that no line runs through it; below
    the curve where the step before is so near that its number would stand there."""
    before = -float("inf")
    for x, y, rank in zip(steps, table["sigma"], table["rank"], strict=True):
        near = x - before < 0.08 * (steps[-1] - steps[0])
        here.annotate(
            f"{int(rank) + 1}", (x, y), (5, -9) if near else (0, 6), textcoords="offset points",
            ha="center", fontsize=6, zorder=2,
            bbox={"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none"},
        )  # fmt: skip
        before = x


def _scores(here: Axes, retention: Result, names: list[str], look: style.Look) -> None:
    """The task score of one run over its steps, with intervals, and the base's."""
    rows = measured(retention, task_of(retention), "score")
    rows = rows.loc[[name for name in names if name in rows.index]]
    steps = [retention.provenance.members[name]["step"] for name in rows.index]
    marks.intervals(here, steps, rows["low"], rows["high"], look.colour, value=rows["value"])
    here.plot(steps, rows["value"], color=look.colour, marker=look.marker)
    base = rows["baseline"].dropna()
    if len(base):
        here.axhline(base.iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1, zorder=0)


@style.styled
def forgetting_by_intruders(
    intruders: Result,
    retention: Result,
    ax: Axes | None = None,
    *,
    eps: float | None = None,
    k: int | None = None,
) -> Figure:
    """Pre-training loss change against the number of intruders, a point per model.

    Hollow grey: the same models at the counts of their null, the first of NULLS that there is.
    Both Spearman's rho are written above. Raises if the two Results share no model.
    """
    eps, k = settings(intruders, eps, k)
    counts = intruder_counts(intruders, eps, k).pivot_table("count", "member", "arm")
    loss = measured(retention, PRETRAINING, "loss_change")
    shared = [name for name in retention.members if name in counts.index and name in loss.index]
    if not shared:
        raise WorkbenchError(
            f"Expected intruders and pre-training loss of the same models, found "
            f"{intruders.members} and {retention.members}."
        )
    figure, axes = style.panels(ax, height=2.8)
    here: Axes = axes[0, 0]
    looks = style.looks(retention)
    values = loss.loc[shared, "value"].to_numpy(dtype=float)
    title = f"Spearman ρ = {correlation(counts.loc[shared, TUNED].to_numpy(), values)}"
    for name in shared:
        point(here, float(counts.loc[name, TUNED]), loss.loc[name], looks[name])
    for arm in NULLS:
        if arm in counts:
            null = counts.loc[shared, arm].to_numpy(dtype=float)
            here.plot(
                null, values, "o", mfc="none", mec=style.GREY, mew=0.8, ms=7, label="null", zorder=5
            )
            title += f"\nnull: ρ = {correlation(null, values)}"
            break
    here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label="base", zorder=0)
    here.set_title(title, loc="left", fontsize=style.SMALL)
    here.set(xlabel=f"intruders (count, top {k}, ε = {eps:g})", ylabel=LOSS)
    here.margins(x=0.08, y=0.12)
    here.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, loss.loc[shared, "n"], "texts", outside=ax is None)
    return figure


def correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's rho and n as words, of the pairs that are complete; says where not defined."""
    from scipy.stats import spearmanr

    whole = np.isfinite(x) & np.isfinite(y)
    x, y = x[whole], y[whole]
    if len(x) < 3:
        return f"not defined (n = {len(x)})"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"not defined (constant, n = {len(x)})"
    return f"{float(np.asarray(spearmanr(x, y).statistic)):.2f} (n = {len(x)})"


def _three_in_common(intruders: Result, retention: Result) -> bool:
    return len(set(intruders.members) & set(retention.members)) >= 3


DRAWINGS = (
    Drawing(
        KEY,
        "count",
        "Intruder dimensions against the threshold",
        intruders_by_eps,
        "The curves show the share of the top singular vectors whose largest cosine with any base "
        "singular vector is below ε; the thin vertical line is the ε of this run. Each model's "
        "nulls are thin broken lines in its own colour (a change with the same singular values; "
        "random LoRA factors of the same norm and rank; a random change of the same norm). A model "
        "whose line leaves its nulls at small ε has directions that a random change does not "
        "explain.",
        "Near-equal singular values of the base make vectors rotate freely among themselves and "
        "count as intruders without any new direction, so read the participation ratio as well. "
        "The count does not show how strong an intruder is, and it depends on k.",
    ),
    Drawing(
        KEY,
        "places",
        "Where the intruders are",
        intruders_by_place,
        "Each cell is the number of intruders among the top vectors of a matrix, with layers "
        "upwards. There is one map per model on one colour scale, and the last map is the null "
        "averaged over models. Pale cells have no such matrix, and a matrix that did not change "
        "has no intruders.",
        "Matrices differ in shape and spectrum, so equal counts need not be equally surprising. "
        "Compare a cell with the same cell of the null, and not with its neighbour.",
    ),
    Drawing(
        KEY,
        "training",
        "The strongest intruder over training",
        training_steps,
        "For each run, the figure follows the matrix whose last checkpoint has the strongest "
        "intruder, where strength is (1 − max cosine²) · σ / σ₁ among the top vectors. The numbers "
        "next to σ are its index (1 = largest). The dashed lines are the max cosine of the null "
        "and the base's score.",
        "The matrix is chosen because its intruder ended strongest, so it is the extreme and not "
        "the typical case. From one step to the next the strongest vector may be another one.",
        companion="forgetting.retention",
        alone=True,
        applies=lambda one, *others: has_steps(one),
    ),
    Drawing(
        KEY,
        "forgetting",
        "Forgetting against intruders",
        forgetting_by_intruders,
        "Each mark is a fine-tuned model: its change of pre-training loss (95% interval over "
        "texts) against its number of intruders. The hollow marks are the same models at the count "
        "of their null. Spearman's ρ of both is above the panel.",
        "A few models give a ρ that one more model could reverse, and rank, learning rate and norm "
        "of the change move both axes: this is an association. Only the λ sweep intervenes.",
        companion="forgetting.retention",
        applies=_three_in_common,
    ),
)


def sentence(result: Result) -> Findings:
    eps, k = settings(result)
    parts = []
    by = intruder_counts(result, eps, k, by=("member", *matrix_columns(result.table)))
    counts = intruder_counts(result, eps, k).set_index(["member", "arm"])
    changed = how_many_changed(result.table)
    for name in result.members:
        tuned = by[(by["member"] == name) & (by["arm"] == TUNED)]
        if not tuned["n"].sum():
            parts.append(f"{name}: no matrix changed")
            continue
        share = bootstrap(100 * tuned["fraction"], tuned["n"])
        count = int(tuned["count"].sum())
        nulls = [
            _null(label, counts.loc[(name, arm)], count)
            for arm, label in NULLS.items()
            if (name, arm) in counts.index
        ]
        told = [f"{interval(share.value, share.low, share.high, '.1f')}%", *nulls]
        told += matrices_changed(changed[name])
        parts.append(f"{name}: {count} of {tuned['n'].sum()} ({'; '.join(told)})")
    return (
        f"Intruders are counted among the top-{k} vectors at eps {eps:g} ({_over(changed)})"
    ), parts


def _null(label: str, null: pd.Series, count: int) -> str:
    """A null's count; of several draws with their spread, and what it means for the model's."""
    if pd.isna(null["low"]):
        return f"{label}: {null['count']:g}"
    said = against_chance(count, null["low"], null["high"])
    return f"{label}: {interval(null['count'], null['low'], null['high'], '.0f')}, {said}"


def _over(changed: Mapping[str, tuple[int, int]]) -> str:
    """What the intervals of a headline are over."""
    every = {count for pair in changed.values() for count in pair}
    if len(every) == 1:
        return f"95% interval over {every.pop()} matrices"
    return "95% interval over the matrices that changed"
