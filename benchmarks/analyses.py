"""Every analysis of the catalogue on a device, against the numbers that a CPU stored.

    python -m benchmarks.analyses --device cuda --out out/gpu
    python -m benchmarks.analyses --store     on a CPU, where numbers changed for a reason

Each analysis once in float32 and, where it runs a model, once in bfloat16, on a tiny pair of the
same bits everywhere. float32 passes where all words and counts are the CPU's and all numbers within
FLOAT32, what other kernels and other orders of their sums may change. bfloat16 passes where it is
as near the CPU's float32 as the CPU's own bfloat16 is: the median over rows of the difference, in
half-widths of the float32 value's 95% interval (of a number without one: in tenths of it), at most
TWICE that of the CPU or a QUARTER of a half-width, and the rows whose words differ (another token
was said, another head chosen) at most twice as many or a twentieth. Where the pair's bits are not
the stored ones, the CPU's numbers are made on the spot, and that is said.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import machine, save, table
from workbench.files.writing import OWN, writing
from workbench.study.catalogue import ANALYSES

STORED = Path(__file__).parent / "results" / "cpu-reference.json.gz"
PROMPTS = 12  # the fewest that every analysis takes
FLOAT32 = {"rtol": 2e-3, "atol": 5e-4}
TWICE, QUARTER, TWENTIETH = 2.0, 0.25, 0.05
# Seconds on a CPU: a dry run, and what the tests hold to the stored numbers.
QUICK = (
    "spectral.delta_spectrum", "spectral.similarity", "forgetting.conjugate", "tuco.contribution",
    "patching.restore", "patching.lens", "behaviour.tokens", "skills.calibration",
)  # fmt: skip
WEIGHTS_ALONE = {one.key for one in ANALYSES if not one.runs}
Table = dict[str, Any]  # numbers: column -> floats; words: column -> texts


def plain(frame: pd.DataFrame) -> Table:
    """A table as JSON holds it: numbers to seven digits, NaN as null, everything else as text."""
    floats = [name for name in frame if pd.api.types.is_float_dtype(frame[name])]
    numbers = {
        str(name): [
            None if np.isnan(value) else float(f"{value:.7g}")
            for value in frame[name].to_numpy(float, na_value=np.nan)
        ]
        for name in floats
    }
    words = {
        str(name): ["" if pd.isna(value) else str(value) for value in frame[name]]
        for name in frame
        if name not in floats
    }
    return {"numbers": numbers, "words": words}


def as_arrays(one: Table) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype=float) for name, values in one["numbers"].items()}


def exact(found: Table, wanted: Table) -> dict[str, Any]:
    """The largest difference in units of the tolerance, and whether everything agrees."""
    rows = len(next(iter(wanted["numbers"].values())))
    if found["words"] != wanted["words"] or set(found["numbers"]) != set(wanted["numbers"]):
        return {"rows": rows, "largest": float("nan"), "says": "other words", "ok": False}
    largest, place = 0.0, ""
    ours, theirs = as_arrays(found), as_arrays(wanted)
    for name in theirs:
        if (np.isnan(ours[name]) != np.isnan(theirs[name])).any():
            return {"rows": rows, "largest": float("nan"), "says": f"NaN in {name}", "ok": False}
        room = FLOAT32["atol"] + FLOAT32["rtol"] * np.abs(theirs[name])
        apart = np.nan_to_num(np.abs(ours[name] - theirs[name]) / room)
        if apart.size and apart.max() > largest:
            row = int(apart.argmax())
            largest, place = float(apart[row]), f"{name} of {wanted['words']['metric'][row]}"
    return {"rows": rows, "largest": largest, "says": place, "ok": largest <= 1}


def rows_of(one: Table) -> dict[tuple[Any, ...], tuple[float, float]]:
    """What a row says of itself in words, and which of those that say so it is -> its value and the
    half-width of its interval (NaN without one)."""
    numbers = as_arrays(one)
    keys = [one["words"][name] for name in one["words"] if name != "n"]
    none = np.full(len(numbers["value"]), np.nan)
    half = (numbers.get("high", none) - numbers.get("low", none)) / 2
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    seen: dict[tuple[Any, ...], int] = {}
    for at, key in enumerate(zip(*keys, strict=True)):
        seen[key] = seen.get(key, 0) + 1
        found[*key, seen[key]] = float(numbers["value"][at]), float(half[at])
    return found


def rough(found: Table, wanted: Table) -> dict[str, float]:
    """How far from the exact numbers: median and largest difference in half-widths, and the share
    of rows that only one of the two has."""
    ours, theirs = rows_of(found), rows_of(wanted)
    both = [key for key in theirs if key in ours]
    apart = []
    for key in both:
        value, half = theirs[key]
        unit = half if half > 1e-9 else max(abs(value) / 10, 1e-2)
        difference = abs(ours[key][0] - value) / unit
        apart += [difference] if np.isfinite(difference) else []
    alone = 1 - len(both) / max(len(ours), len(theirs), 1)
    return {
        "median": float(np.median(apart)) if apart else 0.0,
        "largest": max(apart, default=0.0), "alone": alone,
    }  # fmt: skip


def judged(found: Table, stored: Mapping[str, Any], key: str, dtype: str) -> dict[str, Any]:
    """The row of one analysis in one precision."""
    wanted = stored["float32"][key]
    if dtype == "float32":
        return exact(found, wanted)
    ours, cpu = rough(found, wanted), rough(stored["bfloat16"][key], wanted)
    near = ours["median"] <= max(QUARTER, TWICE * cpu["median"])
    same = ours["alone"] <= max(TWENTIETH, TWICE * cpu["alone"])
    told = f"median {ours['median']:.2g}, CPU {cpu['median']:.2g}; " + (
        f"rows alone {ours['alone']:.0%}, CPU {cpu['alone']:.0%}"
    )
    rows = len(next(iter(wanted["numbers"].values())))
    return {"rows": rows, "largest": ours["largest"], "says": told, "ok": near and same}


def ready(threads: int) -> None:
    """In a worker, before its first analysis."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    # No TF32: float32 products in float32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-analyses-")
    logging.disable()


