"""How far groups of items lie apart in their mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.stats.intervals import edges

# Items of which something is said: a group's mean in a comparison of groups, a share in a verdict.
# With 8 even the certain cases are told apart: the 95% score interval of none of 8 ends at .32, and
# 8 that all change in one direction have p = 2 / 2^8 < .01; of 5 the first would end at .43, and
# the second be above .05.
LEAST = 8
Floats = NDArray[np.float64]


def gaps(
    before: Floats,
    after: Floats,
    labels: NDArray[Any],
    seed: int = 0,
    *,
    clusters: NDArray[Any] | None = None,
    draws: int = 1000,
) -> Iterator[dict[str, Any]]:
    """Largest minus smallest mean score of the groups of 8 items or more: gap (baseline: the
    base's), gap_change, and gap_chance, the mean and 95% range of the gap where the tuned model's
    scores are dealt to the groups at random; nothing of fewer than two groups.

    before, after, labels: (items,). clusters: (items,), what each item belongs to, see
    `stats.bootstrap`: these are resampled, and dealt to the groups, as a whole; one that has items
    of several groups stays with them, and its items are dealt among each other. Intervals resample
    clusters, or items, within the groups they are of, so that no group vanishes. Column groups: how
    many are compared.
    """
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(sizes[place] >= LEAST)
    here = np.unique(place[kept], return_inverse=True)[1]
    count = int(here.max(initial=-1)) + 1
    if count < 2:
        return
    own, other = after[kept], before[kept]
    of = np.arange(len(kept)) if clusters is None else np.asarray(clusters)[kept]
    of = np.unique(of, return_inverse=True)[1]
    draw = np.random.default_rng(seed)
    times = _times(here, of, draws, draw)[:, of]
    drawn, paired = (_weighted(side, here, count, times) for side in (own, other))
    dealt = np.array([spread(own, _dealt(here, of, draw)) for _ in range(draws)])
    first, last = float(spread(own, here)), float(spread(other, here))
    told = {"n": len(here), "groups": count}
    least = min(len(np.unique(of[here == group])) for group in range(count))
    chance = tuple(float(edge) for edge in np.quantile(dealt, [0.025, 0.975]))
    for metric, value, ends, baseline in (
        ("gap", first, edges(drawn, least), last),
        ("gap_change", first - last, edges(drawn - paired, least), 0.0),
        ("gap_chance", float(dealt.mean()), chance, np.nan),
    ):
        about = {"metric": metric, "value": value, "low": ends[0], "high": ends[1]}
        yield about | told | {"baseline": baseline}


def spread(right: Floats, group: NDArray[np.int64]) -> Floats:
    """Largest minus smallest mean over groups. right: (..., items); group: (items,)."""
    means = [right[..., group == one].mean(-1) for one in np.unique(group)]
    return np.max(means, axis=0) - np.min(means, axis=0)


def _weighted(right: Floats, group: NDArray[np.int64], count: int, times: Floats) -> Floats:
    """`spread` where each item counts so many times. times: (draws, items)."""
    member = (group[:, None] == np.arange(count)).astype(float)
    means = times @ (right[:, None] * member) / (times @ member)
    return means.max(1) - means.min(1)


def _times(
    group: NDArray[np.int64], of: NDArray[np.int64], draws: int, draw: np.random.Generator
) -> Floats:
    """(draws, clusters): how often each is drawn, among those that have items of the same
    groups."""
    has = np.zeros((of.max() + 1, group.max() + 1), dtype=bool)
    has[of, group] = True
    kinds = np.unique(has, axis=0, return_inverse=True)[1].reshape(-1)
    times = np.zeros((draws, len(has)))
    for kind in np.unique(kinds):
        alike = np.flatnonzero(kinds == kind)
        chances = np.full(len(alike), 1 / len(alike))
        times[:, alike] = draw.multinomial(len(alike), chances, size=draws)
    return times


def _dealt(
    group: NDArray[np.int64], of: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.int64]:
    """The items' groups at random: clusters of one group change theirs, others' items do."""
    size = of.max() + 1
    lowest, highest = np.full(size, group.max()), np.zeros(size, dtype=np.int64)
    np.minimum.at(lowest, of, group)
    np.maximum.at(highest, of, group)
    whole = lowest == highest
    lowest[whole] = draw.permutation(lowest[whole])
    order = np.lexsort((draw.random(len(of)), of))
    mixed = group.copy()
    mixed[np.argsort(of, kind="stable")] = group[order]
    return np.where(whole[of], lowest[of], mixed)
