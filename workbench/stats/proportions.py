"""Scores of items, right or wrong: their shares, and how a share changes on the same items.

Resampling items that are all alike says nothing of those that were not drawn: ten right answers of
ten would be a certain 1. So a share of items that are right or wrong has Wilson's score interval,
and its change on the same items Newcombe's, everywhere; only scores in between, and items in
clusters, are resampled. Which numbers are scores the caller knows and the values do not tell: a
change in which nothing moved is all zeros too, and so is the divergence of a model from itself.
Clusters vary less than if their items were all alike, so that where resampling them gives no width
the score interval of so many items as there are clusters is too wide, if anything.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.stats.intervals import Interval, Intervals, bootstrap, ratios

Floats = NDArray[np.float64]
Z = 1.959963984540054  # the normal distribution's 97.5th percentile


def wilson(count: float, n: float) -> Interval:
    """A share of n items with Wilson's 95% score interval; NaN of nothing. count may be a fraction,
    of items that are partly right. Source: Wilson (1927)."""
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    low, high = _wilson(np.array(count / n), np.array(float(n)))
    return Interval(count / n, float(low), float(high), int(n))


def share(
    scores: ArrayLike, *, clusters: ArrayLike | None = None, seed: int = 0, draws: int = 2000
) -> Interval:
    """The mean score of items, with a 95% interval: Wilson's where each is 0 or 1 and stands alone.

    scores: (items,), 0 wrong to 1 right. clusters: (items,), see `bootstrap`, whose interval scores
    in between and clusters have; where that has no width Wilson's of so many items, or clusters.
    Scores outside 0 to 1 have the bootstrap's. One item, or one cluster, has no interval: it shows
    nothing of how they differ. NaN of nothing.
    """
    scores = np.asarray(scores, dtype=float)
    units, alone = _units(scores, clusters)
    if alone and units > 1 and _binary(scores):
        return wilson(float(scores.sum()), scores.size)
    found = bootstrap(scores, clusters=clusters, seed=seed, draws=draws)
    if units < 2 or found.low < found.high or not _within(scores):
        return found
    return wilson(found.value * units, units)._replace(value=found.value, n=found.n)


def shares(scores: ArrayLike, *, seed: int = 0, draws: int = 1000) -> Intervals:
    """`share` of many: scores (k, items) or (items,), of which those that are NaN are left out;
    scores in between are resampled together, see `ratios`."""
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    known = np.isfinite(scores)
    binary = (~known | np.isin(scores, (0, 1))).all(1)
    n = known.sum(1)
    sums = np.where(known, scores, 0.0).sum(1)
    value = np.divide(sums, n, out=np.full(len(n), np.nan), where=n > 0)
    low, high = np.full((2, len(n)), np.nan)
    if not binary.all():
        _, low[~binary], high[~binary], _ = ratios(scores[~binary], seed=seed, draws=draws)
    within = (~known | ((scores >= 0) & (scores <= 1))).all(1)
    here = (n > 1) & within & (binary | ~(low < high))
    low[here], high[here] = _wilson(value[here], n[here])
    return Intervals(value, low, high, n)


def change(
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    same: bool = False,
    seed: int = 0,
) -> Interval:
    """How the mean score changes from `before` to `after` on the same items, with a 95% interval.

    before, after: (items,), 0 wrong to 1 right. Newcombe's interval (`paired_shares`) where each is
    0 or 1 and stands alone; else that of the differences by `bootstrap`, and where that has no
    width Newcombe's of so many items, or clusters. same: before and after are one and the same
    model, whose scores do not differ on any other item either: 0, without width. One item, or one
    cluster, has no interval. NaN of nothing.
    """
    before, after = (np.asarray(side, dtype=float) for side in (before, after))
    units, alone = _units(before, clusters)
    if same and units > 1:
        return Interval(0.0, 0.0, 0.0, before.size)
    if alone and units > 1 and _binary(before) and _binary(after):
        return paired_shares(before, after)
    found = bootstrap(after - before, clusters=clusters, seed=seed)
    if units < 2 or found.low < found.high or not (_within(before) and _within(after)):
        return found
    return _newcombe(before, after, units)._replace(value=found.value, n=found.n)


def paired_shares(before: ArrayLike, after: ArrayLike) -> Interval:
    """The change of a share, after - before, on the same items, with Newcombe's hybrid score
    interval: Wilson's of either side, combined by the correlation of the two, which is corrected
    for continuity. It has width where nothing changed.

    before, after: (items,), 0 or 1. NaN of nothing. Source: Newcombe (1998), Statistics in Medicine
    17:2635, method 10.
    """
    before, after = (np.asarray(side, dtype=float) for side in (before, after))
    if not before.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    return _newcombe(before, after, before.size)


def proportion(found: Interval) -> Interval:
    """`found`, or where it has no width, or none because it is of one item, Wilson's score interval
    over its n items; for a mean whose items are no longer known. See `share` where they are."""
    single = found.n == 1 and np.isnan(found.low)
    if not (found.low == found.high or single) or not found.n or not 0 <= found.value <= 1:
        return found
    return wilson(found.value * found.n, found.n)._replace(value=found.value, n=found.n)


def combined(
    first: Interval, second: Interval, correlation: float, value: float | None = None
) -> tuple[float, float]:
    """(low, high) of first - second from the intervals of either and the correlation of the two
    estimates; value: of the difference, where it is known more exactly. Source: Newcombe (1998),
    see `paired_shares`; Zou (2007), Psychological Methods 12:399, for any two statistics."""
    value = first.value - second.value if value is None else value
    below = (first.value - first.low, second.high - second.value)
    above = (first.high - first.value, second.value - second.low)
    low, high = (
        math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0)) for a, b in (below, above)
    )
    return value - low, value + high


def _newcombe(before: Floats, after: Floats, units: int) -> Interval:
    """`paired_shares` of so many units: the items, or the clusters whose means they stand for."""
    first, last, both = (float(part.mean()) for part in (before, after, before * after))
    # ad - bc of the table of counts is n^2 times the covariance.
    covariance = both - first * last
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * units), 0.0)
    scale = math.sqrt(first * (1 - first) * last * (1 - last))
    correlation = covariance / scale if scale > 0 else 0.0
    sides = wilson(last * units, units), wilson(first * units, units)
    value = float((after - before).mean())
    return Interval(value, *combined(*sides, correlation, value), before.size)


def _wilson(value: Floats, n: ArrayLike) -> tuple[Floats, Floats]:
    """(low, high) of shares of n items. value: (...), n: (...)."""
    n = np.asarray(n, dtype=float)
    scale = 1 + Z**2 / n
    centre = (value + Z**2 / (2 * n)) / scale
    half = Z * np.sqrt(np.maximum(value * (1 - value), 0) / n + Z**2 / (4 * n**2)) / scale
    # At 0 and 1 the ends are those themselves, but for rounding.
    return np.where(value <= 0, value, centre - half), np.where(value >= 1, value, centre + half)


def _units(scores: Floats, clusters: ArrayLike | None) -> tuple[int, bool]:
    """How many are resampled, and whether these are the items."""
    units = scores.size if clusters is None else len(np.unique(np.asarray(clusters)))
    return units, units == scores.size


def _binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _within(scores: Floats) -> bool:
    return bool(scores.size) and bool(((scores >= 0) & (scores <= 1)).all())
