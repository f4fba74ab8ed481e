"""The same items on both sides: how many were lost and won, of which kind, and which ones?

Item by item a score falls as 1 -> 0 and rises as 0 -> 1, and the two may hide each other in the
mean (Harmon et al. 2025, arXiv 2510.17776). Of items with k choices some change by guessing alone:
who knows or else guesses, on each side anew, goes 1 -> 0 by luck 1 / (k - 1) times as often as both
sides are wrong, and that is taken off each item's count. The paper estimates that share of items
from the two accuracies as if they were independent; here it is counted. Two sides that are much
alike guess alike and are lucky less often: then too much is taken off, down to less than nothing.
What was lost and shows lies between the adjusted count, of guesses made anew, and the plain one, of
none; one in k of the lost items is guessed right after all, and shows in neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.stats import (
    LEAST,
    Interval,
    bootstrap,
    change,
    difference,
    gaps,
    halves,
    share,
)
from workbench.tasks.prompts import tagged

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """One task's items as both sides did them. before, after: (items,), the base's and the tuned
    model's score, 1 right, 0 wrong, or a share of several samples. chance: (items,), the score of a
    guess, NaN where there are no choices. tags: what is known of each item, by name. asked,
    expected, base_said, said: texts, "" where they are not known."""

    task: str
    ids: tuple[str, ...]
    before: Floats
    after: Floats
    chance: Floats
    tags: tuple[Mapping[str, str], ...]
    asked: tuple[str, ...]
    expected: tuple[str, ...]
    base_said: tuple[str, ...]
    said: tuple[str, ...]

    def tagged(self, name: str) -> NDArray[np.str_] | None:
        """(items,) values of a tag; None where no item has it. Raises WorkbenchError where some
        have it and others do not."""
        return tagged(self.task, self.ids, self.tags, name)

    def clusters(self, name: str | None) -> NDArray[np.str_] | None:
        """(items,) what each is resampled with; None where they stand alone."""
        return None if name is None else self.tagged(name)


def rows(
    one: Paired,
    *,
    by: str | None = None,
    cluster: str | None = None,
    same: bool = False,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rows of a Result's table; baseline is the base's value.

    score and score_change (tuned - base); lost (1 -> 0) and gained (0 -> 1), shares of the items,
    each with a 95% interval over items, or clusters of them, see `stats.share` and `stats.change`;
    lost_adjusted and gained_adjusted, for choices, less what guessing gives; mcnemar, the two-sided
    exact p that as many go either way (column changed: how many went), where items are right or
    wrong and stand alone. by: a tag: for each of its values, column group, group_score,
    group_score_change, group_lost and group_gained, and `stats.gaps` between those with 8 items or
    more, which resamples the same clusters; group_worst_score and group_worst_score_change, of the
    group that the tuned model does worst on one half of the items, on the other half; and of two
    groups group_change_difference, the change of the first less that of the second. same: both
    sides are one model, whose change is exactly 0. item: one row each (prompt, asked, expected,
    base_said, said; value: the tuned model's score). Items without the tag `cluster` stand alone.
    """
    of = one.clusters(cluster)
    yield from _means(one, slice(None), "", of, same, seed)
    if of is None and _binary(one):
        lost, gained = one.before > one.after, one.after > one.before
        yield {
            "task": one.task, "metric": "mcnemar", "value": mcnemar(lost.sum(), gained.sum()),
            "n": len(one.ids), "changed": int(lost.sum() + gained.sum()), "baseline": np.nan,
        }  # fmt: skip
    groups = one.tagged(by) if by else None
    if groups is not None:
        for group in dict.fromkeys(groups.tolist()):
            here = np.flatnonzero(groups == group)
            own = None if of is None else of[here]
            for row in _means(one, here, "group_", own, same, seed):
                yield row | {"group": group}
        for row in gaps(one.before, one.after, groups, seed, clusters=of):
            yield row | {"task": one.task, "metric": f"group_{row['metric']}"}
        yield from _compared(one, groups, of, same, seed)
    for i, name in enumerate(one.ids):
        yield {
            "task": one.task, "metric": "item", "prompt": name, "value": one.after[i],
            "baseline": one.before[i], "asked": one.asked[i], "expected": one.expected[i],
            "base_said": one.base_said[i], "said": one.said[i],
            **({} if groups is None else {"group": groups[i]}),
        }  # fmt: skip


