"""Association: which measure of the change correlates with forgetting, over the models of a family?

One table joins what other analyses found: for each model what it forgot (the rise of the loss on
pre-training-like text, and the mean drop of the other tasks' scores), how far it moved from the
base on the task that it learned, KL(base || tuned) of the answers (arXiv 2509.04259, which finds
that this predicts forgetting where norms and ranks do not), its intruders (arXiv 2410.21228), the
effective rank and relative norm of its change, its TuCo on each group of prompts, and how much of
the base's circuit it kept. For every pair of a measure and a kind of forgetting it gives Spearman's
correlation over the models, with the exact permutation p, and the partial one given the score on
the learned task (see `forgetting.partial`): a model that learned less also moved and forgot less,
which alone makes a correlation.

This is no more than an association over a few models: rank, learning rate and norm change all of
these together, and with five models the smallest possible p is 1 / 60. Models of one recipe that
differ in their seed alone are no independent ones, so that intervals are too narrow and p too small
where there are fewer recipes than models; nothing corrects for that, and both numbers are given.
Nor does anything correct for the number of measures. The intruders' row is given with its null, the
correlation that random changes of the same norm would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.partial import partial_p, partial_spearman
from workbench.results.intruder_counts import NULLS, TUNED, intruder_counts
from workbench.results.recipes import recipes
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import spearman, spearman_p

KEY = "forgetting.association"
RETENTION = "forgetting.retention"
INTRUDERS, SPECTRUM, TUCO = "spectral.intruders", "spectral.delta_spectrum", "tuco.contribution"
CIRCUIT = "patching.circuit"
KL = "KL on the task"
LOSS, SCORE = "loss", "score"
NULL = "null:"


@analysis(
    "Which measure of the change correlates with forgetting?",
    paper="Spearman's rho, exact",
    example="out/demo/results/*",
)
def association(results: Sequence[Result], *, seed: int = 0) -> Result:
    """Compare what each model forgot with every measure of its change, by rank correlation.

    results: results of one family: `retention` with a loss, and any of `intruders`,
    `delta_spectrum`, `contribution` and `circuit`; other results are ignored, and of several of one
    analysis the first counts. Models are runs: seeds of one recipe each count. Models that are
    missing in a measure are left out, and so is a measure that none of `retention`'s models has.

    Returns a Result with rows forgetting (member; outcome "loss" in nats per token or "score", the
    mean drop over tasks other than the fine-tuned one, if `retention` was given that, with 95%
    intervals if they are known), task_score (member; on the fine-tuned task), measure (member,
    measure; n: matrices or prompts), spearman (outcome, measure; 95% bootstrap interval and n over
    models; p: exact permutation test, of 10,000 draws from eight models on; baseline: of the null's
    intruders, over the models that have one; recipes: how many the models are of, NaN if some model
    does not tell) and spearman_partial, the same given the task's score (p: Freedman & Lane), NaN
    for fewer than four models or if the score explains one side. Raises WorkbenchError without a
    loss, another measure, or three models in common.
    """
    found = {r.analysis: r for r in reversed(results)}
    if RETENTION not in found or not found[RETENTION].has("loss_change"):
        raise WorkbenchError(
            f"Expected a result of {RETENTION} with a loss, found results of "
            f"{list(found)}; run it with texts."
        )
    kept = found[RETENTION]
    outcomes = pd.DataFrame(list(_outcomes(kept)))
    beside = [found[key] for key in (INTRUDERS, SPECTRUM, TUCO, CIRCUIT) if key in found]
    columns = [table for result in (kept, *beside) for table in _measures(result, kept)]
    columns = [table for table in columns if table["member"].isin(kept.members).any()]
    if not columns:
        raise WorkbenchError(
            f"Expected {RETENTION} with the task that was learned, or in addition to it results of "
            f"{INTRUDERS}, {SPECTRUM}, {TUCO} or {CIRCUIT}, found {list(found)}; run one of them."
        )
    measures = pd.concat(columns, ignore_index=True)
    real = measures[~measures["measure"].str.startswith(NULL)]
    shared = set.intersection(*(set(own["member"]) for _, own in real.groupby("measure")))
    members = [name for name in kept.members if name in shared]
    if len(members) < 3:
        raise WorkbenchError(
            "Expected at least three fine-tuned models that occur in all results, "
            f"found {members}; run the analyses on more."
        )
    named = outcomes["member"].isin(members), measures["member"].isin(members)
    joined = pd.concat([outcomes[named[0]], measures[named[1]]], ignore_index=True)
    learned = _learned(kept, "score").assign(metric="task_score")
    learned = learned[learned["member"].isin(members)]
    about = {name: kept.provenance.members[name] for name in members}
    rows = pd.DataFrame(_correlations(joined, learned, members, seed))
    rows["recipes"] = count = _recipes(about)
    table = pd.concat([joined, *([learned] if len(learned) else []), rows])
    table = table[~table["measure"].fillna("").str.startswith(NULL)].reset_index(drop=True)
    parameters = {"results": describe([kept, *beside])}
    provenance = replace(kept.provenance, members=about, parameters=parameters, seed=seed)
    if count < len(members):
        note = (
            f"The {len(members)} models are runs of {count:g} recipes; runs of one recipe are "
            "not independent, so the intervals are too narrow and p too small."
        )
        provenance = provenance.with_notes((*provenance.notes, note))
    return finished(KEY, table, provenance)


def _recipes(members: Mapping[str, Mapping[str, Any]]) -> float:
    """Of how many recipes the models are; NaN where one tells of none, by its name either."""
    found = recipes(members)
    told = all(one.get("recipe") for one in members.values()) or len(found) < len(members)
    return float(len(found)) if told else float("nan")


def _learned(kept: Result, metric: str) -> pd.DataFrame:
    """(member, value, n) on the fine-tuned task; nothing where that is not known."""
    table, own = kept.table, kept.provenance.parameters.get("task")
    rows = table[(table["metric"] == metric) & (table["task"] == own)]
    return rows[["member", "value", "n"]].dropna(subset="value")


def _outcomes(kept: Result) -> Iterator[dict[str, Any]]:
    told = {"metric": "forgetting", "baseline": 0.0}
    for _, row in kept.metric("loss_change").iterrows():
        interval = {name: row[name] for name in ("value", "low", "high", "n")}
        yield told | {"member": row["member"], "outcome": LOSS} | interval
    own = kept.provenance.parameters.get("task")
    if own is None:  # whatever was learned would count as forgotten
        return
    changes = kept.table[kept.table["metric"] == "score_change"]
    changes = changes[changes["task"] != own]
    for member, rows in changes.groupby("member", sort=False):
        lost = {"outcome": SCORE, "value": -float(rows["value"].mean()), "n": rows["n"].sum()}
        yield told | {"member": member} | lost


def _measures(result: Result, kept: Result) -> Iterator[pd.DataFrame]:
    """(member, measure, value, n) of one Result of the same base."""
    if result.provenance.base.get("fingerprint") != kept.provenance.base.get("fingerprint"):
        return
    table = result.table
    if result.analysis == RETENTION:
        moved = _learned(kept, "answer_kl")
        if len(moved):
            yield moved.assign(metric="measure", measure=KL)
    if result.analysis == CIRCUIT:
        rows = table[(table["metric"] == "jaccard") & (table["arm"] == "overlap")]
        rows = rows[rows["group"].isna()].dropna(subset="value")
        yield rows[["member", "value", "n"]].assign(metric="measure", measure="circuit overlap")
    if result.analysis == INTRUDERS:
        counts = intruder_counts(result)
        null = next((arm for arm in NULLS if (counts["arm"] == arm).any()), None)
        for arm, measure in ((TUNED, "intruders"), (null, f"{NULL}intruders")):
            own = counts[(counts["arm"] == arm) & (counts["n"] > 0)]
            if len(own):
                told = own[["member", "n"]].assign(value=own["count"].astype(float))
                yield told.assign(metric="measure", measure=measure)
    if result.analysis == SPECTRUM:
        for metric, measure in (("effective_rank", "effective rank"),
                                ("relative_norm", "relative norm")):  # fmt: skip
            # A matrix that did not change has no rank to speak of.
            rows = table[(table["metric"] == metric) & (table["value"] > 0)]
            yield _each(rows, measure, "mean")
    if result.analysis == TUCO:
        for group, rows in table[table["metric"] == "tuco"].groupby("group", sort=False):
            yield _each(rows, f"TuCo, {group}", "mean")


def _each(rows: pd.DataFrame, measure: str, how: str) -> pd.DataFrame:
    made = rows.dropna(subset="value").groupby("member", sort=False)["value"].agg([how, "size"])
    made.columns = pd.Index(["value", "n"])
    return made.reset_index().assign(metric="measure", measure=measure)


def _correlations(
    joined: pd.DataFrame, learned: pd.DataFrame, members: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    values = {
        (kind, name): own.set_index("member")["value"].reindex(list(members)).to_numpy(float)
        for kind in ("outcome", "measure")
        for name, own in joined.groupby(kind, sort=False)
    }
    score = learned.set_index("member")["value"].reindex(list(members)).to_numpy(float)
    measures = [name for kind, name in values if kind == "measure" and not name.startswith(NULL)]
    for outcome in [name for kind, name in values if kind == "outcome"]:
        lost = values["outcome", outcome]
        for measure in measures:
            own = values["measure", measure]
            # A full fine-tune has no null of its rank.
            null = values.get(("measure", f"{NULL}{measure}"), np.full(len(members), np.nan))
            known = np.isfinite(null)
            about = {"outcome": outcome, "measure": measure}
            beside = spearman(null[known], lost[known], seed=seed).value
            told = {"metric": "spearman", "baseline": beside, "p": spearman_p(own, lost, seed=seed)}
            yield about | told | spearman(own, lost, seed=seed)._asdict()
            if np.isfinite(score).all():
                beside = partial_spearman(null[known], lost[known], score[known], seed=seed).value
                p = partial_p(own, lost, score, seed=seed)
                told = {"metric": "spearman_partial", "baseline": beside, "p": p}
                yield about | told | partial_spearman(own, lost, score, seed=seed)._asdict()
