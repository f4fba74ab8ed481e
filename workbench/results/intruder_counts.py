"""How many intruders does a table of cosines hold, at any eps and k, and how many do its nulls?

Only matrices that fine-tuning changed are counted: one that it left alone has no intruder whatever
was done elsewhere, and would make a share a matter of how many matrices a recipe names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.results.result import Result, changed_rows
from workbench.stats import predicted

TUNED = "tuned"
# The first that a table has is what its counts are read against. Spectrum: the change's singular
# values in random directions; BA: factors of its rank and norm; delta: a dense matrix of its norm.
NULLS = {
    "same_spectrum": "same spectrum",
    "random_lowrank": "random BA",
    "random_delta": "random delta",
}


def decided_only(result: Result) -> bool:
    """Whether `result` holds decisions at the eps of its run and no cosines (method "decide")."""
    return not (result.table["metric"] == "max_cosine").any()


def settings(result: Result, eps: float | None = None, k: int | None = None) -> tuple[float, int]:
    """(eps, k): those given, else those the analysis ran with, else the paper's 0.5 and 10.

    Raises where k is more than the analysis stored per matrix, or eps another than the one that a
    Result without cosines was decided at.
    """
    parameters = result.provenance.parameters
    metric = "intruder" if decided_only(result) else "max_cosine"
    stored = int(result.metric(metric)["rank"].max()) + 1
    own = float(parameters.get("eps", 0.5))
    if decided_only(result) and eps is not None and eps != own:
        raise WorkbenchError(
            f"Expected eps {own:g}, at which this Result was decided (method 'decide' stores no "
            f"cosines), found {eps:g}; run spectral.intruders at that eps, or with method auto."
        )
    eps = own if eps is None else eps
    k = min(int(parameters.get("k", 10)), stored) if k is None else k
    if not 1 <= k <= stored:
        raise WorkbenchError(
            f"Expected k from 1 to {stored}, the vectors stored per matrix, found {k}; "
            "run spectral.intruders again with a larger k."
        )
    return eps, k


def intruder_counts(
    result: Result,
    eps: float | Sequence[float] | None = None,
    k: int | None = None,
    *,
    by: Sequence[str] = ("member",),
) -> pd.DataFrame:
    """Intruders among the top k vectors of every matrix that changed, at any eps, from the stored
    cosines.

    A vector is an intruder iff max_cosine < eps (arXiv 2410.21228). eps, k: default to those the
    analysis ran with. by: columns to group by, e.g. ("member", "layer", "component"). A Result of
    method "decide" is counted at its own eps alone, without the vectors that it left undecided.
    Returns the columns of `by`, arm ("tuned", or a null of NULLS), eps, k, count, n (vectors looked
    at), fraction (count / n; NaN where nothing changed), and of a null of several draws low and
    high: the count is then their mean, and the count of one more draw lies between these with
    probability 0.95.
    Raises as `settings` does.
    """
    first, k = settings(result, None, k)
    thresholds = np.atleast_1d(np.asarray(first if eps is None else eps, dtype=float))
    only = decided_only(result)
    for one in thresholds if only else ():
        settings(result, float(one), k)
    wanted = "intruder" if only else "max_cosine"
    name = result.table["metric"].str.partition(":")
    rows = result.table.assign(arm=name[2].where(name[2] != "", TUNED))
    rows = rows[(name[0] == wanted) & (rows["rank"] < k) & rows["value"].notna()]
    here = rows.index.isin(changed_rows(result.table).index)
    values = rows["value"].to_numpy(dtype=float)
    found = []
    for one in thresholds:
        hit = here & (values > 0.5 if only else values < one)
        groups = rows.assign(count=hit, n=here).groupby([*by, "arm"], sort=False, dropna=False)
        found.append(groups[["count", "n"]].sum().reset_index().assign(eps=one, k=k))
    counts = pd.concat(found, ignore_index=True).astype({"count": int, "n": int})
    counts = _over_draws(counts[[*by, "arm", "eps", "k", "count", "n"]], [*by, "arm", "eps"])
    return counts.assign(fraction=counts["count"] / counts["n"].where(counts["n"] > 0))


def _over_draws(counts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The draws of one null, named "NULL:DRAW", as their mean with the spread of a further one."""
    name = counts["arm"].str.partition(":")
    counts = counts.assign(arm=name[0])
    drawn = counts[name[2] != ""]
    rest = counts[name[2] == ""].assign(low=np.nan, high=np.nan)
    if drawn.empty:
        return rest
    groups = drawn.groupby(keys, sort=False, dropna=False)
    means = groups.agg(k=("k", "first"), count=("count", "mean"), n=("n", "first"))
    over = groups["count"].agg(["var", "size"])
    # D draws cannot tell a spread from one in which one of them had another count by one.
    variance = np.maximum(over["var"].fillna(0), 1 / over["size"])
    low, high = predicted(means["count"], variance, over["size"])
    edges = {"low": np.clip(low, 0, means["n"]), "high": np.clip(high, 0, means["n"])}
    return pd.concat([rest, means.assign(**edges).reset_index()], ignore_index=True)


def against_chance(count: float, low: float, high: float) -> str:
    """How a count stands to the spread of its null."""
    if count > high:
        return "more than chance"
    return "fewer than chance" if count < low else "no more than chance"
