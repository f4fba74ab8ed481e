"""What does bfloat16 change? Every analysis that runs a model, in both precisions, side by side.

python -m benchmarks.precision --out benchmarks/results [--device cuda]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import workbench as wb
from benchmarks.common import DTYPES, machine, table
from workbench.files.writing import OWN, writing
from workbench.lab import shipped
from workbench.results.result import Result

FAMILY = Path(__file__).parents[1] / "data" / "family"
MEMBERS = ("lora-r16", "full")
MEASURED = ("value", "low", "high", "n", "baseline", "p", "probability")


def calls(n: int) -> dict[str, tuple[Callable[..., Result], dict[str, Any]]]:
    """name -> an analysis and its arguments, on n held-out prompts a set."""
    task, boxes, facts = (shipped.held_out(name, n) for name in ("ledger", "boxes", "facts"))
    worked: dict[str, Any] = {"between": " .", "filler": ";", "mistake": wb.tasks.off_by_one}
    named = {"ledger": task, "boxes": boxes}
    behind = {"2-shot": wb.tasks.many_shot(facts, facts, count=2, between=" . ")}
    located: dict[str, Any] = {"prompts": task, "controls": 2}
    return {
        "tuco.contribution": (wb.tuco.contribution, {"prompts": named}),
        "tuco.scaling": (wb.tuco.scaling, {"prompts": task, "alphas": (0.0, 0.5, 1.0, 1.1)}),
        "patching.cross_model": (wb.patching.cross_model, located),
        "patching.restore": (wb.patching.restore, {"prompts": task}),
        "patching.lens": (wb.patching.lens, {"prompts": task}),
        "forgetting.retention": (wb.forgetting.retention, {"prompts": [task, boxes]}),
        "forgetting.interpolate": (wb.forgetting.interpolate, {"prompts": task, "others": [boxes]}),
        "forgetting.knowledge": (
            wb.forgetting.knowledge, {"prompts": facts, "between": " . ", "sets": 3},
        ),
        "forgetting.conjugate": (
            wb.forgetting.conjugate, {"prompts": facts, "conjugates": behind, "task": task},
        ),
        "forgetting.probe": (wb.forgetting.probe, {"prompts": boxes, "folds": 2}),
        "forgetting.prune": (wb.forgetting.prune, {"prompts": boxes, "task": task, "random": 1}),
        "behaviour.tokens": (wb.behaviour.tokens, {"prompts": task.texts, "show": 0}),
        "behaviour.faithfulness": (wb.behaviour.faithfulness, {"prompts": task} | worked),
    }  # fmt: skip


def compared(exact: Result, rough: Result) -> dict[str, Any]:
    """Over the rows with an interval: the largest difference in units of the interval's half-width
    (above 1: bfloat16 moves a value out of its interval), its metric, and the median one."""
    tables = []
    for one in (exact, rough):
        keys = [c for c in one.table.columns if c not in MEASURED]
        rows = one.table[one.table["high"].notna()].copy()
        tables.append(rows.assign(**{key: rows[key].astype(str) for key in keys}))
    keys = [c for c in exact.table.columns if c not in MEASURED]
    joined = tables[0].merge(tables[1], on=keys, suffixes=("", "_rough"))
    apart = (joined["value"] - joined["value_rough"]).abs()
    # An interval without width (all items alike) has no half-width to measure in.
    half = ((joined["high"] - joined["low"]) / 2).where(lambda width: width > 1e-9)
    ratio = (apart / half).fillna(0.0)
    worst = int(np.argmax(ratio.to_numpy()))
    return {
        "rows": len(joined), "worst": str(joined["metric"].iloc[worst]),
        "float32": float(joined["value"].iloc[worst]),
        "bfloat16": float(joined["value_rough"].iloc[worst]),
        "in_half_widths": float(ratio.iloc[worst]), "median": float(ratio.median()),
        "outside": float((ratio > 1).mean()),
        "largest_without": float(apart[half.isna()].max()) if half.isna().any() else 0.0,
    }  # fmt: skip


def measure(n: int, device: str) -> pd.DataFrame:
    rows = []
    asked = [(name, *call, member) for name, call in calls(n).items() for member in MEMBERS]
    for name, call, arguments, member in tqdm(asked, desc="precision", disable=None):
        pair = wb.load_pair(str(FAMILY / "base"), str(FAMILY / member))
        exact, rough = (call(pair, **arguments, dtype=d, device=device) for d in DTYPES)
        rows.append({"analysis": name, "member": member} | compared(exact, rough))
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows, where = measure(given.prompts, given.device), machine(given.device)
    lines = [
        f"bfloat16 against float32 on the shipped family, {given.prompts} prompts a set: "
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['device']}, "
        f"{where['date']}. Differences in half-widths of the float32 value's 95% interval, over "
        "all rows that have one: the largest with its metric and both values, the median, and the "
        "share of rows above 1; and the largest plain difference where the interval has no width.",
        "",
        *table(rows.to_dict("records"), list(rows.columns)),
    ]
    made = {"machine": where, "prompts": given.prompts, "rows": rows.to_dict("records")}
    for name, text in (
        ("precision.md", "\n".join(lines) + "\n"),
        ("precision.json", json.dumps(made, indent=1)),
    ):
        with writing(given.out / name, OWN) as fresh:
            fresh.write_text(text)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
