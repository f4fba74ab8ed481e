"""How far confidences lie from the share of answers that are right."""

from __future__ import annotations

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
