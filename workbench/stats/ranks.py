"""What follows from the order of values alone, and items that are alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.stats.intervals import Interval, edges, levels


def spearman(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0, draws: int = 1000
) -> Interval:
    """Spearman's correlation of two (entries,), with a 95% bootstrap interval over entries; NaN
    for fewer than three entries, or where one side does not vary."""
    from scipy.stats import rankdata

    n = len(first)
    if n < 3:
        return Interval(np.nan, np.nan, np.nan, n)
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n))
    picks = np.concatenate([np.arange(n)[None], drawn])
    a, b = (rankdata(values[picks], axis=1) for values in (first, second))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found = np.where(spread > 0, (a * b).sum(1) / np.where(spread > 0, spread, 1), np.nan)
    if np.isnan(found[0]):
        return Interval(np.nan, np.nan, np.nan, n)
    low, high = np.nanquantile(found[1:], levels(n))
    return Interval(float(found[0]), float(low), float(high), n)


def auc(first: ArrayLike, second: ArrayLike, *, seed: int = 0, draws: int = 2000) -> Interval:
    """The chance that a value of `first` exceeds one of `second`, ties counting half.

    first: (n,). second: (m,). The 95% percentile interval resamples both, and is NaN where one has
    a single value; n is n + m. Empty groups give NaN. Source: Hanley & McNeil, Radiology 143
    (1982): the area under the ROC curve is the Mann-Whitney statistic over n m.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not (a.size and b.size):
        return Interval(float("nan"), float("nan"), float("nan"), a.size + b.size)
    larger = np.sign(a[:, None] - b[None, :]) / 2 + 0.5
    random = np.random.default_rng(seed)
    times_a = random.multinomial(a.size, np.full(a.size, 1 / a.size), size=draws) / a.size
    times_b = random.multinomial(b.size, np.full(b.size, 1 / b.size), size=draws) / b.size
    drawn = ((times_a @ larger) * times_b).sum(1)
    return Interval(float(larger.mean()), *edges(drawn, min(a.size, b.size)), a.size + b.size)


def nearest_pairs(
    first: ArrayLike, second: ArrayLike, *, caliper: float = 0.25, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of items, one of each group, that agree in every covariate.

    first: (n, covariates). second: (m, covariates). Greedy, in random order, without replacement:
    each item of `first` takes the nearest free item of `second`, if no covariate differs by more
    than `caliper` pooled standard deviations (Rosenbaum & Rubin, 1985). Returns their indices.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    spread = np.concatenate([a, b]).std(0)
    scale = np.where(spread > 0, spread, 1.0)
    apart = np.abs(a[:, None] - b[None, :]) / scale
    distance = np.where((apart <= caliper).all(-1), apart.sum(-1), np.inf)
    pairs = []
    for i in np.random.default_rng(seed).permutation(len(a)):
        j = int(distance[i].argmin()) if len(b) else 0
        if len(b) and np.isfinite(distance[i, j]):
            pairs.append((i, j))
            distance[:, j] = np.inf
    found = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
