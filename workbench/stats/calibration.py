"""How far confidences lie from the share of answers that are right."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.stats.intervals import Interval, edges


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

    confidence, correct: (items,). The estimate is biased upwards: sampling alone moves every bin
    away from its confidence, and resampling moves it once more, so that a percentile interval of it
    never holds an error near 0. Here the interval of the first ends, below, where the bins' gaps
    may have come from by sampling: the estimate less the 97.5th percentile of the mean distance of
    the resampled gaps from those found, which no error exceeds by more (the triangle inequality);
    and at 0 where the estimate is within the second's range. Above, it ends at the resampled
    errors' expanded percentile. It covers 95% or more, see `python -m benchmarks.coverage`; of one
    item there is none. The second has the 95% range of errors when each answer is right with its
    own confidence: an error within that range shows nothing.
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    n, random = sure.size, np.random.default_rng(seed)
    picks = random.integers(0, n, (draws, n))
    spread = calibration_error(sure[picks], right[picks], bins=bins, mass=mass)
    null = calibration_error(sure, random.random((draws, n)) < sure, bins=bins, mass=mass)
    value = float(calibration_error(sure, right, bins=bins, mass=mass))
    lowest, highest = np.quantile(null, [0.025, 0.975])
    _, high = edges(spread, n)
    within = value <= highest
    low = 0.0 if within else max(value - _moved(sure, right, picks, bins, mass=mass), 0.0)
    low, high = (low, max(high, value)) if n > 1 else (math.nan, math.nan)
    return (
        Interval(value, low, high, n),
        Interval(float(null.mean()), float(lowest), float(highest), n),
    )


def _moved(
    sure: NDArray[np.float64],
    right: NDArray[np.float64],
    picks: NDArray[np.int64],
    bins: int,
    *,
    mass: bool,
) -> float:
    """How far resampling moves the bins' gaps in sum, at most in 95% of the resamples, both tails
    counted. sure, right: (items,); picks: (draws, items)."""
    n = sure.size
    place = bin_of(sure, bins, mass=mass)
    gaps = np.where(place[:, None] == np.arange(bins), (sure - right)[:, None], 0.0)
    moved = np.empty(len(picks))
    for draw, items in enumerate(picks):
        times = np.bincount(items, minlength=n) - 1.0
        moved[draw] = np.abs(times @ gaps).sum() / n
    return edges(moved, n)[1]
