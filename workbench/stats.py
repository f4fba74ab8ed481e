"""Pure maths that two analyses share: intervals for means and ratios over items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A mean with its 95% percentile-bootstrap interval over `n` items."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: ArrayLike, weights: ArrayLike | None = None, *, seed: int = 0, draws: int = 2000
) -> Interval:
    """Mean of `values` over items, with a 95% percentile bootstrap over those items.

    values: (items,). weights: (items,), e.g. tokens per text; the statistic is then the ratio of
    sums, sum(values * weights) / sum(weights), resampled by item. For a paired comparison pass the
    differences. A single item gives the degenerate interval (value, value).
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    if values.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(seed).integers(0, values.size, size=(draws, values.size))
    means = (values * weights)[picks].sum(1) / weights[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    value = float((values * weights).sum() / weights.sum())
    return Interval(value, float(low), float(high), int(values.size))
