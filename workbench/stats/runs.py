"""From training runs to recipes: an interval over items is widened by how far the runs of one
recipe lie apart.

Prompts say how these models would do on other prompts; only other runs say how the recipe would do.
The two are independent causes, so their half-widths add as squares, on each side of the value: as
in the pigeonhole bootstrap, which resamples rows (runs) and columns (items) of a table and is
mildly conservative, because what one run does on one item counts in both (Owen 2007, Annals of
Applied Statistics 1(2), arXiv 0712.1111). Few runs leave heavy tails, which a bootstrap of three or
five of them cannot show, so their part is Student's t with Welch's degrees of freedom.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from workbench.stats.intervals import Interval


def over_runs(within: Interval, first: ArrayLike, second: ArrayLike | None = None) -> Interval:
    """`within` as an interval over other runs of the recipes too.

    within: a mean over the runs of one recipe, or the difference of two recipes' means, with its
    95% interval over items. first, second: (runs,) the value of each run of the recipes. Where a
    recipe has one run its spread is taken to be the other's; where no recipe has two, `within` is
    returned: nothing is known of other runs. Sources: Welch (1947), Biometrika 34; adding squares
    of half-widths: Zou & Donner (2008), doi:10.1002/sim.3095, eq. 7.
    """
    half = _half(*(np.asarray(side, dtype=float) for side in (first, second) if side is not None))
    low = within.value - math.hypot(within.value - within.low, half)
    return within._replace(
        low=low, high=within.value + math.hypot(within.high - within.value, half)
    )


def _half(*sides: np.ndarray) -> float:
    """Half the 95% interval of the difference of means of runs; 0 where no side has two runs."""
    from scipy.stats import t

    known = [side for side in sides if side.size > 1]
    if not known:
        return 0.0
    freedom = sum(side.size - 1 for side in known)
    pooled = sum(float(side.var(ddof=1)) * (side.size - 1) for side in known) / freedom
    parts = [float(side.var(ddof=1)) / side.size if side.size > 1 else pooled for side in sides]
    total = sum(parts)
    if not total > 0:
        return math.nan if math.isnan(total) else 0.0
    if len(known) == len(sides):
        freedom = total**2 / sum(
            part**2 / (side.size - 1) for part, side in zip(parts, sides, strict=True)
        )
    return float(t.ppf(0.975, freedom)) * math.sqrt(total)


def between_runs(runs: ArrayLike) -> Interval:
    """The standard deviation between runs of one recipe, with its 95% interval if they are
    Gaussian (chi squared); NaN of a single run. runs: (runs,)."""
    from scipy.stats import chi2

    values = np.asarray(runs, dtype=float)
    n = values.size
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    spread = float(values.std(ddof=1))
    low, high = (spread * math.sqrt((n - 1) / chi2.ppf(edge, n - 1)) for edge in (0.975, 0.025))
    return Interval(spread, low, high, n)
