"""What did the members forget, does it grow with LoRA rank, and does it go with intruders?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.results.intruder_counts import NULLS, TUNED, intruder_counts, settings
from workbench.results.result import Result

KEY = "forgetting.retention"
PRETRAINING = "pretraining"
LOSS = "change of pre-training loss\n(nats/token)"


def task_of(result: Result) -> str:
    """The fine-tuned task: the provenance's, else the first that is not pre-training text; "" where
    only texts were read."""
    named = result.provenance.parameters.get("task")
    named = named.get("name") if isinstance(named, Mapping) else named
    tasks = [task for task in result.table["task"].dropna().unique() if task != PRETRAINING]
    if named in tasks:
        return str(named)
    return tasks[0] if tasks else ""


def measured(result: Result, task: str, metric: str) -> pd.DataFrame:
    """value, low, high, n, baseline of one task and metric, indexed by member in its order."""
    rows = result.table[(result.table["task"] == task) & (result.table["metric"] == metric)]
    rows = rows.drop_duplicates("member").set_index("member")
    return rows.reindex([name for name in result.members if name in rows.index])


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
                _point(here, place[name], rows.loc[name], look)
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
        else ("?" if result.provenance.members[name].get("kind") == "lora" else "full")
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


def _point(here: Axes, x: float, row: pd.Series, look: style.Look) -> None:
    """One member's value, labelled, with its 95% interval."""
    below, above = row["value"] - row["low"], row["high"] - row["value"]
    error = None if np.isnan([below, above]).any() else [[max(below, 0)], [max(above, 0)]]
    here.errorbar(
        *(x, row["value"]),
        yerr=error,
        fmt="none",
        ecolor=look.colour,
        capsize=2,
        elinewidth=1,
    )
    here.plot(x, row["value"], look.marker, color=look.colour, label=look.label)


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


@style.styled
def forgetting_by_intruders(
    intruders: Result,
    retention: Result,
    ax: Axes | None = None,
    *,
    eps: float | None = None,
    k: int | None = None,
) -> Figure:
    """Pre-training loss change against the number of intruders, a point per member.

    Hollow grey: the same members at the counts of their null, the first of NULLS that there is.
    Both Spearman's rho are written above. Raises where the two Results share no member.
    """
    eps, k = settings(intruders, eps, k)
    counts = intruder_counts(intruders, eps, k).pivot_table("count", "member", "arm")
    loss = measured(retention, PRETRAINING, "loss_change")
    shared = [name for name in retention.members if name in counts.index and name in loss.index]
    if not shared:
        raise WorkbenchError(
            f"Expected intruders and pre-training loss of the same members, found "
            f"{intruders.members} and {retention.members}."
        )
    figure, axes = style.panels(ax, height=2.8)
    here: Axes = axes[0, 0]
    looks = style.looks(retention)
    values = loss.loc[shared, "value"].to_numpy(dtype=float)
    title = f"Spearman ρ = {correlation(counts.loc[shared, TUNED].to_numpy(), values)}"
    for name in shared:
        _point(here, float(counts.loc[name, TUNED]), loss.loc[name], looks[name])
    for arm in NULLS:
        if arm in counts:
            null = counts.loc[shared, arm].to_numpy(dtype=float)
            here.plot(
                null, values, "o", mfc="none", mec=style.GREY, mew=0.8, label="null", zorder=1
            )
            title += f"\nof the null: {correlation(null, values)}"
            break
    here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label="base", zorder=0)
    here.set_title(title, loc="left", fontsize=style.SMALL)
    here.set(xlabel=f"intruders (count, top {k}, ε = {eps:g})", ylabel=LOSS)
    here.margins(x=0.08, y=0.12)
    style.legend(axes, outside=ax is None)
    return figure
