"""Partial rank correlation: do two measures agree beyond what a third explains of both?

The ranks x, y and z of the three (mean ranks of ties) are regressed on z with an intercept, and
what is left of x and y is correlated:

    rho(x, y | z) = corr(x - x^(z), y - y^(z))
                  = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))

with Spearman's r on the right. A constant z explains nothing, and leaves Spearman's rho. The p is
that of Freedman & Lane (1983, doi:10.1080/07350015.1983.10509354): what is left of y is dealt to
the entries anew, put back on y^(z), and the correlation taken again, without ranking anew.
Residuals are not quite exchangeable, so that this p is exact only in the limit of many entries;
over every order it has at least no error of drawing.

It misleads if z is measured with error, or goes with y through no straight line of ranks: then
something of z stays in the residuals.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from workbench.stats import Interval, edges

LEAST = 4  # entries: with three, one number is left of each side, and any two agree or disagree
ROUNDING = 1e-9  # of a sum of squares of ranks, which are halves of whole numbers
Floats = NDArray[np.float64]


def partial_spearman(
    first: Floats, second: Floats, given: Floats, *, seed: int = 0, draws: int = 1000
) -> Interval:
    """rho(first, second | given) of three (entries,), with a 95% percentile bootstrap over entries.

    NaN for fewer than four entries, or where `given` explains all the ranks of one side, as it does
    of a constant.
    """
    from scipy.stats import rankdata

    n = len(first)
    if n < LEAST:
        return Interval(math.nan, math.nan, math.nan, n)
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n))
    picks = np.concatenate([np.arange(n)[None], drawn])
    x, y, z = (rankdata(side[picks], axis=1) for side in (first, second, given))
    found = _cosine(_left(x, z), _left(y, z))
    known = found[1:][np.isfinite(found[1:])]
    if np.isnan(found[0]):
        return Interval(math.nan, math.nan, math.nan, n)
    return Interval(float(found[0]), *edges(known, n), n)


def partial_p(
    first: Floats, second: Floats, given: Floats, *, seed: int = 0, most: int = 10_000
) -> float:
    """Two-sided p of `partial_spearman`, over every order of the residuals of `second` if there are
    at most `most` of them, else over as many drawn ones and the one there is; NaN where that is."""
    from scipy.stats import rankdata

    n = len(first)
    if n < LEAST:
        return math.nan
    x, y, z = (rankdata(side)[None] for side in (first, second, given))
    ours, theirs = _left(x, z), _left(y, z)
    if np.isnan(_cosine(ours, theirs)[0]):
        return math.nan
    if math.factorial(n) <= most:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        there = np.arange(n)[None]
        drawn = np.random.default_rng(seed).permuted(np.repeat(there, most, 0), axis=1)
        orders = np.concatenate([there, drawn])
    # What z explains of the permuted y is y^(z) itself and what it explains of the residuals.
    found = _cosine(ours, _left(theirs[0][orders], np.broadcast_to(z, orders.shape)))
    seen = np.abs(np.nan_to_num(found)) >= abs(found[0]) - ROUNDING
    return float(seen.mean())


def _left(ranks: Floats, given: Floats) -> Floats:
    """(rows, entries): what a straight line of `given` leaves of each row of ranks."""
    y, z = (side - side.mean(1, keepdims=True) for side in (ranks, given))
    # Where z is constant it is zero here, and the slope as well.
    spread = np.maximum((z**2).sum(1, keepdims=True), ROUNDING)
    return y - (y * z).sum(1, keepdims=True) / spread * z


def _cosine(first: Floats, second: Floats) -> Floats:
    """(rows,) of two (rows, entries); NaN where either is nothing but rounding."""
    a, b = (first**2).sum(-1), (second**2).sum(-1)
    known = (a > ROUNDING) & (b > ROUNDING)
    found = (first * second).sum(-1) / np.sqrt(np.where(known, a * b, 1))
    return np.where(known, np.clip(found, -1, 1), np.nan)  # but for rounding it is within
