"""How does a verdict of `findings.equivalence` depend on its margin? In closed form.

A difference with the 95% interval [low, high] is alike within a margin m if -m <= low and
high <= m, so that there is one margin from which on it is alike,

    m* = max(|low|, |high|)          of a ratio: the larger of high and 1 / low

and below m* it is different if the interval leaves out no difference (0, of a ratio 1), else
undecided. No other margin changes anything. The smaller m* is, the finer the difference that the
data rule out; a verdict whose margin lies near m* turns with a slightly other choice.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.results.result import Result

COLUMNS = ["measure", "member", "versus", "arm", "margin", "says", "alike_from", "below"]


def sensitivity(result: Result) -> pd.DataFrame:
    """The margin at which each verdict turns, a row a difference of `findings.equivalence`.

    Columns measure, member, versus; arm, "difference" or "ratio"; the margin that was used and what
    the difference says with it; alike_from, the smallest margin at which it is alike, in the
    measure's own unit or as a factor (NaN where the interval is not known: undecided at every
    margin); and below, what it says at every smaller margin, "different" or "undecided".
    """
    rows = result.table[result.table["metric"] == "difference"]
    ratio = (rows["arm"] == "ratio").to_numpy(bool)
    low, high = (rows[edge].to_numpy(float) for edge in ("low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    nothing = np.where(ratio, 1.0, 0.0)
    apart = known & ((low > nothing) | (high < nothing))
    with np.errstate(divide="ignore"):
        largest = np.where(ratio, np.maximum(high, 1 / low), np.maximum(-low, high))
    told = rows.assign(
        alike_from=np.where(known, largest, np.nan),
        below=np.where(apart, "different", "undecided"),
    )
    return told[COLUMNS].reset_index(drop=True)