def run(folder: str, key: str, dtype: str, device: str) -> tuple[Table, float]:
    """One analysis, which reads its models anew, and its seconds."""
    import workbench as wb
    from tests.calls import CALLS, Asked
    from workbench.forgetting import side_answers

    side_answers._KEPT.clear()
    pair = wb.load_pair(Path(folder) / "base", Path(folder) / "tuned")
    precision = {} if key in WEIGHTS_ALONE else {"dtype": dtype}
    start = time.perf_counter()
    made = CALLS[key](pair, Asked(PROMPTS), batch_size=4, device=device, **precision)
    return plain(made.table), time.perf_counter() - start


def all_runs(
    folder: Path, device: str, keys: list[tuple[str, str]], workers: int
) -> Iterator[tuple[str, str, Table | str, float]]:
    """key, precision, table (or what went wrong) and seconds, as they are done."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), ready, (threads,)) as pool:
        asked = {pool.submit(run, str(folder), *one, device): one for one in keys}
        for done in as_completed(asked):
            key, dtype = asked[done]
            error = done.exception()
            if error is not None:
                yield key, dtype, f"{type(error).__name__}: {error}"[:300], 0.0
            else:
                yield key, dtype, *done.result()


def everything(only: Sequence[str] | None = None) -> list[tuple[str, str]]:
    from tests.calls import CALLS

    chosen = [key for key in CALLS if not only or key in only]
    whole = [(key, "float32") for key in chosen]
    return whole + [(key, "bfloat16") for key in chosen if key not in WEIGHTS_ALONE]


def signature(pair: Any) -> str:
    """sha256 of both sides' numbers, whatever their files say beside them."""
    from workbench.loaders.checkpoint import tensor_bytes

    found = hashlib.sha256()
    for side in (pair.base.weights(), pair.tuned.weights()):
        for name in sorted(side):
            found.update(name.encode())
            found.update(tensor_bytes(side[name]))
    return found.hexdigest()


