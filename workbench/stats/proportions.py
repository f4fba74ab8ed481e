"""Shares of items, and their score intervals."""

from __future__ import annotations

import math

import numpy as np

from workbench.stats.intervals import Interval


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
