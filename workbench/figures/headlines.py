"""What does an analysis say in one sentence, with its numbers, n and intervals?"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from workbench.figures import delta, forgetting, intruders, similarity, sweep
from workbench.results import Result
from workbench.stats import bootstrap

LAMBDA = 0.7  # where arXiv 2410.21228 reads its sweep
Findings = tuple[str, list[str]]
SHORT = {"random_lowrank": "random BA", "random_delta": "random delta"}


def headline(result: Result) -> str:
    """One sentence per analysis, derived from its table alone.

    An analysis without a sentence of its own gets one that says what its table holds.
    """
    lead, parts = findings(result)
    return f"{lead} — {'; '.join(parts)}." if parts else f"{lead}."


def findings(result: Result) -> tuple[str, list[str]]:
    """The headline in its parts: what was measured, and a clause per member that begins with it."""
    return SENTENCES.get(result.analysis, _generic)(result)


def interval(value: float, low: float, high: float, form: str = ".3g") -> str:
    """A value with its 95% interval, e.g. "0.21 [0.18, 0.24]"; the value alone without one."""
    if pd.isna(low) or pd.isna(high):
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _intruders(result: Result) -> Findings:
    eps, k = intruders.settings(result)
    parts = []
    by = intruders.intruder_counts(result, eps, k, by=("member", "layer", "component"))
    for name in result.members:
        ours = by[by["member"] == name]
        tuned = ours[ours["arm"] == intruders.TUNED]
        share = bootstrap(100 * tuned["fraction"], tuned["n"])
        nulls = [
            f"{label}: {ours.loc[ours['arm'] == arm, 'count'].sum()}"
            for arm, label in SHORT.items()
            if (ours["arm"] == arm).any()
        ]
        beside = f"; {', '.join(nulls)}" if nulls else ""
        parts.append(
            f"{name}: {tuned['count'].sum()} of {tuned['n'].sum()} "
            f"({interval(share.value, share.low, share.high, '.1f')}%{beside})"
        )
    matrices = by.groupby(["layer", "component"], dropna=False).ngroups
    return (
        f"Intruders among the top-{k} vectors at eps {eps:g}, 95% interval over {matrices} matrices"
    ), parts


def _spectrum(result: Result) -> Findings:
    rows = result.metric("effective_rank").dropna(subset="value")
    parts = []
    for name in result.members:
        mean = bootstrap(rows.loc[rows["member"] == name, "value"])
        about = result.provenance.members[name]
        ceiling = about.get("rank") if about.get("kind") == "lora" else None
        beside = f", ceiling {ceiling}" if ceiling else ""
        parts.append(
            f"{name}: {interval(mean.value, mean.low, mean.high)} (n = {mean.n} matrices{beside})"
        )
    return "Mean effective rank of the change, 95% interval over matrices", parts


def _similarity(result: Result) -> Findings:
    top = 10
    parts = []
    for name, named in similarity.matrices(result).items():
        best = [float(value) for array in named.values() for value in array[:top].max(1)]
        weak = min(best, default=float("nan"))
        parts.append(
            f"{name}: median {pd.Series(best).median():.3f}, weakest {weak:.3f} "
            f"(n = {len(best)} vectors of {len(named)} matrices)"
        )
    return f"Largest cosine of the top-{top} tuned vectors with the base", parts


def _scale(result: Result) -> Findings:
    task = forgetting.task_of(result)
    table = result.table
    at = min(table["x"].dropna().unique(), key=lambda x: (abs(x - LAMBDA), x))
    parts = []
    for name in result.members:
        arms = []
        for arm in ("top", "neighbour"):
            said = []
            for of, metric, what in (
                (task, "score_change", f"score on {task}"),
                (forgetting.PRETRAINING, "loss_change", "pre-training loss"),
            ):
                rows = table[
                    (table["member"] == name)
                    & (table["arm"] == arm)
                    & (table["x"] == at)
                    & (table["task"] == of)
                    & (table["metric"] == metric)
                ]
                for row in rows.head(1).itertuples():
                    change = interval(row.value, row.low, row.high, "+.2f")
                    said.append(f"{what} {change}% (n = {row.n:g})")
            if said:
                arms.append(f"{sweep.LABELS[arm]} {', '.join(said)}")
        parts.append(f"{name}: {' / '.join(arms) or 'not measured'}")
    return f"Scaled by {at:g} against as tuned, 95% intervals", parts


def _retention(result: Result) -> Findings:
    task = forgetting.task_of(result)
    loss = forgetting.measured(result, forgetting.PRETRAINING, "loss_change")
    score = forgetting.measured(result, task, "score")
    parts = []
    for name in result.members:
        said = []
        if name in loss.index:
            row = loss.loc[name]
            change = interval(row["value"], row["low"], row["high"], "+.3f")
            said.append(f"pre-training loss {change} nats/token (n = {row['n']:g})")
        if name in score.index:
            row = score.loc[name]
            base = "" if pd.isna(row["baseline"]) else f"{row['baseline']:.2f} to "
            value = interval(row["value"], row["low"], row["high"], ".2f")
            said.append(f"score on {task} {base}{value} (n = {row['n']:g})")
        parts.append(f"{name}: {', '.join(said) or 'not measured'}")
    return "Against the base, 95% intervals", parts


def _generic(result: Result) -> Findings:
    metrics = list(dict.fromkeys(result.table["metric"]))
    others = " and others" if len(metrics) > 6 else ""
    members = ", ".join(result.members)
    return f"{len(result.table)} values of {', '.join(metrics[:6])}{others} for {members}", []


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    intruders.KEY: _intruders,
    delta.KEY: _spectrum,
    similarity.KEY: _similarity,
    sweep.KEY: _scale,
    forgetting.KEY: _retention,
}
