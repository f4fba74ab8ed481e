"""Intervals of means and ratios over items, and what follows from them.

The interval of a bootstrap is the expanded percentile one. The plain one, from the 2.5th to the
97.5th percentile, is too narrow for few items: the resamples vary by sqrt((n - 1) / n) too little,
and take the deviation they estimate for known. The expanded one takes the percentiles further out
by the two factors by which Student's interval of a mean exceeds z times the deviation over n
(Hesterberg 2015, The American Statistician 69(4), section 5). It still covers less than 95% where
the items are strongly skewed, or fewer than about 8, beyond whose range no resample reaches: 76% of
three normal values, 93% of eight (benchmarks/results/coverage.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

PICKS = 1 << 20  # items that a bootstrap draws at once
FEW = 1 << 18  # numbers of resamples that are kept, 2 MiB


class Interval(NamedTuple):
    """A statistic of `n` items with its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, row: Mapping[str, Any] | pd.Series) -> Interval:
        """What a row of a Result's table says."""
        return cls(row["value"], row["low"], row["high"], int(row["n"]))


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


def bootstrap(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    clusters: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Interval:
    """Mean of `values` over items, with a 95% bootstrap interval over those items.

    values: (items,). weights: (items,), e.g. tokens per text; the statistic is then the ratio of
    sums, sum(values * weights) / sum(weights), resampled by item. For a paired comparison pass the
    differences. Items of weight 0 are left out, and out of n. A single item has no interval: low
    and high are NaN. clusters: (items,), what each item belongs to, where several ask about the
    same passage or fact: whole clusters are resampled, and one alone has no interval; n stays that
    of the items, but the interval's width is that of so many clusters. For scores, right or wrong,
    see `share` and `change`. Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993),
    chapter 13; for clusters Davison & Hinkley, Bootstrap Methods (1997), section 3.8.
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
    """The expanded 95% percentile interval from the draws of a statistic of n items; NaN for fewer
    than two, whose draws are all alike. drawn: (draws,)."""
    if n < 2:
        return math.nan, math.nan
    low, high = np.quantile(drawn, levels(int(n)))
    return float(low), float(high)


@cache
def levels(n: int) -> tuple[float, float]:
    """The two percentiles, as shares, between which the draws of a statistic of n items, two or
    more, are its expanded 95% interval: Phi(+-sqrt(n / (n - 1)) t), t of n - 1 degrees of freedom.
    Source: Hesterberg (2015), see above; .025 and .975 for many."""
    from scipy.special import ndtr, stdtrit

    low = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))
    return low, 1 - low


def ratios(
    tops: ArrayLike, bottoms: ArrayLike | None = None, *, seed: int = 0, draws: int = 1000
) -> Intervals:
    """Ratios of sums over items, or means, each with a 95% bootstrap interval over the items.

    tops: (k, items). bottoms: (items,) or (k, items); None for means. Items that are NaN in either
    are left out of that ratio, and out of its n. All k are resampled together, so that they can be
    compared. A ratio whose bottom sums to zero is NaN, and one item has no interval. For scores,
    right or wrong, see `shares`. Memory beside tops and bottoms is bounded, whatever their size.
    """
    every = np.atleast_2d(np.asarray(tops, dtype=float))
    under = np.broadcast_to(1.0 if bottoms is None else np.asarray(bottoms, float), every.shape)
    counts = np.zeros(len(every), dtype=np.int64)
    value, low, high = (np.full(len(every), np.nan) for _ in range(3))
    for begin in range(0, len(every), 1000):  # bounds the memory of (draws, k)
        part = slice(begin, begin + 1000)
        known = np.isfinite(every[part]) & np.isfinite(under[part])
        above, below = np.where(known, every[part], 0.0), np.where(known, under[part], 0.0)
        counts[part] = known.sum(1)
        value[part] = _quotient(above.sum(1), below.sum(1))
        own = np.flatnonzero(np.isfinite(value[part]) & (counts[part] > 1))
        shown = begin + own
        if not len(shown):
            continue
        top, bottom, each = above[own].T, below[own].T, np.empty((draws, len(shown)))
        for place, times in _resamples(every.shape[1], seed, draws):
            each[place] = _quotient(times @ top, times @ bottom)
        for n in np.unique(counts[shown]):
            own = counts[shown] == n
            low[shown[own]], high[shown[own]] = _percentiles(each[:, own], levels(int(n)))
    return Intervals(value, low, high, counts)


def _percentiles(drawn: NDArray[np.float64], at: tuple[float, float]) -> NDArray[np.float64]:
    """Of the draws of each column that have a value, (2, columns); NaN for a column without."""
    missing = np.isnan(drawn)
    if not missing.any():  # numpy goes through the columns one by one where there are any
        return np.quantile(drawn, at, axis=0)
    found, some = np.full((2, drawn.shape[1]), np.nan), ~missing.all(0)
    found[:, some] = np.nanquantile(drawn[:, some], at, axis=0)
    return found


def _resamples(items: int, seed: int, draws: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """How often each item is in each resample, (some draws, items), and which draws these are: one
    stream of draws for a seed, in parts that bound the memory."""
    if items * draws <= FEW:
        yield slice(0, draws), _few_resamples(items, seed, draws)
        return
    random, at_once = np.random.default_rng(seed), max(1, PICKS // items)
    for begin in range(0, draws, at_once):
        size = min(at_once, draws - begin)
        yield slice(begin, begin + size), _multinomial(random, items, size)


@lru_cache(maxsize=16)
def _few_resamples(items: int, seed: int, draws: int) -> NDArray[np.float64]:
    """Kept, since a table asks for the same ones of every column."""
    found = _multinomial(np.random.default_rng(seed), items, draws)
    found.flags.writeable = False
    return found


def _multinomial(random: np.random.Generator, items: int, draws: int) -> NDArray[np.float64]:
    return random.multinomial(items, np.full(items, 1 / items), size=draws).astype(float)


def _quotient(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """top / bottom, NaN where the bottom is nothing but rounding."""
    vanishes = np.abs(bottom) < 1e-9
    return np.where(vanishes, np.nan, top / np.where(vanishes, 1.0, bottom))


def share_of(tops: ArrayLike, bottoms: ArrayLike, *, seed: int = 0) -> Interval:
    """`ratios` of one pair, NaN unless the bottom's own 95% interval lies above 0: a share of
    something that may be nothing says nothing. Where it is told, it is covered like a mean, also
    when most samples of such a bottom would have none (benchmarks/results/coverage.md)."""
    found = ratios(tops, bottoms, seed=seed).first
    if ratios(bottoms, seed=seed).low[0] > 0:
        return found
    return found._replace(value=np.nan, low=np.nan, high=np.nan)


def difference(first: Interval, second: Interval) -> Interval:
    """first - second, with the 95% interval that follows from the two sides' own, taken as
    independent; n: of the smaller side. Source: Zou & Donner (2008), doi:10.1002/sim.3095, eq. 7.
    """
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - float(below), value + float(above), min(first.n, second.n))


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


def halves(n: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two random halves of n items, one to choose on and one to report on."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 :]


def others(n: int, seed: int) -> list[int]:
    """Another one of n items for each, so that each is taken once; itself where it is alone."""
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, dtype=int)
    found[order] = np.roll(order, 1)
    return found.tolist()
