"""Do intruders cause the forgetting? The task and the pre-training loss as they are scaled."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.task_and_loss import PRETRAINING, items, task_and_loss, task_of
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "spectral.scale"
HEADING = "Scaling the intruders"
LAMBDA = 0.7  # where arXiv 2410.21228 reads its sweep
LABELS = {
    "top": "top intruder",
    "all": "all intruders",
    "neighbour": "pre-trained neighbour",
    "random": "random vector",
    "shrink": "whole ΔW shrunk",
}
CONTROLS = ("neighbour", "random", "shrink")


@style.styled
def scale_sweep(result: Result, ax: Axes | None = None) -> Figure:
    """% change of the task score (left) and of the pre-training loss (right) against lambda.

    One row per model, one line per arm with its 95% intervals; the model's colour is the top
    intruder, black all of them, dashed grey the controls. A model without an intruder has no row.
    """
    wanted = ((task_of(result), "score_change"), (PRETRAINING, "loss_change"))
    looks = style.looks(result)
    measured = result.table[result.table["metric"].isin([metric for _, metric in wanted])]
    looks = {name: look for name, look in looks.items() if (measured["member"] == name).any()}
    figure, axes = style.panels(
        *(ax, len(looks), 2),
        width=style.WIDE,
        height=1.5 * len(looks) + 1.1,
        share=(True, "col"),
    )
    for row, (name, look) in zip(axes, looks.items(), strict=True):
        for here, (task, metric) in zip(row, wanted, strict=True):
            rows = result.table[
                (result.table["member"] == name)
                & (result.table["task"] == task)
                & (result.table["metric"] == metric)
            ]
            _arms(here, rows.sort_values("x"), look)
            here.axhline(0, color=style.GREY, lw=0.6, zorder=0)
            here.axvline(1, color=style.GREY, lw=0.6, zorder=0)
        style.name(row[0], look)
        row[0].set_ylabel("task score\nchange (%)")
        row[1].set_ylabel("pre-training loss\nchange (%)")
    for here in axes[-1]:
        here.set_xlabel("scale λ of the singular value (1 = as tuned)")
    style.legend(axes, outside=ax is None)
    counts = [
        (measured.loc[measured["task"] == task, "n"], what)
        for (task, _), what in zip(wanted, ("prompts", "texts"), strict=True)
    ]
    marks.counted(axes, counts, "", outside=ax is None)
    return figure


def _arms(here: Axes, rows, look: style.Look) -> None:
    """Every arm of one model and metric: a line, markers and 95% intervals."""
    known = [arm for arm in LABELS if arm in set(rows["arm"])]
    unknown = [arm for arm in dict.fromkeys(rows["arm"]) if arm not in LABELS]
    if not known:
        raise WorkbenchError(
            f"Expected arms of {sorted(LABELS)} for {look.label}, found {unknown}."
        )
    for place, arm in enumerate(known):
        line = rows[rows["arm"] == arm]
        colour = {"top": look.colour, "all": style.BLACK}.get(arm, style.GREY)
        marks.intervals(here, line["x"], line["low"], line["high"], colour, value=line["value"],
                        place=(place, len(known)))  # fmt: skip
        if arm in CONTROLS:
            number = CONTROLS.index(arm)
            marks.control(here, line["x"], line["value"], style.DASHES[number], LABELS[arm],
                          marker="os^"[number])  # fmt: skip
        else:
            here.plot(line["x"], line["value"], color=colour, marker=look.marker, ms=3.5, lw=1.4,
                      label=LABELS[arm], zorder=3)  # fmt: skip


DRAWINGS = (
    Drawing(
        KEY,
        "sweep",
        "Scaling the intruders",
        scale_sweep,
        "The singular value of the top (or every) intruder is multiplied by λ, and everything else "
        "stays unchanged. The panels show the change of the task score (left; lower is worse) and "
        "of the pre-training loss (right; lower is better) against λ = 1, with 95% intervals. "
        "Intruders cause forgetting if their loss falls below that of λ = 1 while the dashed "
        "controls at the same λ do not.",
        "A neighbouring pre-trained vector of similar σ carries the base's own knowledge, so its "
        "loss rises on either side. The arms differ in the norm they remove, and only the shrink "
        "arm is matched in it. Shared prompts make the intervals of the arms dependent.",
    ),
)


def sentence(result: Result) -> Findings:
    table = result.table
    at = min(table["x"].dropna().unique(), key=lambda x: (abs(x - LAMBDA), x))
    here = replace(result, table=table[table["x"] == at])
    parts = []
    for name in result.members:
        arms = []
        for arm in ("top", "neighbour"):
            rows = replace(here, table=here.table[here.table["arm"] == arm])
            said = [
                f"{what} {change(measured.loc[name], '+.2f')}%"
                for what, measured in task_and_loss(rows, result, "score_change")
                if name in measured.index
            ]
            if said:
                arms.append(f"{LABELS[arm]}: {', '.join(said)}")
        parts.append(f"{name}: {'; '.join(arms) or 'nothing to scale'}")
    return f"Scaled by {at:g}, the arms give these changes against as tuned ({items(here)})", parts
