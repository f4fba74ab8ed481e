"""What did fine-tuning keep? Conjugates, categories of knowledge, paths of weights, chains."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.figures.scores import BLACK
from workbench.results.result import Result

CONJUGATE, KNOWLEDGE = "forgetting.conjugate", "forgetting.knowledge"
INTERPOLATE, SEQUENTIAL = "forgetting.interpolate", "forgetting.sequential"
# Okabe & Ito: blue, orange; grey is what is neither.
OUTCOMES = {"score": ("right", "#0072B2"), "switched": ("switched task", "#E69F00")}
REST = "#C8C8C8"
SHORT = {"HighlyKnown": "highly", "MaybeKnown": "maybe", "WeaklyKnown": "weakly",
         "Unknown": "unknown"}  # fmt: skip
AGAIN = "base again"
FRAME = "#D55E00"


@style.styled
def conjugate_outcomes(result: Result, ax: Axes | None = None) -> Figure:
    """Share of prompts answered right, in another task's way, or neither, plain and behind each
    conjugation; a panel per member. Black lines: how often the base is right on the same prompts;
    error bars: 95% intervals of the tuned model's share."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.7 * rows + 0.7,
        share=(True, True),
    )
    table = result.table[result.table["arm"] != "best"]
    arms = list(dict.fromkeys(table["arm"]))
    places = np.arange(len(arms))
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        told = {m: own[own["metric"] == m].set_index("arm").reindex(arms) for m in OUTCOMES}
        score, bottom = told["score"], np.zeros(len(arms))
        for metric, (label, colour) in OUTCOMES.items():
            height = told[metric]["value"].fillna(0).to_numpy()
            here.bar(places, height, 0.7, bottom, color=colour, label=label)
            bottom = bottom + height
        untold = told["switched"]["value"].isna().any()
        here.bar(places, 1 - bottom, 0.7, bottom, color=REST,
                 label="wrong, switched or not" if untold else "neither")  # fmt: skip
        bars = np.array([score["value"] - score["low"], score["high"] - score["value"]]).clip(0)
        here.errorbar(places, score["value"], bars, ls="", color="#333333", elinewidth=0.9)
        here.hlines(score["baseline"], places - 0.42, places + 0.42, color=BLACK, lw=1.6,
                    label="base right", zorder=4)  # fmt: skip
        here.set_xticks(places, [style.text(arm, 16) for arm in arms], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_ylim(0, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    style.first_column(axes, f"share of prompts\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("conjugation")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def knowledge_transitions(result: Result, ax: Axes | None = None) -> Figure:
    """Where the questions of every category of the base went, a panel per member; first the base
    asked again behind other examples, which is the control."""
    looks = style.looks(result)
    names = list(SHORT)
    table = result.metric("transition")
    first = result.members[0]
    shown = [(AGAIN, first, "again", BLACK)]
    shown += [(look.label, member, "tuned", look.colour) for member, look in looks.items()]
    rows, columns = style.grid_shape(len(shown), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 else style.WIDE,
        height=1.75 * rows + 0.5,
        share=(True, True),
    )
    image = None
    for here, (title, member, arm, colour) in zip(axes.flat, shown, strict=False):
        own = table[(table["member"] == member) & (table["arm"] == arm)]
        grid, count = (
            own.pivot(index="category", columns="to_category", values=c).loc[names, names]
            for c in ("value", "n")
        )
        image = here.imshow(grid.to_numpy(), style.MAP, vmin=0, vmax=1, aspect="auto")
        here.set_facecolor(style.PALE)
        _annotate(here, grid.to_numpy(), ".2f")
        labels = [f"{SHORT[n]} ({int(count.loc[n].iloc[0])})" for n in names]
        here.set_yticks(range(len(names)), labels)
        here.set_xticks(range(len(names)), list(SHORT.values()), rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_title(title, loc="left", color=colour)
        here.spines[:].set_visible(False)
    style.first_column(axes, "base (questions)")
    for here in axes[-1]:
        here.set_xlabel("tuned model")
    style.blank(axes, len(shown))
    style.colour_bar(image, list(axes.flat), "share of the questions")
    return figure


@style.styled
def path_scores(result: Result, ax: Axes | None = None) -> Figure:
    """Score out of distribution, the mean of the other tasks, against the score in distribution
    along the path; a panel per member. The diamond is alpha = .5; dotted: the ensemble of logits;
    grey: the chord."""
    table = result.metric("score")
    if table["own"].all():
        raise WorkbenchError("There is no task out of distribution to draw; give others.")
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.7,
        share=(True, True),
    )
    # A path begins at the base unless another member was named.
    begins = "start" if result.provenance.parameters.get("origin") else "base"
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        for arm, label, dashes in (
            ("path", "weights interpolated", "-"),
            ("ensemble", "logits mixed", style.DASHES[1]),
        ):
            line = own[own["arm"] == arm]
            inside = line[line["own"].eq(True)].set_index("x").sort_index()
            outside = line[line["own"].eq(False)].groupby("x")[["value", "baseline"]].mean()
            here.plot(inside["value"], outside["value"], color=look.colour, ls=dashes, lw=1.1,
                      marker="o" if arm == "path" else "", ms=2.5, label=label)  # fmt: skip
            if arm == "path":
                here.plot(inside["baseline"], outside["baseline"], color=style.GREY, lw=0.8,
                          zorder=0, label="chord")  # fmt: skip
            if 0.5 in inside.index:
                here.plot(inside.loc[0.5, "value"], outside.loc[0.5, "value"], marker="D", ms=5,
                          ls="", color=look.colour, mec="white", mew=0.6, zorder=5,
                          label="α = .5")  # fmt: skip
            if arm == "path":
                for x, name in ((0.0, begins), (1.0, "end")):
                    here.annotate(name, (inside.loc[x, "value"], outside.loc[x, "value"]),
                                  (3, -7), textcoords="offset points", fontsize=6,
                                  color=style.GREY)  # fmt: skip
        here.set_title(look.label, loc="left", color=look.colour)
        here.margins(0.1)
    task = str(table.loc[table["own"].eq(True), "task"].iloc[0])
    style.first_column(axes, "mean score on other tasks")
    for here in axes[-1]:
        here.set_xlabel(f"score on {style.text(task)}")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def chain_matrix(result: Result, ax: Axes | None = None) -> Figure:
    """Score after every stage of a chain (downwards) on every task; framed: what the stage just
    learned. Tasks right of the line were learned by no stage."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 2)
    table = result.metric("score")
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.5,
        share=(True, False),
    )
    image = None
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        tasks = list(dict.fromkeys(own["task"]))
        stages = list(own.drop_duplicates("x").sort_values("x")["stage"])
        grid = own.pivot(index="x", columns="task", values="value")[tasks].to_numpy()
        image = here.imshow(grid, style.MAP, vmin=0, vmax=1, aspect="auto")
        _annotate(here, grid, ".2f")
        for stage in range(1, len(stages)):
            here.add_patch(
                Rectangle((stage - 1.5, stage - 0.5), 1, 1, fill=False, ec=FRAME, lw=1.4)
            )
        learned = int(own.drop_duplicates("task")["own"].sum())
        here.axvline(learned - 0.5, color="white", lw=2)
        here.set_xticks(range(len(tasks)), [style.text(t, 14) for t in tasks], rotation=40,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_yticks(range(len(stages)), [style.text(s, 18) for s in stages])
        here.set_title(look.label, loc="left", color=look.colour)
        here.spines[:].set_visible(False)
        here.set_xlabel("task")
    style.first_column(axes, "after stage")
    style.blank(axes, len(looks))
    style.colour_bar(image, list(axes.flat), "score")
    return figure


def _annotate(here: Axes, grid: np.ndarray, form: str) -> None:
    """Every cell's number, readable on its colour."""
    for (row, column), value in np.ndenumerate(grid):
        if pd.notna(value):
            here.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=6,
                      color="white" if value < 0.6 else BLACK)  # fmt: skip
