"""What does the table of findings say of nothing? Null data read by the very rules that it has.

    python -m benchmarks.nulls figures/seeds --out benchmarks/results [--families 200] [--seed 0]

Three kinds of null, each made of the runs that are kept:

(a) seeds: runs of one recipe dressed as two methods, some as LoRA of rank 4 and some as full; every
    way to deal five runs two to three, and one run a side, which shows what seeds are for;
(b) prompts: one model on two halves of its prompts and texts, as if it were two models;
(c) labels: two models whose names are exchanged at random, item by item.

Counted are the families whose verdict speaks for a claim, in whole or in part: of null data 5% may.
Against a claim null data may speak rightly: a LoRA that is dressed as a full fine-tune has
intruders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import save, table
from workbench import stats
from workbench.findings import CLAIMS, findings
from workbench.findings.verdicts import IN_ONE_RUN, NOT, REPRODUCED, UNDECIDED
from workbench.results.recipes import recipes
from workbench.results.result import Result
from workbench.stats import bootstrap, share

READ = ("forgetting.retention", "spectral.intruders")
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "recipe": "null"}
FULL = {"kind": "full", "recipe": "null"}


def dressed(results: Sequence[Result], lora: Sequence[str], full: Sequence[str]) -> list[Result]:
    """These runs as two recipes, whatever they are."""
    names = {run: f"lora-s{i}" for i, run in enumerate(lora)}
    names |= {run: f"full-s{i}" for i, run in enumerate(full)}
    return [_renamed(one, names) for one in results]


def _renamed(one: Result, names: dict[str, str]) -> Result:
    rows = one.table[one.table["member"].isin(list(names))]
    members = {
        new: (LORA if new.startswith("lora") else FULL)
        | {"seed": int(new.rpartition("-s")[2]), "fingerprint": new}
        for new in names.values()
    }
    provenance = replace(one.provenance, members=members)
    table = rows.assign(member=rows["member"].map(names)).reset_index(drop=True)
    return Result(one.analysis, table, provenance)


def seeds(results: Sequence[Result], sizes: tuple[int, int]) -> Iterator[list[Result]]:
    """(a): every way to deal the runs of each recipe to two sides of these sizes."""
    for runs in recipes(results[0].provenance.members).values():
        for first in combinations(runs, sizes[0]):
            rest = [run for run in runs if run not in first]
            for second in combinations(rest, sizes[1]):
                yield dressed(results, first, second)


def prompts(kept: Result, families: int, rng: np.random.Generator) -> Iterator[list[Result]]:
    """(b): two halves of the items of one run, each under a name of its own."""
    members = list(kept.provenance.members)
    for _ in range(families):
        run = members[rng.integers(len(members))]
        yield [_of(kept, _halves(kept, run, rng))]


def labels(kept: Result, families: int, rng: np.random.Generator) -> Iterator[list[Result]]:
    """(c): two runs of any recipes, and of every item a coin says whose is whose."""
    members = list(kept.provenance.members)
    for _ in range(families):
        first, second = (members[i] for i in rng.choice(len(members), 2, replace=False))
        ours, theirs = (_items(kept, run).reset_index(drop=True) for run in (first, second))
        heads = np.broadcast_to(rng.random((len(ours), 1)) < 0.5, ours.shape)
        yield [_of(kept, (ours.where(heads, theirs), theirs.where(heads, ours)))]


def _items(kept: Result, run: str) -> pd.DataFrame:
    rows = kept.table[(kept.table["member"] == run)]
    return rows[rows["metric"].isin(("item", "item_loss"))].sort_values(["metric", "prompt"])


def _halves(kept: Result, run: str, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    first: list[pd.DataFrame] = []
    second: list[pd.DataFrame] = []
    for _, own in _items(kept, run).groupby("metric"):
        order = rng.permutation(len(own))
        first.append(own.iloc[order[: len(own) // 2]])
        second.append(own.iloc[order[len(own) // 2 :]])
    return pd.concat(first), pd.concat(second)


def _measured(items: pd.DataFrame, member: str) -> pd.DataFrame:
    """These items with their means, as the analysis gives them."""
    texts, asked = (items[items["metric"] == metric] for metric in ("item_loss", "item"))
    loss = bootstrap(texts["value"] - texts["baseline"], texts["tokens"])._asdict()
    score = share(asked["value"])._asdict()
    means = pd.DataFrame([
        {"task": texts["task"].iloc[0], "metric": "loss_change", "baseline": 0.0} | loss,
        {"task": asked["task"].iloc[0], "metric": "score", "baseline": 0.0} | score,
    ])  # fmt: skip
    return pd.concat([means, items]).assign(member=member)


def _of(kept: Result, sides: tuple[pd.DataFrame, pd.DataFrame]) -> Result:
    """The items of two sides as a LoRA and a full fine-tune."""
    names = ("lora-s0", "full-s0")
    parts = [_measured(own, name) for own, name in zip(sides, names, strict=True)]
    one = Result(kept.analysis, pd.concat(parts), kept.provenance)
    return _renamed(one, dict(zip(names, names, strict=True)))


def decided(families: Iterator[list[Result]]) -> Iterator[dict[str, Any]]:
    """Of every claim that is read: families, and how many of them decide it."""
    verdicts: dict[str, list[str]] = {}
    for results in families:
        table = findings(results)
        for claim in CLAIMS:
            rows = table[table["claim"] == claim.name] if len(table) else table
            if len(rows):
                verdicts.setdefault(claim.name, []).append(str(rows["verdict"].iloc[0]))
    against = {NOT, IN_ONE_RUN[NOT]}
    for claim, found in verdicts.items():
        count = sum(one not in (UNDECIDED, *against) for one in found)
        interval = stats.wilson(count, len(found))
        yield {
            "claim": claim, "families": len(found), "for": count, "share": interval.value,
            "low": interval.low, "high": interval.high,
            "against": sum(one in against for one in found),
            "reproduced": sum(one == REPRODUCED for one in found),
        }  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("run", type=Path)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--families", type=int, default=200)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    results = [Result.load(given.run / "results" / name) for name in READ]
    rng = np.random.default_rng(given.seed)
    kept = results[0]
    kinds = {
        "seeds of one recipe, two runs against three": seeds(results, (2, 3)),
        "seeds of one recipe, one run a side": seeds(results, (1, 1)),
        "one model, two halves of the prompts": prompts(kept, given.families, rng),
        "labels shuffled item by item": labels(kept, given.families, rng),
    }
    rows = [{"null": name} | row for name, own in kinds.items() for row in decided(own)]
    lines = [
        "# What does the table of findings say of nothing?", "",
        f"Null data made of the kept runs of {given.run.name}, seed {given.seed}, read by the "
        "rules of the table of findings. For: families whose verdict speaks for the claim, in "
        "whole or in part, their share with its 95% interval, which should hold .05; with one run "
        "a side that is \"holds in one run\" at most. Against: null data may speak so rightly, as "
        "where a LoRA is dressed as a full fine-tune that should have no intruders. Two claims "
        "that are each other's opposite share their readings. Families of one kind share their "
        "runs, so the intervals are too narrow.",
        "",
        *table(rows, list(rows[0])),
    ]  # fmt: skip
    save(given.out, "nulls", {"seed": given.seed, "rows": rows}, lines)


if __name__ == "__main__":
    main()