def gathered(folder: Path, keys: list[tuple[str, str]], workers: int) -> dict[str, Any]:
    """The CPU's tables; raises where an analysis fails."""
    made: dict[str, Any] = {"float32": {}, "bfloat16": {}}
    for key, dtype, one, took in all_runs(folder, "cpu", keys, workers):
        print(f"cpu {key} {dtype}: {took:.1f} s", flush=True)
        if isinstance(one, str):
            raise RuntimeError(f"{key} in {dtype} on the CPU: {one}")
        made[dtype][key] = one
    return made


def store(folder: Path, pair: Any, workers: int) -> None:
    import torch
    import transformers

    made = gathered(folder, everything(), workers)
    made = {dtype: {key: made[dtype][key] for key in sorted(made[dtype])} for dtype in made}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = {"signature": signature(pair), "prompts": PROMPTS, "versions": versions}
    text = json.dumps(about | made, separators=(",", ":"))
    with writing(STORED, OWN) as fresh:
        fresh.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{STORED}: {STORED.stat().st_size / 1000:.0f} kB")


def stored() -> dict[str, Any]:
    return json.loads(gzip.decompress(STORED.read_bytes()))


def compare(folder: Path, pair: Any, chosen: argparse.Namespace) -> bool:
    """analyses.json and .md, anew behind every analysis; whether all pass."""
    known, keys = stored(), everything(chosen.only)
    where = f"stored numbers of torch {known['versions']['torch']}"
    if known["signature"] != signature(pair):
        where = "numbers made on the spot, the pair's bits being others here"
        known |= gathered(folder, keys, chosen.workers)
    rows: list[dict[str, Any]] = []
    for key, dtype, one, took in all_runs(folder, chosen.device, keys, chosen.workers):
        row: dict[str, Any] = {"analysis": key, "dtype": dtype, "seconds": took}
        if isinstance(one, str):
            row |= {"ok": False, "says": one}
        else:
            row |= judged(one, known, key, dtype)
        rows.append(row)
        if not row["ok"]:
            print(f"{key} {dtype}: {row['says']}", flush=True)
        report(chosen, rows, len(keys), where)
    return len(rows) == len(keys) and all(row["ok"] for row in rows)


def report(chosen: argparse.Namespace, rows: list[dict[str, Any]], asked: int, where: str) -> None:
    host, bad = machine(chosen.device), [row for row in rows if not row["ok"]]
    ordered = sorted(rows, key=lambda row: (row["ok"], row["dtype"], row["analysis"]))
    headline = f"{len(rows) - len(bad)} of {asked} agree with the CPU's {where}"
    largest = max((r.get("largest", 0.0) for r in rows if r["dtype"] == "float32"), default=0.0)
    headline += f"; float32 at most {largest:.2g} of its tolerance"
    columns = ["analysis", "dtype", "ok", "largest", "says", "rows", "seconds"]
    lines = [
        "# Every analysis against the CPU", "",
        f"{host['device']}, torch {host['torch']}, {host['date']}. {headline}. float32: largest "
        "difference in units of its tolerance "
        f"({FLOAT32['atol']:g} + {FLOAT32['rtol']:g} of the number), at most 1. bfloat16: largest "
        "difference from the CPU's float32 in half-widths of the 95% interval; it passes where its "
        "median is at most twice that of the CPU's own bfloat16, or a quarter of a half-width.", "",
        *table(ordered, columns), "",
    ]  # fmt: skip
    save(chosen.out, "analyses", {"machine": host, "headline": headline, "rows": ordered}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", action="append", help="a key of the catalogue; may repeat")
    parser.add_argument("--quick", dest="only", action="store_const", const=QUICK)
    parser.add_argument("--workers", type=int, default=max(1, min(4, (os.cpu_count() or 1) // 2)))
    parser.add_argument("--store", action="store_true", help="write the CPU's numbers anew")
    chosen = parser.parse_args()
    from tests.calls import write_pair

    with tempfile.TemporaryDirectory(prefix="workbench-analyses-") as name:
        pair = write_pair(Path(name))
        if chosen.store:
            store(Path(name), pair, chosen.workers)
        elif not compare(Path(name), pair, chosen):
            sys.exit(1)


if __name__ == "__main__":
    main()
