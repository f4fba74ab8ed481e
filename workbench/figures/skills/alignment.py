"""Does the change follow the task's gradient? Signs, cosines, and the largest entries."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings
from workbench.results.result import Result
from workbench.stats import bootstrap

KEY = "skills.alignment"
HEADING = "The change and the task's gradient"
ARMS = {
    "gradient": "largest\ngradient",
    "principal": "principal\nweights",
    "magnitude": "largest\nweights",
}


def of_matrices(result: Result, metric: str) -> pd.DataFrame:
    rows = result.metric(metric)
    return rows[rows["component"].notna()]


@style.styled
def signs_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Share of the change with the sign of the downhill gradient: mean over the matrices of a layer
    with its 95% interval; grey: 95% range of a permuted change."""
    rows = of_matrices(result, "sign_agreement")
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    null = rows.groupby("layer")[["null_low", "null_high"]].median()
    x = null.index.to_numpy(float)
    here.fill_between(x, null["null_low"], null["null_high"], color=style.GREY, alpha=0.25, lw=0,
                      label="null: permuted change (95%)")  # fmt: skip
    here.axhline(0.5, color=style.GREY, ls=style.DASHES[0], lw=1)
    for name, look in style.looks(result).items():
        own = rows[rows["member"] == name]
        layers = sorted(own["layer"].unique())
        each = [bootstrap(own.loc[own["layer"] == layer, "value"]) for layer in layers]
        marks.curve(here, np.asarray(layers, float), pd.DataFrame(each), look, layers=True)
    here.set(xlabel="layer", ylabel="share of |Δ| with the sign\nof the downhill gradient")
    marks.layer_ticks(here, rows["layer"].unique())
    style.legend(axes, outside=ax is None)
    counts = rows.groupby(["member", "layer"]).size()
    marks.counted(axes, counts, "matrices a layer", outside=ax is None)
    return figure


@style.styled
def largest(result: Result, ax: Axes | None = None) -> Figure:
    """Share of the entries that an order puts first which are among the largest of the change: mean
    over matrices with its 95% interval; dashed: chance."""
    rows = of_matrices(result, "overlap")
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    looks = style.looks(result)
    for number, (name, look) in enumerate(looks.items()):
        shift = (number - (len(looks) - 1) / 2) * 0.6 / max(len(looks), 2)
        own = rows[rows["member"] == name]
        each = [bootstrap(own.loc[own["arm"] == arm, "value"]) for arm in ARMS]
        x = np.arange(len(ARMS)) + shift
        values = np.array([one.value for one in each])
        here.vlines(x, [one.low for one in each], [one.high for one in each], color=look.colour)
        here.plot(x, values, ls="", marker=look.marker, ms=4, color=look.colour, label=look.label)
    here.axhline(rows["baseline"].mean(), color=style.GREY, ls=style.DASHES[0], lw=1,
                 label="chance")  # fmt: skip
    here.set_xticks(range(len(ARMS)), [*ARMS.values()])
    here.set(
        xlabel="entries put first, as many as are compared",
        ylabel="share among the largest |Δ|",
        ylim=(0, None),
    )
    style.legend(axes, outside=ax is None)
    counts = rows.groupby(["member", "arm"]).size()
    marks.counted(axes, counts, "matrices", outside=ax is None)
    return figure


@style.styled
def relevance(result: Result, ax: Axes | None = None) -> Figure:
    """Rank correlation of a neuron's relevance to general prompts and its change, by layer."""
    table = result.metric("relevance")
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = style.panels(
        ax, 1, len(tasks), width=style.COLUMN if len(tasks) < 2 else style.WIDE, share=(True, True)
    )
    for here, task in zip(axes.flat, tasks, strict=True):
        rows = table[table["task"] == task].sort_values("layer")
        null = rows.groupby("layer")[["null_low", "null_high"]].median()
        here.fill_between(null.index.to_numpy(float), null["null_low"], null["null_high"],
                          color=style.GREY, alpha=0.25, lw=0,
                          label="null: random ranks (95%)")  # fmt: skip
        for name, look in style.looks(result).items():
            own = rows[rows["member"] == name]
            marks.curve(here, own["layer"].to_numpy(float), own, look, layers=True)
        here.set_title(style.text(str(task), 28), loc="left")
        here.set_xlabel("layer")
        marks.layer_ticks(here, rows["layer"].unique())
    style.first_column(axes, "Spearman's ρ of a neuron's\nrelevance and its change")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "neurons a layer", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "signs",
        "The change and the downhill gradient",
        signs_by_layer,
        "The curves show which share of the change has the sign of minus the task's gradient at "
        "the base, as mean over the matrices of a layer with its 95% interval. One step of "
        "gradient descent gives 1; the grey band is a change whose entries are permuted inside "
        "the matrix.",
        "The gradient at the base is that of the first step: a long training run leaves it behind "
        "and is near one half, whatever it learned.",
        applies=has("sign_agreement"),
    ),
    Drawing(
        KEY,
        "largest",
        "What the largest entries of the change are",
        largest,
        "Of the entries with the largest gradient, the largest entries of a low-rank copy of the "
        "base (principal weights) and the largest weights, the points show how many are among the "
        "largest of the change, as mean over matrices with its 95% interval. Dashed is chance.",
        "Rows and columns that are large in everything overlap without a shared cause.",
        applies=has("overlap"),
    ),
    Drawing(
        KEY,
        "relevance",
        "Did training spare what general prompts need?",
        relevance,
        "The curves show by layer whether the neurons that the answers of general prompts depend "
        "on changed more (above 0) or less (below 0) than others, with 95% intervals over neurons. "
        "The grey band is the range of random ranks.",
        "Relevance is a first-order estimate at the base. Neurons that are active on every prompt "
        "are relevant to all of them and get larger gradients too.",
        applies=has("relevance"),
    ),
)


def sentence(result: Result) -> Findings:
    """The whole change's agreement and cosine against their nulls."""
    parts = []
    for name in result.members:
        said = []
        for metric, words in (("sign_agreement", "signs"), ("cosine", "cosine")):
            rows = result.metric(metric)
            row = rows[(rows["member"] == name) & rows["component"].isna()].iloc[0]
            said.append(
                f"{words} {row['value']:.4f} (null {row['null_low']:.4f} to {row['null_high']:.4f})"
            )
        n = int((of_matrices(result, "cosine")["member"] == name).sum())
        parts.append(f"{name}: {', '.join(said)}, n = {n} matrices")
    return "The change agrees with the downhill gradient of the task at the base", parts
