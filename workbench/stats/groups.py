"""How far groups of items lie apart in their mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 8  # items of a group, to say anything of its mean


def gaps(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    labels: NDArray[Any],
    seed: int = 0,
    *,
    draws: int = 1000,
) -> Iterator[dict[str, Any]]:
    """Largest minus smallest mean score of the groups of 8 items or more: gap (baseline: the
    base's), gap_change, and gap_chance, the mean and 95% range of the gap where the tuned model's
    scores are dealt to the groups at random; nothing of fewer than two groups. Intervals resample
    within groups, so that none of them vanishes; column groups: how many are compared."""
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(sizes[place] >= LEAST)
    here = place[kept]
    if len(np.unique(here)) < 2:
        return
    own, other = after[kept], before[kept]
    draw = np.random.default_rng(seed)
    within = [np.flatnonzero(here == group) for group in np.unique(here)]
    picks = np.concatenate([draw.choice(one, (draws, len(one))) for one in within], axis=1)
    order = here[np.concatenate(within)]
    drawn, paired = spread(own[picks], order), spread(other[picks], order)
    dealt = spread(draw.permuted(np.tile(own, (draws, 1)), axis=1), here)
    first, last = float(spread(own, here)), float(spread(other, here))
    told = {"n": len(here), "groups": len(within)}
    for metric, value, spreads, baseline in (
        ("gap", first, drawn, last),
        ("gap_change", first - last, drawn - paired, 0.0),
        ("gap_chance", float(dealt.mean()), dealt, np.nan),
    ):
        low, high = (float(edge) for edge in np.quantile(spreads, [0.025, 0.975]))
        about = {"metric": metric, "value": value, "low": low, "high": high}
        yield about | told | {"baseline": baseline}


def spread(right: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest minus smallest mean over groups. right: (..., items); group: (items,)."""
    means = [right[..., group == one].mean(-1) for one in np.unique(group)]
    return np.max(means, axis=0) - np.min(means, axis=0)
