"""What did the members forget, and does it grow with LoRA rank?"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing, has
from workbench.figures.task_and_loss import (
    LOSS,
    PRETRAINING,
    items,
    measured,
    point,
    task_and_loss,
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
        applies=has("loss_change"),
    ),
)


def sentence(result: Result) -> Findings:
    (what, score), (loss_of, loss) = task_and_loss(result, result, "score")
    parts = []
    for name in result.members:
        said = []
        if name in loss.index:
            said.append(f"{loss_of} {change(loss.loc[name], '+.3f')} nats/token")
        if name in score.index:
            base = score.loc[name, "baseline"]
            before = "" if pd.isna(base) else f"{base:.2f} to "
            said.append(f"{what} {before}{change(score.loc[name], '.2f')}")
        parts.append(f"{name}: {', '.join(said) or 'not measured'}")
    return f"Against the base ({items(result)})", parts
