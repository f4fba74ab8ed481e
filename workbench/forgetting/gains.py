"""Gains: what does fine-tuning add to each checkpoint of a chain of bases?

Checkpoints of one pre-training, or models that were trained further and further, were fine-tuned
alike, and each was asked the same prompts before and after (`forgetting.retention`). Of every
checkpoint

    gain            score(tuned) - score(base), paired over items
    gain_unknown    of what the base had wrong, the share that the tuned model has right, beside
                    its share of all items: what the base knew says nothing where these are equal
    gap             between the templates, or another group, that do best and worst, in either

and of every two that follow each other

    latent          the rise of the tuned models' score less the rise of the bases': what more
                    pre-training gave that shows after fine-tuning alone, paired over items

Sun & Dredze 2024 (arXiv 2408.06663v1) ask this of OLMo's checkpoints: gains that do not show before
fine-tuning, most where the base knew least, and prompts that matter less and less.

It misleads as a correlation over few checkpoints, which are no independent models; and a gain goes
against the base's score by its definition, since what is known cannot be gained. The baseline of
that correlation is its mean where the tuned models' scores are dealt to the checkpoints at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, change, gaps, ratios, share, spearman, spearman_p

KEY, RETENTION = "forgetting.gains", "forgetting.retention"
DEALT = 5040  # orders of 7 checkpoints; of more, as many are drawn
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """One task of one fine-tuning over all checkpoints. before, after: (checkpoints, items).
    groups: (items,), or None."""

    member: str
    task: str
    before: Floats
    after: Floats
    groups: NDArray[np.str_] | None


@analysis(
    "What does fine-tuning add to each checkpoint of a chain of bases?",
    paper="arXiv 2408.06663",
    example="out/step1000 out/step2000 out/step4000",
)
def gains(results: Sequence[Result], *, seed: int = 0) -> Result:
    """Put the gains of fine-tuning from each base of a chain beside each other.

    results: of `retention`, one a base, in the order of the chain, two or more, of the same prompts
    and models of the same names (or one model each, whatever it is called). Their groups, where
    they were asked for (`by="template"`), are those of the gaps.

    Returns a Result with rows by member, task, checkpoint and x (its place, from 0): base_score and
    score with 95% intervals over items (baseline of score: the base's), gain, paired (baseline 0),
    gain_unknown (baseline: the tuned model's score; NaN where the base has nothing wrong), latent
    from the second checkpoint on, paired (baseline 0); with groups gap, gap_change and gap_chance,
    see `stats.gaps`. Over the checkpoints, x empty: Spearman's correlations gain_with_score, of the
    base's score and the gain (baseline: its mean over dealt scores), gain_with_place and
    gap_with_place, each with p over all pairings; NaN for fewer than three. Raises WorkbenchError
    for other Results, fewer than two, and for prompts that are not those of the first.
    """
    names = _checkpoints(results)
    chains = _chains(results)
    rows = [
        {"member": one.member, "task": one.task, **row}
        for one in chains
        for row in (*_each(one, names, seed), *_over(one, seed))
    ]
    members = {one.member: _about(results[-1], one.member) for one in chains}
    parameters = {"results": describe(list(results)), "checkpoints": names}
    provenance = replace(
        results[0].provenance, members=members, parameters=parameters, seed=seed,
        notes=tuple(dict.fromkeys(note for one in results for note in one.provenance.notes)),
    )  # fmt: skip
    return finished(KEY, pd.DataFrame(rows), provenance)


def _checkpoints(results: Sequence[Result]) -> list[str]:
    """What the bases are called; of two of one name the place tells them apart."""
    wrong = [one.analysis for one in results if one.analysis != RETENTION or not one.has("item")]
    if wrong or len(results) < 2:
        raise WorkbenchError(
            f"Expected results of {RETENTION} with its items, one for each base of a chain, two or "
            f"more; found {wrong[0] if wrong else len(results)}."
        )
    told = [str(one.provenance.base.get("reference", i)) for i, one in enumerate(results)]
    short = [name.rstrip("/").rpartition("/")[2] for name in told]
    unlike = len({*short}) == len(short)
    return short if unlike else [f"{place}: {name}" for place, name in enumerate(short)]


def _about(result: Result, member: str) -> Any:
    members = result.provenance.members
    return members.get(member) or next(iter(members.values()))


def _chains(results: Sequence[Result]) -> list[Chain]:
    """Every model and task that all results have."""
    tables = [one.metric("item") for one in results]
    if all(len(one.members) == 1 for one in results):
        name = results[-1].members[0]
        tables = [table.assign(member=name) for table in tables]
    shared = [{*zip(own["member"], own["task"], strict=True)} for own in tables]
    first = dict.fromkeys(zip(tables[0]["member"], tables[0]["task"], strict=True))
    both = [one for one in first if all(one in other for other in shared)]
    if not both:
        raise WorkbenchError(
            "Expected the same models and tasks in every result, found none that all have; give "
            "the models of each base the same names, and ask them the same prompts."
        )
    return [_chain(str(member), str(task), tables) for member, task in both]


def _chain(member: str, task: str, tables: Sequence[pd.DataFrame]) -> Chain:
    own = [
        table[(table["member"] == member) & (table["task"] == task)].set_index("prompt")
        for table in tables
    ]
    items = own[0].index
    for place, table in enumerate(own):
        if {*table.index} != {*items}:
            raise WorkbenchError(
                f"Expected the prompts of {task!r} to be the same at every checkpoint, but those "
                f"of number {place} are others; ask every model the same prompts."
            )
    before, after = (
        np.stack([table.loc[items, side].to_numpy(float) for table in own])
        for side in ("baseline", "value")
    )
    told = own[0].get("group")
    groups = None if told is None or told.isna().any() else told.to_numpy(str)
    return Chain(member, task, before, after, groups)


def _each(chain: Chain, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    for place, (name, before, after) in enumerate(
        zip(names, chain.before, chain.after, strict=True)
    ):
        about = {"checkpoint": name, "x": float(place)}
        base, own = float(before.mean()), share(after, seed=seed)._asdict()
        yield about | {"metric": "base_score", **share(before, seed=seed)._asdict()}
        yield about | {"metric": "score", **own, "baseline": base}
        moved = change(before, after, seed=seed)._asdict()
        yield about | {"metric": "gain", **moved, "baseline": 0.0}
        found = ratios((1 - before) * after, 1 - before, seed=seed).first._asdict()
        found["n"] = int((before < 1).sum())
        yield about | {"metric": "gain_unknown", **found, "baseline": float(after.mean())}
        if chain.groups is not None:
            yield from (about | row for row in gaps(before, after, chain.groups, seed))
        if place:
            risen = after - chain.after[place - 1] - (before - chain.before[place - 1])
            told = bootstrap(risen, seed=seed)._asdict()
            yield about | {"metric": "latent", **told, "baseline": 0.0}


def _over(chain: Chain, seed: int) -> Iterator[dict[str, Any]]:
    before, after = chain.before.mean(1), chain.after.mean(1)
    place, gain = np.arange(len(before), dtype=float), after - before
    beside = _dealt(before, after, seed)
    for metric, first, second, null in (
        ("gain_with_score", before, gain, beside), ("gain_with_place", place, gain, 0.0),
        ("gap_with_place", place, _gaps(chain, seed), 0.0),
    ):  # fmt: skip
        if np.isfinite(second).all():
            told = spearman(first, second, seed=seed)._asdict()
            p = spearman_p(first, second, seed=seed)
            yield {"metric": metric, **told, "baseline": null, "p": p}


def _gaps(chain: Chain, seed: int) -> Floats:
    """(checkpoints,) between the groups, in the bases; NaN where there are no groups."""
    if chain.groups is None:
        return np.full(len(chain.before), np.nan)
    found = [[*gaps(own, own, chain.groups, seed)] for own in chain.before]
    return np.array([one[0]["value"] if one else np.nan for one in found])


def _dealt(before: Floats, after: Floats, seed: int) -> float:
    """The mean correlation of the base's score and the gain, tuned scores dealt at random."""
    from scipy.stats import spearmanr

    orders = itertools.permutations(range(len(after)))
    if len(after) > 7:
        draw = np.random.default_rng(seed)
        orders = (draw.permutation(len(after)) for _ in range(DEALT))
    gains = [after[list(order)] - before for order in orders]
    if len(before) < 3 or np.ptp(before) == 0:
        return float("nan")
    return float(np.mean([spearmanr(before, one).statistic for one in gains if np.ptp(one)]))