def transitions(before: Floats, after: Floats, chance: Floats) -> dict[str, Floats]:
    """Per item: lost and gained, and for items with choices the same less what guessing gives.

    A share of several samples counts as that many items, drawn on each side by itself.
    """
    lost, gained, neither = before * (1 - after), (1 - before) * after, (1 - before) * (1 - after)
    lucky = neither * chance / (1 - chance)  # k choices: 1 / (k - 1)
    found = {"lost": lost, "gained": gained}
    if np.isfinite(chance).all():
        found |= {"lost_adjusted": lost - lucky, "gained_adjusted": gained - lucky}
    return found


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided exact p of McNemar's test; 1 where nothing changed. Source: McNemar (1947), the
    binomial distribution of the items that changed."""
    from scipy.stats import binomtest

    changed = int(lost + gained)
    return float(binomtest(int(lost), changed, 0.5).pvalue) if changed else 1.0


def _means(
    one: Paired, here: Any, prefix: str, of: Any, same: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """Score, its change and the transitions of some of the items. of: their clusters."""
    before, after = one.before[here], one.after[here]

    def row(metric: str, found: Interval, baseline: float) -> dict[str, Any]:
        return row_of(one.task, prefix + metric, found, baseline)

    known = np.isfinite(before) & np.isfinite(after)
    if not known.all():
        raise WorkbenchError(
            f"Expected a score of every item of {one.task!r}, but some are NaN; check the scorer."
        )
    base = float(before.mean())
    yield row("score", share(after, clusters=of, seed=seed), base)
    yield row("score_change", change(before, after, clusters=of, same=same, seed=seed), base)
    for metric, values in transitions(before, after, one.chance[here]).items():
        # Less what guessing gives it is no share: below 0, where both sides are alike.
        of_items = bootstrap if metric.endswith("_adjusted") else share
        yield row(metric, of_items(values, clusters=of, seed=seed), 0.0)


def row_of(task: str, metric: str, found: Interval, baseline: float) -> dict[str, Any]:
    """A row of a Result's table: a mean with its interval."""
    return {"task": task, "metric": metric, **found._asdict(), "baseline": baseline}


def _compared(
    one: Paired, groups: NDArray[np.str_], of: Any, same: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """The worst group, picked on other items than those it is reported on, and two groups beside
    each other."""
    names = [name for name in dict.fromkeys(groups.tolist()) if (groups == name).sum() >= LEAST]
    units = np.arange(len(groups)) if of is None else np.unique(of, return_inverse=True)[1]
    first = np.zeros(int(units.max()) + 1, dtype=bool)
    for name in names:  # each group is split, so that none is left out of either half
        own = np.unique(units[groups == name])
        first[own[halves(len(own), seed)[0]]] = True
    chosen = first[units]
    picked = {
        name: one.after[chosen & (groups == name)].mean()
        for name in names
        if 0 < (chosen & (groups == name)).sum() < (groups == name).sum()
    }
    if len(picked) > 1:
        worst = min(picked, key=lambda name: float(picked[name]))
        here = np.flatnonzero(~chosen & (groups == worst))
        found = _means(one, here, "group_worst_", None if of is None else of[here], same, seed)
        for row in found:
            if row["metric"].removeprefix("group_worst_") in ("score", "score_change"):
                yield row | {"group": worst}
    if len(names) == 2 and not _mixed(groups, names, of):
        sides = []
        for name in names:
            at = groups == name
            own = None if of is None else of[at]
            sides.append(change(one.before[at], one.after[at], clusters=own, same=same, seed=seed))
        told = {"group": f"{names[0]} less {names[1]}"}
        yield row_of(one.task, "group_change_difference", difference(*sides), 0.0) | told


def _mixed(groups: NDArray[np.str_], names: Sequence[str], of: Any) -> bool:
    """Whether some cluster has items of both groups, which are then not independent."""
    return of is not None and bool({*of[groups == names[0]]} & {*of[groups == names[1]]})


def _binary(one: Paired) -> bool:
    return bool(np.isin(one.before, (0, 1)).all() and np.isin(one.after, (0, 1)).all())


def require_tags(sets: Sequence[Paired], **asked: str | None) -> None:
    """Raises WorkbenchError where no task has a tag that is asked for. asked: argument=tag."""
    for argument, name in asked.items():
        if name is not None and all(one.tagged(name) is None for one in sets):
            known = sorted({tag for one in sets for tags in one.tags for tag in tags})
            raise WorkbenchError(
                f"Expected {argument} to be a tag of the items, found {name!r}; they have "
                f"{', '.join(known) or 'none'}."
            )
