"""Pure maths that analyses share: intervals for means and ratios over items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd


PICKS = 1 << 20  # items that a bootstrap draws at once
LEAST = 8  # items of a group, to say anything of its mean


class Interval(NamedTuple):
    """A mean with its 95% percentile-bootstrap interval over `n` items."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, row: Mapping[str, Any] | pd.Series) -> Interval:
        """What a row of a Result's table says."""
        return cls(row["value"], row["low"], row["high"], int(row["n"]))


def bootstrap(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    clusters: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Interval:
    """Mean of `values` over items, with a 95% percentile bootstrap over those items.

    values: (items,). weights: (items,), e.g. tokens per text; the statistic is then the ratio of
    sums, sum(values * weights) / sum(weights), resampled by item. For a paired comparison pass the
    differences. Items of weight 0 are left out, and out of n. A single item has no interval: low
    and high are NaN. clusters: (items,), what each item belongs to, where several ask about the
    same passage or fact: whole clusters are resampled, and one alone has no interval; n stays that
    of the items. Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13;
    for clusters Davison & Hinkley, Bootstrap Methods (1997), section 3.8.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    counted = weights > 0
    tops, bottoms = (values * weights)[counted], weights[counted]
    n = tops.size
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    value = float(tops.sum() / bottoms.sum())
    if clusters is not None:
        _, of = np.unique(np.asarray(clusters)[counted], return_inverse=True)
        tops, bottoms = np.bincount(of, tops), np.bincount(of, bottoms)
    rng, at_once, means = np.random.default_rng(seed), max(1, PICKS // tops.size), np.empty(draws)
    for begin in range(0, draws, at_once):  # one stream of picks, in parts that bound the memory
        part = means[begin : begin + at_once]
        picks = rng.integers(0, tops.size, size=(part.size, tops.size))
        part[:] = tops[picks].sum(1) / bottoms[picks].sum(1)
    return Interval(value, *edges(means, tops.size), int(n))


def edges(drawn: NDArray[np.float64], n: int) -> tuple[float, float]:
    """The middle 95% of the draws of a statistic of n items; NaN for fewer than two, whose draws
    are all alike."""
    if n < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


class Intervals(NamedTuple):
    """Many statistics over the same `n` items: value, low, high, each (k,)."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]

    @property
    def first(self) -> Interval:
        """The first, of one statistic the only one."""
        return Interval(*(part[0] for part in self))


def ratios(
    tops: ArrayLike, bottoms: ArrayLike | None = None, *, seed: int = 0, draws: int = 1000
) -> Intervals:
    """Ratios of sums over items, or means, each with a 95% percentile bootstrap over the items.

    tops: (k, items). bottoms: (items,) or (k, items); None for means. Items that are NaN in either
    are left out of that ratio, and out of its n. All k are resampled together, so that they can be
    compared. A ratio whose bottom sums to zero is NaN, and one item has
    no interval.
    """
    above = np.atleast_2d(np.asarray(tops, dtype=float))
    below = np.ones_like(above) if bottoms is None else np.asarray(bottoms, dtype=float)
    below = np.broadcast_to(below, above.shape)
    known = np.isfinite(above) & np.isfinite(below)
    above, below = np.where(known, above, 0.0), np.where(known, below, 0.0)
    items = above.shape[1]
    chances = np.full(max(items, 1), 1 / max(items, 1))
    drawn = np.random.default_rng(seed).multinomial(items, chances, size=draws)
    times = drawn[:, :items].astype(float)
    value, low, high = (np.full(len(above), np.nan) for _ in range(3))
    for begin in range(0, len(above), 1000):  # bounds the memory of (draws, k)
        part = slice(begin, begin + 1000)
        value[part] = whole = _quotient(above[part].sum(1), below[part].sum(1))
        each = _quotient(times @ above[part].T, times @ below[part].T)
        defined = np.isfinite(whole)
        found = np.nanquantile(np.where(defined, each, 0.0), [0.025, 0.975], axis=0)
        several = known[part].sum(1) > 1
        low[part], high[part] = np.where(defined & several, found, np.nan)
    return Intervals(value, low, high, known.sum(1))


def difference(first: Interval, second: Interval) -> Interval:
    """first - second, with the 95% interval that follows from the two sides' own, taken as
    independent; n: of the smaller side. Source: Zou & Donner (2008), doi:10.1002/sim.3095, eq. 7.
    """
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - float(below), value + float(above), min(first.n, second.n))


def wilson(count: int, n: int) -> Interval:
    """A share of n items with Wilson's score interval; NaN of nothing. Source: Wilson (1927)."""
    from scipy.stats import binomtest

    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    edges = binomtest(count, n).proportion_ci(method="wilson")
    return Interval(count / n, float(edges.low), float(edges.high), n)


