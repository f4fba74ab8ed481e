"""How often is every method right? The scoreboard as a table for people.

    python -m benchmarks.truth --out benchmarks/results [--only NAME]... [--phantoms 1] [--seed 0]
        [--draws 40] [--workers 2] [--organisms FOLDER] [--compiled-only]

All methods, the workbench's and those of others, on every compiled pair and on phantoms of these,
and on trained organisms, of which so many prompts are asked as a method can be asked quickly;
`workbench.scoreboard.board` says what is counted. Organisms are made where they are not there yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import workbench as wb
from benchmarks.common import machine, save, table
from workbench.lab.known import Known
from workbench.lab.organism import behaviour, holds
from workbench.lab.organisms import organisms
from workbench.lab.shipped_organisms import shipped_organisms
from workbench.loaders.devices import cores
from workbench.log import quiet
from workbench.results.result import Result
from workbench.scoreboard.ours import METHODS
from workbench.scoreboard.outside import NORM
from workbench.scoreboard.over_truths import ALL
from workbench.scoreboard.summary import summary

FAMILY = Path("data/family")
ASKED = 12  # prompts of an organism


def trained(folder: Path | None) -> tuple[list[Known], list[str]]:
    """The shipped members and the organisms of every recipe whose answers bear out what is said of
    them, with a few prompts each; and the names of the others."""
    every = [*shipped_organisms(FAMILY), *organisms(FAMILY / "base", folder)]
    borne = [holds(one, behaviour(one)) for one in every]
    left = [one.known.name for one, fine in zip(every, borne, strict=True) if not fine]
    return [one.known.few(ASKED) for one, fine in zip(every, borne, strict=True) if fine], left


def of_organisms(only: Sequence[str]) -> list[str]:
    """The methods that so few prompts are enough for: a verdict is of none below twice eight."""
    return [*only] or [one.name for one in METHODS if not one.decides]


def lines(found: Result, organisms: Result | None, left: Sequence[str]) -> list[str]:
    """The page: a row for each method, on compiled pairs and on organisms, where the norm is
    better, pair by pair, and what is refused."""
    return [
        "# How often is a method right?", "",
        "Every method on compiled pairs, whose change is known since every weight was written by "
        "construction, and on phantoms of them: members whose change has the same norms and "
        "singular values in random directions. auroc: the chance that a true place has a higher "
        "score than another (0.5: chance), its mean over pairs with a 95% interval; beyond_norm: "
        "less that of the norm of the weight change, paired; beyond_phantom: the share of pairs "
        "whose highest score is above that of their own phantom (0.5: it says as much of a change "
        "that learned nothing); found and false_positive: pairs in which the method says by its "
        "own rule that something was learned, where it was and where it was not, or, of methods "
        "that only give verdicts, verdicts that claim what is not there; verdict_right: of kept, "
        "suppressed, erased and overconfident; coverage: of stated 95% intervals for a mean over "
        "prompts, the share that holds the mean over all prompts; blank where a method states none "
        "or none that varies on the pairs that are asked. forwards: prompts through a "
        "whole model. Attention is saturated in these models, and circuits are sharper than "
        "trained ones. `make truth` makes this table anew.", "",
        *_summary(found), "",
        f"## Where the {NORM} is better", "", *_worse(found), "",
        *(_trained(organisms, left) if organisms is not None else []),
        "## Pair by pair", "", *_pairs(found), "",
        "## What was refused", "", *_refused(found), "",
        *_left_out(found),
    ]  # fmt: skip


def _trained(organisms: Result, left: Sequence[str]) -> list[str]:
    return [
        "## Trained organisms", "",
        f"The same of {_pairs_of(organisms)} models, members of the shipped family and models "
        f"trained by recipe from its base, each asked {ASKED} of its prompts, and of a phantom of "
        "each; methods that give a verdict need more prompts and are not asked. Left out, since "
        f"their answers do not bear out what is said of them: {', '.join(left) or 'none'}. Places "
        "inside a model are known of those alone whose weights were written; of the others it is "
        "known which prompts they are about, and what became of the answers.", "",
        *_summary(organisms), "",
        "### Organism by organism", "", *_pairs(organisms), "",
        "### What was refused", "", *_refused(organisms), "",
    ]  # fmt: skip


def _left_out(found: Result) -> list[str]:
    """The methods that this run did not ask."""
    missing = [one.name for one in METHODS if one.name not in {*found.table["method"]}]
    return (
        ["## Not asked in this run", "", *(f"- {name}" for name in missing), ""] if missing else []
    )


def _summary(found: Result) -> list[str]:
    told = summary(found)
    rows = [{str(name): cell for name, cell in row.items()} for row in told.to_dict("records")]
    return table(rows, [str(name) for name in told.columns])


def _pairs_of(found: Result) -> int:
    learned = found.table[found.table["kind"].isin(["compiled", "trained"])]
    return int(learned["truth"].nunique())


def _worse(found: Result) -> list[str]:
    whole = found.table[found.table["truth"] == ALL]
    beaten = whole[(whole["metric"] == "beyond_norm") & (whole["value"] < 0)]
    worse = [
        f"- {row['method']} by {row['place']}: {row['value']:+.2f} "
        f"({row['low']:.2f} to {row['high']:.2f}, {row['n']:.0f} pairs)"
        for _, row in beaten.sort_values("value").iterrows()
    ]
    return worse or ["Nowhere."]


def _refused(found: Result) -> list[str]:
    """Each reason once, without the folders that are in it."""
    every = found.table
    rows = every[(every["metric"] == "refused") & (every["truth"] != ALL)]
    says = rows["says"].str.replace(r"\S*/(base|tuned)\b", r"the \1", regex=True)
    why = rows.assign(says=says).groupby(["method", "says"], sort=False)["truth"].agg(", ".join)
    return [f"- {who}: {says} ({pairs})" for (who, says), pairs in why.items()] or ["Nothing."]


def _pairs(found: Result) -> list[str]:
    """AUROC of every method and kind of place, a column a pair."""
    cells = _grid(found).map(lambda value: "" if value != value else f"{value:.2f}").reset_index()
    return table(
        [{str(k): v for k, v in row.items()} for row in cells.to_dict("records")],
        [str(name) for name in cells.columns],
    )


def _grid(found: Result) -> pd.DataFrame:
    """AUROC by "method, kind of place" and pair."""
    rows = found.table[(found.table["metric"] == "auroc") & (found.table["truth"] != ALL)]
    rows = rows.assign(method=rows["method"] + ", " + rows["place"])
    return rows.pivot_table(index="method", columns="truth", values="value", sort=False)


def write(
    out: Path,
    asked: dict[str, Any],
    found: Result,
    organisms: Result | None,
    left: Sequence[str] = (),
) -> None:
    """The page, and the rows over all pairs."""
    parts = {"rows": found} | ({"organisms": organisms} if organisms is not None else {})
    kept = {name: _kept(one) for name, one in parts.items()}
    kept |= {"auroc": _grid(found).round(4).apply(lambda row: row.dropna().to_dict(), 1).to_dict()}
    save(out, "truth", {"machine": machine()} | asked | kept, lines(found, organisms, left))


def _kept(found: Result) -> list[dict[str, Any]]:
    whole = found.table[found.table["truth"] == ALL].dropna(axis=1, how="all")
    return [
        {str(name): value for name, value in row.items() if value == value}  # NaN is no JSON
        for row in whole.round(4).to_dict("records")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--phantoms", type=int, default=1)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--workers", type=int, default=min(8, cores()), help="processes that ask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--organisms", type=Path, help="where they are kept; the cache by default")
    parser.add_argument("--compiled-only", action="store_true", help="no organisms")
    given = parser.parse_args()
    asked: dict[str, Any] = {"phantoms": given.phantoms, "seed": given.seed}
    run = asked | {"workers": given.workers}
    with quiet():
        found = wb.truth(only=given.only, draws=given.draws, **run)
        organisms, left = None, []
        if not given.compiled_only:
            known, left = trained(given.organisms)
            organisms = wb.truth(only=of_organisms(given.only), truths=known, **run)
    write(given.out, asked | {"draws": given.draws}, found, organisms, left)


if __name__ == "__main__":
    main()
