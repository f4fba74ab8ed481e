"""What follows from the order of values alone, and items that are alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.stats.intervals import Interval, levels
from workbench.stats.proportions import Z, combined

PERMUTATIONS = 10_000


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


def spearman_p(first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0) -> float:
    """The two-sided p of Spearman's correlation, over all pairings of the entries where there are
    at most 10,000, else over as many draws; NaN where one side does not vary."""
    from scipy.stats import permutation_test, spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")

    def statistic(paired: NDArray[np.float64]) -> float:
        return float(np.asarray(spearmanr(paired, second).statistic))

    test = permutation_test(
        (first,), statistic, permutation_type="pairings", n_resamples=PERMUTATIONS, rng=seed
    )
    return float(test.pvalue)


def auc(first: ArrayLike, second: ArrayLike) -> Interval:
    """The chance that a value of `first` exceeds one of `second`, ties counting half, with a 95%
    interval that has width where the groups do not overlap.

    first: (n,). second: (m,). n of the Interval is n + m. NaN of an empty group; no interval where
    one has a single value. The interval holds every chance from which the one found lies no more
    than 1.96 deviations away, by Hanley & McNeil's variance at that chance, as for two exponential
    distributions and with the two sizes averaged. Where the smaller of two very unequal groups
    varies more than the larger it covers less: about 88% for 5 against 30 values of half the
    deviation. Sources: Hanley & McNeil, Radiology 143 (1982): the area under the ROC curve is the
    Mann-Whitney statistic over n m; Newcombe (2006), Statistics in Medicine 25:559, method 5.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    n, m = a.size, b.size
    if not (n and m):
        return Interval(math.nan, math.nan, math.nan, n + m)
    found = float(_larger(a, b).mean())
    if min(n, m) < 2:
        return Interval(found, math.nan, math.nan, n + m)
    return Interval(found, _end(found, 0.0, n, m), _end(found, 1.0, n, m), n + m)


def auc_difference(
    first_a: ArrayLike, second_a: ArrayLike, first_b: ArrayLike, second_b: ArrayLike
) -> Interval:
    """auc(first_a, second_a) - auc(first_b, second_b) of two measures a and b of the same items,
    with a 95% interval.

    first_a, first_b: (n,), both measures of each item of one group; second_a, second_b: (m,), of
    the other. The two intervals of `auc` are combined by the correlation of the two areas (DeLong,
    DeLong & Clarke-Pearson 1988, Biometrics 44:837), so that the difference of two perfect
    separations has width too. Equal measures differ by 0, without width. NaN of an empty group, no
    interval where one has a single item.
    """
    a, b = (
        tuple(np.asarray(part, dtype=float) for part in one)
        for one in ((first_a, second_a), (first_b, second_b))
    )
    one, other = auc(*a), auc(*b)
    value = one.value - other.value
    if np.isnan(one.low):
        return Interval(value, math.nan, math.nan, one.n)
    if all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)):
        return Interval(0.0, 0.0, 0.0, one.n)
    larger = _larger(*a), _larger(*b)
    # Each item's share of the other group: the two areas vary together as these shares do.
    of_first, of_second = (np.cov(*(part.mean(axis) for part in larger)) for axis in (1, 0))
    n, m = larger[0].shape
    covariance = of_first / n + of_second / m
    scale = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
    correlation = float(covariance[0, 1]) / scale if scale > 0 else 0.0
    return Interval(value, *combined(one, other, correlation, value), one.n)


def _larger(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, m): 1 where the value of `first` is the larger, 1/2 where they are equal."""
    return np.sign(first[:, None] - second[None, :]) / 2 + 0.5


def _end(found: float, end: float, n: int, m: int) -> float:
    """The chance furthest from the one found towards `end`, 0 or 1, that it may be one of."""
    size = (n + m) / 2 - 1

    def within(chance: float) -> bool:
        alike = (1 - chance) / (2 - chance) + chance / (1 + chance)
        variance = chance * (1 - chance) * (1 + size * alike) / (n * m)
        return (chance - found) ** 2 <= Z**2 * variance

    near, far = found, end
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if within(middle) else (near, middle)
    return near


def nearest_pairs(
    first: ArrayLike, second: ArrayLike, *, caliper: float = 0.25, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of items, one of each group, that agree in every covariate.

    first: (n, covariates). second: (m, covariates). Greedy, in random order, without replacement:
    each item of `first` takes the nearest free item of `second`, if no covariate differs by more
    than `caliper` standard deviations within the groups, sqrt((s_1^2 + s_2^2) / 2) (Rosenbaum &
    Rubin 1985, The American Statistician 39). Those of both groups thrown together would grow with
    the distance between them, and two groups far apart would match. A covariate that does not vary
    within either group must be the same. Returns their indices.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    within = [side.var(0, ddof=1) for side in (a, b) if len(side) > 1]
    spread = np.sqrt(np.mean(within, axis=0)) if within else np.zeros(a.shape[1])
    scale = np.where(spread > 0, spread, 1e-12)
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