def proportion(found: Interval) -> Interval:
    """`found`, or where it has no width, or none because it is of one item, Wilson's score interval
    over its n items: resampling items that are all alike says nothing of those that were not
    drawn."""
    single = found.n == 1 and np.isnan(found.low)
    if not (found.low == found.high or single) or not found.n or not 0 <= found.value <= 1:
        return found
    count = int(found.n)
    edges = wilson(round(found.value * count), count)
    # Where value * n is no whole number the edges are those of the nearest.
    low, high = min(edges.low, found.value), max(edges.high, found.value)
    return found._replace(low=float(low), high=float(high))


def predicted(
    mean: ArrayLike, variance: ArrayLike, draws: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(low, high): where one more draw of a null lies with probability 0.95, by the mean and the
    variance of those there are, if they are Gaussian. Source: Student's t for a new observation,
    e.g. Hahn & Meeker, Statistical Intervals (1991), 4.7. Infinitely wide for a single draw."""
    from scipy.stats import t

    mean, variance, draws = (np.asarray(part, dtype=float) for part in (mean, variance, draws))
    wide = t.ppf(0.975, np.maximum(draws - 1, 1)) * np.sqrt(variance * (1 + 1 / draws))
    wide = np.where(draws > 1, wide, np.inf)
    return mean - wide, mean + wide


def share_of(tops: ArrayLike, bottoms: ArrayLike, *, seed: int = 0) -> Interval:
    """`ratios` of one pair, NaN unless the bottom's own 95% interval lies above 0: a share of
    something that may be nothing says nothing."""
    found = ratios(tops, bottoms, seed=seed).first
    if ratios(bottoms, seed=seed).low[0] > 0:
        return found
    return found._replace(value=np.nan, low=np.nan, high=np.nan)


def halves(n: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two random halves of n items, one to choose on and one to report on."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 :]


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


def _quotient(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """top / bottom, NaN where the bottom is nothing but rounding."""
    vanishes = np.abs(bottom) < 1e-9
    return np.where(vanishes, np.nan, top / np.where(vanishes, 1.0, bottom))


def spearman(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0, draws: int = 1000
) -> Interval:
    """Spearman's correlation of two (entries,), with a 95% percentile bootstrap over entries; NaN
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
    low, high = np.nanquantile(found[1:], [0.025, 0.975])
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


def bin_of(confidence: NDArray[np.float64], bins: int, *, mass: bool) -> NDArray[np.int64]:
    """Which of `bins` each confidence lies in, along the last axis, from 0.

    Of equal width over [0, 1]; mass: between quantiles of the values themselves. A value on an edge
    belongs below it, as in Guo et al. 2017 (arXiv 1706.04599) and scikit-learn.
    """
    parts = np.linspace(0, 1, bins + 1)
    if not mass:
        return np.searchsorted(parts[1:-1], confidence)
    # numpy puts the parts first.
    edges = np.quantile(confidence, parts[1:-1], axis=-1)[..., None]
    place = np.zeros(confidence.shape, dtype=np.int64)
    for edge in edges:
        place += confidence > edge
    return place


def calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, mass: bool = False
) -> NDArray[np.float64]:
    """Expected calibration error: |mean confidence - accuracy|, mean over bins by their items.

    confidence: in [0, 1], correct: 0 or 1, both (..., items); one value per row. bins, mass: see
    `bin_of`. Sources: Naeini et
    al., AAAI 2015 (width); Nixon et al. 2019, arXiv 1904.01685 (mass).
    """
    sure, right = np.broadcast_arrays(
        np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    )
    place = bin_of(sure, bins, mass=mass)
    gap = sure - right
    sums = [np.abs(np.where(place == b, gap, 0).sum(-1)) for b in range(bins)]
    return np.sum(sums, axis=0) / sure.shape[-1]


def calibration(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = 10,
    mass: bool = False,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[Interval, Interval]:
    """(the calibration error, that of a perfectly calibrated model with these confidences).

    confidence, correct: (items,). The first has a 95% percentile bootstrap over items, the second
    the 95% range of errors when each answer is right with its own confidence: the estimate is
    biased upwards, and an error within that range shows nothing.
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    n, random = sure.size, np.random.default_rng(seed)
    picks = random.integers(0, n, (draws, n))
    spread = calibration_error(sure[picks], right[picks], bins=bins, mass=mass)
    null = calibration_error(sure, random.random((draws, n)) < sure, bins=bins, mass=mass)
    value = float(calibration_error(sure, right, bins=bins, mass=mass))
    lowest, highest = np.quantile(null, [0.025, 0.975])
    return (
        Interval(value, *edges(spread, n), n),
        Interval(float(null.mean()), float(lowest), float(highest), n),
    )
