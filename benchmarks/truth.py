"""How often is every method right? The scoreboard as a table for people.

    python -m benchmarks.truth --out benchmarks/results [--only NAME]... [--phantoms 1] [--seed 0]

All methods, the workbench's and those of others, on every compiled pair and on phantoms of these;
`workbench.scoreboard.board` says what is counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import workbench as wb
from benchmarks.common import machine, save, table
from workbench.log import quiet
from workbench.results.result import Result
from workbench.scoreboard.board import ALL
from workbench.scoreboard.ours import WITHOUT
from workbench.scoreboard.outside import NORM
from workbench.scoreboard.summary import summary


def lines(found: Result) -> list[str]:
    """The page: a row for each method, where the norm is better, what is refused, and what has no
    truth yet."""
    told = summary(found)
    rows = [{str(name): cell for name, cell in row.items()} for row in told.to_dict("records")]
    whole = found.table[found.table["truth"] == ALL]
    beaten = whole[(whole["metric"] == "beyond_norm") & (whole["value"] < 0)]
    worse = [
        f"- {row['method']} by {row['place']}: {row['value']:+.2f} "
        f"({row['low']:.2f} to {row['high']:.2f}, {row['n']:.0f} pairs)"
        for _, row in beaten.sort_values("value").iterrows()
    ]
    refused = found.table[(found.table["metric"] == "refused") & (found.table["truth"] != ALL)]
    why = refused.groupby(["method", "says"], sort=False)["truth"].agg(", ".join)
    return [
        "# How often is a method right?", "",
        "Every method on compiled pairs, whose change is known since every weight was written by "
        "construction, and on phantoms of them: members whose change has the same norms and "
        "singular values in random directions. auroc: the chance that a true place has a higher "
        "score than another (0.5: chance), its mean over pairs with a 95% interval; beyond_norm: "
        "less that of the norm of the weight change, paired; found and false_positive: pairs in "
        "which the method says by its own rule that something was learned, where it was and where "
        "it was not; verdict_right: of kept, suppressed and erased. forwards: prompts through a "
        "whole model. Attention is saturated in these models, and circuits are sharper than "
        "trained ones. `make truth` makes this table anew.", "",
        *table(rows, [str(name) for name in told.columns]), "",
        f"## Where the {NORM} is better", "", *(worse or ["Nowhere."]), "",
        "## Pair by pair", "", *_pairs(found), "",
        "## What was refused", "",
        *([f"- {who}: {says} ({pairs})" for (who, says), pairs in why.items()] or ["Nothing."]),
        "", "## Analyses without a truth yet", "",
        *(f"- {name}: {reason}" for name, reason in WITHOUT.items()),
    ]  # fmt: skip


def _pairs(found: Result) -> list[str]:
    """AUROC of every method and kind of place, a column a pair."""
    rows = found.table[(found.table["metric"] == "auroc") & (found.table["truth"] != ALL)]
    rows = rows.assign(method=rows["method"] + ", " + rows["place"])
    grid = rows.pivot_table(index="method", columns="truth", values="value", sort=False)
    cells = grid.map(lambda value: "" if value != value else f"{value:.2f}").reset_index()
    return table(
        [{str(k): v for k, v in row.items()} for row in cells.to_dict("records")],
        [str(name) for name in cells.columns],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--phantoms", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with quiet():
        found = wb.truth(only=asked.only, phantoms=asked.phantoms, seed=asked.seed)
    whole = found.table[found.table["truth"] == ALL].dropna(axis=1, how="all")
    kept = {
        "machine": machine(), "seed": asked.seed, "phantoms": asked.phantoms,
        "rows": [
            {str(name): value for name, value in row.items() if value == value}  # NaN is no JSON
            for row in whole.round(4).to_dict("records")
        ],
    }  # fmt: skip
    save(asked.out, "truth", kept, lines(found))


if __name__ == "__main__":
    main()
