"""How often is a method right? AUROC of every method on every pair whose answer is known, and how
often it finds what is there, and what is not."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate
from workbench.figures.member_panels import error_bars
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "truth.scoreboard"
HEADING = "How often is a method right?"
ALL = "all"
STATED = 0.95
READ = 22  # columns of which numbers in the cells can be read
RATES = {"found": "found what was learned", "false_positive": "found what is not there"}


@style.styled
def places(result: Result, ax: Axes | None = None) -> Figure:
    """AUROC of every method (a row for each kind of place) on every pair (across); the last column
    is the mean."""
    rows = result.metric("auroc")
    rows = rows.assign(row=rows["method"] + ", " + rows["place"])
    names, truths = list(dict.fromkeys(rows["row"])), list(dict.fromkeys(rows["truth"]))
    truths = [*(one for one in truths if one != ALL), ALL]
    grid = rows.pivot_table(index="row", columns="truth", values="value")
    grid = grid.reindex(index=names, columns=truths).to_numpy(dtype=float)
    width = min(style.WIDE, 3.0 + 0.3 * len(truths))
    figure, axes = style.panels(ax, 1, 1, width=width, height=1.6 + 0.19 * len(names))
    here = axes[0, 0]
    image = here.imshow(grid, cmap=style.DIVERGING, vmin=0, vmax=1, aspect="auto")
    here.set_facecolor(style.PALE)
    if len(truths) <= READ:
        annotate(here, image, ".2f")
    here.axvline(len(truths) - 1.5, color="w", lw=2)
    here.set_xticks(range(len(truths)), [style.text(one, 24) for one in truths], rotation=50,
                    ha="right", rotation_mode="anchor", fontsize=6)  # fmt: skip
    here.set_yticks(range(len(names)), [style.text(one, 44) for one in names], fontsize=6)
    here.spines[:].set_visible(False)
    style.colour_bar(image, here, "AUROC (0.5: chance)")
    marks.counted(axes, rows.loc[rows["truth"] != ALL, "n"], "places", outside=ax is None)
    return figure


@style.styled
def errors(result: Result, ax: Axes | None = None) -> Figure:
    """Of the pairs in which something was learned, and of those in which nothing was, the share in
    which a method finds something, with 95% intervals."""
    rows = result.table[(result.table["truth"] == ALL) & result.table["metric"].isin([*RATES])]
    names = list(dict.fromkeys(rows["method"]))
    figure, axes = style.panels(
        ax, 1, 1, width=style.COLUMN + 0.6, height=1.3 + 0.24 * max(len(names), 2)
    )
    here = axes[0, 0]
    for shift, (metric, label) in zip((-0.15, 0.15), RATES.items(), strict=True):
        own = rows[rows["metric"] == metric].set_index("method").reindex(names)
        bad = metric == "false_positive"
        here.errorbar(
            own["value"], np.arange(len(names)) + shift, xerr=error_bars(own), ls="", ms=4,
            elinewidth=0.8, label=label, marker="s" if bad else "o",
            color=style.GREY if bad else "C0", mfc="w" if bad else None,
        )  # fmt: skip
    here.set_yticks(range(len(names)), [style.text(one, 30) for one in names])
    here.set_ylim(len(names) - 0.5, -0.5)
    here.set_xlim(-0.04, 1.04)
    here.set_xlabel("share of pairs")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows["n"], "pairs", outside=ax is None)
    return figure


@style.styled
def intervals(result: Result, ax: Axes | None = None) -> Figure:
    """The share of stated 95% intervals that hold the mean over all prompts, by method."""
    rows = result.table[(result.table["truth"] == ALL) & (result.table["metric"] == "coverage")]
    names = list(rows["method"])
    figure, axes = style.panels(
        ax, 1, 1, width=style.COLUMN + 0.6, height=1.3 + 0.24 * max(len(names), 2)
    )
    here = axes[0, 0]
    here.axvline(STATED, color=style.GREY, ls="--", lw=1, label="stated")
    here.errorbar(
        rows["value"], np.arange(len(names)), xerr=error_bars(rows), ls="", ms=4, marker="o",
        elinewidth=0.8, color="C0", label="covered",
    )  # fmt: skip
    here.set_yticks(range(len(names)), [style.text(one, 30) for one in names])
    here.set_ylim(len(names) - 0.5, -0.5)
    here.set_xlim(min(0.5, float(rows["low"].min()) - 0.02), 1.01)
    here.set_xlabel("share of 95% intervals that cover")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, rows["n"], "samples of prompts", outside=ax is None)
    return figure


def _has_rates(result: Result) -> bool:
    return bool(result.table["metric"].isin([*RATES]).any())


def _has_intervals(result: Result) -> bool:
    return bool((result.table["metric"] == "coverage").any())


def _has_places(result: Result) -> bool:
    return bool((result.table["metric"] == "auroc").any())


def sentence(result: Result) -> Findings:
    """Each method's mean AUROC, against that of the norm where both have one."""
    own = result.table[result.table["truth"] == ALL]
    beyond = own[own["metric"] == "beyond_norm"].set_index(["method", "place"])["value"]
    parts = []
    for _, row in own[own["metric"] == "auroc"].iterrows():
        at = (row["method"], row["place"])
        more = f", {beyond[at]:+.2f} against the norm of the change" if at in beyond.index else ""
        parts.append(
            f"{row['method']} by {row['place']}: {row['value']:.2f} on {int(row['n'])} pairs{more}"
        )
    return "The chance that a true place gets the higher score", parts


DRAWINGS = (
    Drawing(
        KEY,
        "places",
        "Which places does a method find?",
        places,
        "Each cell is the chance that a true place of a pair (across) gets a higher score from a "
        "method (up) than another place; 0.5 is chance, 1 finds every true place first. Empty "
        "cells: nothing is known of such places there, or the method refuses the pair. The last "
        "column is the mean.",
        "Compiled circuits are sharper than trained ones, so what is found here may be missed in a "
        "trained model. Where few places are true, one cell says little.",
        applies=_has_places,
    ),
    Drawing(
        KEY,
        "errors",
        "How often does a method find what is there, and what is not?",
        errors,
        "Filled: of the pairs in which something was learned, the share in which a method says so "
        "by its own rule. Hollow: the same of phantoms, whose change has the same norms and "
        "singular values in random directions, and of bases against themselves. 95% intervals.",
        "The two need not be about the same number of pairs. A phantom can do harm that is truly "
        "there, so a method that only says that answers changed is not wrong to say so.",
        applies=_has_rates,
    ),
    Drawing(
        KEY,
        "intervals",
        "Do stated intervals hold what they are stated for?",
        intervals,
        "The prompts of two compiled pairs are all that there are, so that a mean over them is "
        "known. Dots: of 95% intervals stated on samples of 16 of them, the share that holds that "
        "mean, with its own 95% interval. Dashed: 0.95.",
        "The pairs were made so that values are few or extreme, where an interval is hardest; and "
        "with 16 prompts a bootstrap knows little of tails it did not see.",
        applies=_has_intervals,
    ),
)
