"""A scoreboard as people read it: a row for each method and kind of place."""

from __future__ import annotations

import pandas as pd

from workbench.results.result import Result
from workbench.scoreboard.over_truths import ALL

MEANS = ("auroc", "average_precision", "beyond_norm", "beyond_phantom")
SHARES = ("found", "false_positive", "verdict_right")
COLUMNS = (
    "method", "place", *MEANS, "pairs", *SHARES, "coverage", "forwards", "seconds", "refused",
)  # fmt: skip


def summary(result: Result) -> pd.DataFrame:
    """A row for each method and kind of place: means over pairs with 95% intervals, and once a
    method the shares of pairs, with their number, and what all of it cost."""
    own = result.table[result.table["truth"] == ALL]
    made = []
    for method, mine in own.groupby("method", sort=False):
        whole = mine[mine["place"].isna()].set_index("metric")
        kinds = list(dict.fromkeys(mine["place"].dropna())) or [""]
        for kind in kinds:
            at = mine[mine["place"] == kind].set_index("metric")
            row = {"method": method, "place": kind}
            row |= {name: _between(at.loc[name]) for name in MEANS if name in at.index}
            if "auroc" in at.index:
                row["pairs"] = f"{at.loc['auroc', 'n']:.0f}"
            if kind == kinds[0]:
                row |= {name: _share(whole.loc[name]) for name in SHARES if name in whole.index}
                if "coverage" in whole.index:
                    row["coverage"] = _between(whole.loc["coverage"])
                row |= {
                    name: f"{whole.loc[name, 'value']:.0f}"
                    for name in ("forwards", "seconds", "refused")
                    if name in whole.index
                }
            made.append(row)
    return pd.DataFrame(made, columns=pd.Index(COLUMNS)).fillna("")


def _between(row: pd.Series) -> str:
    low, high = row["low"], row["high"]
    told = f"{row['value']:.2f}"
    return told if pd.isna(low) else f"{told} ({low:.2f} to {high:.2f})"


def _share(row: pd.Series) -> str:
    return f"{row['value'] * row['n']:.0f} of {row['n']:.0f}"
