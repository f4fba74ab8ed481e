"""When does the strongest intruder appear in training, and what does the task score do then?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.figures.forgetting import measured, task_of
from workbench.results.intruder_counts import NULLS, decided_only, settings
from workbench.results.result import Result, matrix_columns

RUN = ("kind", "rank", "alpha", "seed")  # what the checkpoints of one training run share

DRAW = r":\d+$"  # how the metrics of a null's draws end


def has_steps(result: Result) -> bool:
    """Whether some run of `result` has two or more checkpoints with a training step, and their
    cosines."""
    return not decided_only(result) and any(len(run) > 1 for run in runs(result).values())


def runs(result: Result) -> dict[str, list[str]]:
    """Run label -> its members in order of step; members without a step are left out.

    Checkpoints that share kind, rank, alpha and seed are one run.
    """
    grouped: dict[tuple[Any, ...], list[str]] = {}
    members = result.provenance.members
    for name, about in members.items():
        if about.get("step") is not None:
            grouped.setdefault(tuple(about.get(key) for key in RUN), []).append(name)
    labelled = {}
    for (kind, rank, alpha, seed), names in grouped.items():
        label = f"{kind or 'run'} r = {rank}" if rank else str(kind or "run")
        for what, value in (("α", alpha), ("seed", seed)):
            label += f", {what} {value}" if value is not None and len(grouped) > 1 else ""
        labelled[label] = sorted(names, key=lambda n: members[n]["step"])
    return labelled


def strongest(
    result: Result, members: list[str] | None = None, k: int | None = None
) -> pd.DataFrame:
    """The strongest intruder of each of `members` (default all), checkpoints of one run.

    Strength of a vector among the top k: (1 - max_cosine^2) * sigma / sigma_1, the part of it that
    its nearest base vector does not explain, times its singular value over the matrix's largest;
    0 for a vector of the base, near 1 for a new direction as strong as the strongest. The last of
    `members` names the matrix; every member then gives the strongest vector of that matrix, which
    need not be the same vector from step to step.
    Returns, indexed by member: layer (-1 outside the layers), component, rank, sigma, max_cosine,
    strength, and each null's max_cosine of that rank, of several draws their mean.
    """
    _, k = settings(result, None, k)
    matrix = matrix_columns(result.table)
    keys = ["member", *matrix, "rank"]
    names = ["sigma", *(m for m in result.table["metric"].unique() if m.startswith("max_cosine"))]
    rows = result.table[result.table["metric"].isin(names) & (result.table["rank"] < k)]
    drawn = rows["metric"].str.replace(DRAW, "", regex=True)
    rows = rows.assign(layer=rows["layer"].fillna(-1), metric=drawn)  # a matrix outside the layers
    wide = (
        rows.groupby([*keys, "metric"], sort=False, dropna=False)["value"]
        .mean()
        .unstack()
        .reset_index()
    )
    wide = wide.dropna(subset=["sigma", "max_cosine"])
    largest = wide.groupby(keys[:-1], dropna=False)["sigma"].transform("max")
    wide["strength"] = (1 - wide["max_cosine"] ** 2) * wide["sigma"] / largest
    chosen = result.members if members is None else members
    last = wide[wide["member"] == chosen[-1]]
    top = last.loc[last["strength"].idxmax()]
    wide = wide.merge(top[matrix].to_frame().T, on=matrix)
    best = wide.loc[wide.groupby("member")["strength"].idxmax()].set_index("member")
    return best.loc[[name for name in chosen if name in best.index]]


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
            "Expected members with a training step in their provenance, at least two of one run, "
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
        for x, y, rank in zip(steps, table["sigma"], table["rank"], strict=True):
            axes[0, 0].annotate(
                f"{int(rank) + 1}", (x, y), (0, 4), textcoords="offset points", ha="center"
            )
        axes[1, 0].plot(steps, table["max_cosine"], **drawn)
        null = next((arm for arm in NULLS if f"max_cosine:{arm}" in table), None)
        if null is not None:
            axes[1, 0].plot(
                *(steps, table[f"max_cosine:{null}"]),
                color=style.GREY,
                ls=style.DASHES[0],
                label=f"control: {NULLS[null]}, base score",
            )
        if retention is not None:
            _scores(axes[2, 0], retention, names, look)
    axes[1, 0].axhline(eps, color=style.GREY, lw=0.6, zorder=0)
    axes[0, 0].set_ylabel("σ (weight\nunits)")
    axes[0, 0].margins(y=0.25)
    axes[1, 0].set(ylabel="max cosine\n(unitless)", ylim=(-0.03, 1.05))
    if retention is not None:
        axes[2, 0].set(ylabel="task score\n(fraction)", ylim=(-0.03, 1.05))
    axes[-1, 0].set_xlabel("training step (optimizer updates)")
    style.legend(axes, outside=ax is None)
    return figure


def _scores(here: Axes, retention: Result, names: list[str], look: style.Look) -> None:
    """The task score of one run over its steps, with intervals, and the base's."""
    rows = measured(retention, task_of(retention), "score")
    rows = rows.loc[[name for name in names if name in rows.index]]
    steps = [retention.provenance.members[name]["step"] for name in rows.index]
    here.fill_between(steps, rows["low"], rows["high"], color=look.colour, alpha=0.15, lw=0)
    here.plot(steps, rows["value"], color=look.colour, marker=look.marker)
    base = rows["baseline"].dropna()
    if len(base):
        here.axhline(base.iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1, zorder=0)
