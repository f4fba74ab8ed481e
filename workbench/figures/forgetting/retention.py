"""What did the members forget, does it grow with LoRA rank, and which tasks pay for which?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing, has
from workbench.figures.forgetting.transitions import item_transitions, transfer_matrix
from workbench.figures.spectral.checkpoints import runs
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
HEADING = "What was kept and what was forgotten"


@style.styled
def forgetting_by_rank(result: Result, ax: Axes | None = None) -> Figure:
    """Pre-training loss change (left) and task score (right) against LoRA rank, full rightmost.

    Members of one rank stand side by side. Dashed: the base. Members whose rank is not known
    stand at "?".
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
        mean = rows["value"].groupby(ranks).mean()  # where members share a rank
        here.plot(np.log2(list(mean.index)), mean, color="0.8", lw=1, zorder=0)
        for name, look in style.looks(result).items():
            if name in rows.index:
                point(here, place[name], rows.loc[name], look)
        for level in [0.0] if metric == "loss_change" else rows["baseline"].dropna().head(1):
            here.axhline(level, color=style.GREY, ls=style.DASHES[0], lw=1, label="base", zorder=0)
        here.set_xticks(list(ticks.values()), list(ticks))
        here.set(
            xlabel="LoRA rank r (dimensions)",
            ylabel=label,
            xlim=(min(ticks.values()) - 0.8, max(ticks.values()) + 0.8),
        )
        if metric == "score":
            here.set_ylim(-0.03, 1.03)
    style.legend(axes, outside=ax is None)
    return figure


def _of_one_run(result: Result) -> bool:
    """Whether every member is a checkpoint of the same training run."""
    return len(result.members) > 1 and [len(one) for one in runs(result).values()] == [
        len(result.members)
    ]


def _rank_places(result: Result) -> tuple[dict[str, float], dict[str, float]]:
    """x of every member (log2 of its rank; full and "?" beyond), and of the tick labels."""
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
        "Change of loss on held-out text like the pre-training corpus (left) beside the score on "
        "the fine-tuned task (right), full fine-tuning at the right end; bars are 95% intervals "
        "over texts and prompts, the dashed line is the base.",
        "Members are comparable only where the task score beside is: a rank that learned less "
        "forgets less. Intervals are over items of one training run, not over seeds.",
        # Steps of one run have one rank: the training figure of the intruders shows them.
        applies=lambda result, *_: result.has("loss_change") and not _of_one_run(result),
    ),
    Drawing(
        KEY,
        "transitions",
        "Lost and won, item by item",
        item_transitions,
        "Of every task the share of items that the base answered and the member does not (left), "
        "and the other way round (right), with 95% intervals over items. Hollow marks: less what "
        "guessing among the choices anew on each side would give, at least 0.",
        "A mean that stays the same can hide as many items lost as won. Two runs of one model that "
        "differ in nothing but rounding already swap some items. Much of a loss whose hollow mark "
        "lies near 0 may be guessing: the truth is between the two marks.",
        applies=has("lost"),
    ),
    Drawing(
        KEY,
        "transfer",
        "Every member on every task",
        transfer_matrix,
        "Change of the score against the base, by member (down) and task (across), and below it "
        "the shares of items lost and won. Framed: the 95% interval leaves out 0.",
        "Tasks differ in how hard they are and how many items they have: a small change of a task "
        "near its ceiling can be most of what there was to lose. Nothing is corrected for the "
        "number of cells.",
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
    return f"Against the base ({items(result)})", parts


def _tasks(result: Result, member: str) -> Iterator[str]:
    """The fine-tuned task first, then the others, each with what was lost and won."""
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
                told += (
                    f" (lost {own.loc['lost', 'value']:.1%}, won {own.loc['gained', 'value']:.1%}"
                )
                told += (
                    f", p = {own.loc['mcnemar', 'value']:.2g})" if "mcnemar" in own.index else ")"
                )
            yield told
        elif "loss_change" in own.index:
            yield f"loss on {task} {change(own.loc['loss_change'], '+.3f')} nats/token"
