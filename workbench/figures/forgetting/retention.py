"""What did fine-tuning forget, does it grow with LoRA rank, and which tasks pay for which?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.forgetting.along import of_one_run, over_steps
from workbench.figures.forgetting.transitions import item_transitions, transfer_matrix
from workbench.figures.task_and_loss import (
    LOSS,
    PRETRAINING,
    items,
    measured,
    point,
    task_of,
)
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.retention"
HEADING = "What was retained and what was forgotten"


@style.styled
def forgetting_by_rank(result: Result, ax: Axes | None = None) -> Figure:
    """Pre-training loss change (left) and task score (right) against LoRA rank, full rightmost.

    Models of one rank stand side by side. Dashed: the base. Models whose rank is not known stand
    at "?".
    """
    place, ticks = _rank_places(result)
    task = task_of(result)
    shown = [(PRETRAINING, "loss_change", LOSS)]
    shown += [(task, "score", f"score on {style.text(task)}\n(fraction right)")] if task else []
    width = style.WIDE if task else style.COLUMN
    figure, axes = style.panels(ax, 1, len(shown), width=width, height=2.5)
    for here, (of, metric, label) in zip(axes.flat, shown, strict=True):
        rows = measured(result, of, metric)
        ranks = [result.provenance.members[name].get("rank") for name in rows.index]
        mean = rows["value"].groupby(ranks).mean()  # where models share a rank
        here.plot(np.log2(list(mean.index)), mean, color="0.8", lw=1, zorder=0)
        for name, look in style.looks(result).items():
            if name in rows.index:
                point(here, place[name], rows.loc[name], look)
        for level in [0.0] if metric == "loss_change" else rows["baseline"].dropna().head(1):
            here.axhline(level, color=style.GREY, ls=style.DASHES[0], lw=1, label="base", zorder=0)
        here.set_xticks(list(ticks.values()), list(ticks))
        here.set(
            xlabel=f"LoRA rank r (dimensions) {marks.LOG}",
            ylabel=label,
            xlim=(min(ticks.values()) - 0.8, max(ticks.values()) + 0.8),
        )
        if metric == "score":
            here.set_ylim(-0.05, 1.05)
    style.legend(axes, outside=ax is None)
    table, kinds = result.table, {PRETRAINING: "texts", task: "prompts"}
    counts = [
        (table.loc[(table["task"] == of) & (table["metric"] == metric), "n"], kinds[of])
        for of, metric, _ in shown
    ]
    marks.counted(axes, counts, "", outside=ax is None)
    return figure


def _rank_places(result: Result) -> tuple[dict[str, float], dict[str, float]]:
    """x of every model (log2 of its rank; full and "?" beyond), and of the tick labels."""
    ranks = {
        name: about.get("rank") if about.get("kind") == "lora" else None
        for name, about in result.provenance.members.items()
    }
    label = {
        name: str(rank)
        if rank
        else ("full" if result.provenance.members[name].get("kind") in (None, "full") else "?")
        for name, rank in ranks.items()
    }
    known = sorted({rank for rank in ranks.values() if rank})
    ticks = {str(rank): math.log2(rank) for rank in known}
    beyond = max(ticks.values(), default=-1.5) + 1.5
    for name in ("?", "full"):
        if name in label.values():
            ticks[name] = beyond
            beyond += 1.5
    place = {}
    for tick, x in ticks.items():
        here = [name for name in result.members if label[name] == tick]
        for i, name in enumerate(here):
            place[name] = x + (i - (len(here) - 1) / 2) * min(0.22, 0.9 / len(here))
    return place, ticks


DRAWINGS = (
    Drawing(
        KEY,
        "rank",
        "Forgetting against LoRA rank",
        forgetting_by_rank,
        "The left panel shows the change of the loss on held-out text like the pre-training "
        "corpus, and the right panel the score on the fine-tuned task, with full fine-tuning at "
        "the right end. Bars are 95% intervals over texts and prompts, and the dashed line is the "
        "base.",
        "Compare the forgetting only of models with similar task scores, because a rank that "
        "learned less also forgets less. The intervals are over items of one training run, and not "
        "over seeds.",
        # Steps of one run have one rank, and a figure of their own.
        applies=lambda result, *_: result.has("loss_change") and not of_one_run(result),
    ),
    Drawing(
        KEY,
        "steps",
        "Learned and forgotten along the training",
        over_steps,
        "Over the training steps of one run (across), the figure shows how far the loss on text "
        "like the pre-training corpus rose, how far the predictions on such text moved from the "
        "base's, and the score of every task. Bars are 95% intervals over texts and prompts; "
        "dashed lines are the base.",
        "One run of one seed: another seed may forget at other steps. The intervals are over items "
        "and do not contain this.",
        applies=lambda result, *_: result.has("loss_change") and of_one_run(result),
    ),
    Drawing(
        KEY,
        "transitions",
        "Lost and gained, item by item",
        item_transitions,
        "For every task the figure shows the share of items that the base answered and the "
        "fine-tuned model does not (left), and the opposite (right), with 95% intervals over "
        "items. The hollow marks subtract what guessing among the choices again on each side would "
        "give, and are at least 0.",
        "A mean that stays the same can hide as many lost items as gained ones. Two runs of one "
        "model that differ only in rounding already swap some items. If the hollow mark of a loss "
        "lies near 0, much of that loss may be guessing: the truth is between the two marks.",
        applies=has("lost"),
    ),
    Drawing(
        KEY,
        "transfer",
        "Every fine-tuned model on every task",
        transfer_matrix,
        "Each cell shows the change of the score against the base, by fine-tuned model (down) and "
        "task (across), and below it the shares of items lost (−) and gained (+). A frame means "
        "that the 95% interval excludes 0.",
        "Tasks differ in difficulty and in their number of items: a small change of a task near "
        "its ceiling can be most of what there was to lose. Nothing is corrected for the number of "
        "cells.",
        applies=has("lost"),
    ),
)


def sentence(result: Result) -> Findings:
    loss = measured(result, PRETRAINING, "loss_change")
    parts = []
    for name in result.members:
        said = []
        if name in loss.index:
            said.append(f"pre-training loss {change(loss.loc[name], '+.3f')} nats/token")
        said += _tasks(result, name)
        parts.append(f"{name}: {', '.join(said) or 'not measured'}")
    return f"The changes are against the base ({items(result)})", parts


def _tasks(result: Result, member: str) -> Iterator[str]:
    """The fine-tuned task first, then the others, each with what was lost and gained."""
    table = result.table[result.table["member"] == member]
    first = task_of(result)
    others = [task for task in table["task"].dropna().unique() if task not in (first, PRETRAINING)]
    for task in [first, *others]:
        own = table[table["task"] == task].drop_duplicates("metric").set_index("metric")
        if "score" in own.index:
            base = own.loc["score", "baseline"]
            before = "" if pd.isna(base) else f"{base:.2f} to "
            told = f"score on {task} {before}{change(own.loc['score'], '.2f')}"
            if "lost" in own.index:
                lost, gained = (own.loc[way, "value"] for way in ("lost", "gained"))
                told += f" (lost {lost:.1%}, gained {gained:.1%}"
                told += (
                    f", p = {own.loc['mcnemar', 'value']:.2g})" if "mcnemar" in own.index else ")"
                )
            yield told
        elif "loss_change" in own.index:
            yield f"loss on {task} {change(own.loc['loss_change'], '+.3f')} nats/token"
