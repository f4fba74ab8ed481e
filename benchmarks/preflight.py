"""The preflight beside a plain loop over both checkpoints: how long, and how much of the disk?

A base of random bfloat16 matrices, 4096 x 4096 as in a model of 7 billion weights, in one
safetensors file a side, and three members: every matrix changed, one matrix changed, none. Files
are written just before and read again at once, so that they come from the page cache. Each round
times, in one process and one after the other,

  plain       safetensors, torch.equal, and where that is False |tuned - base| in float32;
  check       wb.load_pair(...).check(): headers, norms of base and change, NaN and inf;
  hashing     the same with sha256 of both files, none of them remembered.

Ratios are taken within a round, and the median of them is reported. Processor seconds, of all
threads, stand beside the seconds: other work on the machine moves them less.

    python -m benchmarks.preflight --out benchmarks/results [--gigabytes 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.common import machine, table

SIDE = 4096
CASES = {"every matrix changed": "all", "one matrix changed": "one", "nothing changed": "none"}


def lay(folder: Path, gigabytes: float) -> None:
    """A base and the three members of CASES."""
    count = max(2, round(gigabytes * 1e9 / (2 * SIDE * SIDE)))
    generator = torch.Generator().manual_seed(0)
    base = {
        f"model.layers.{i // 8}.m{i % 8}.weight": torch.empty(SIDE, SIDE, dtype=torch.bfloat16)
        .normal_(0, 0.02, generator=generator)
        for i in range(count)
    }  # fmt: skip

    def moved(weight: torch.Tensor) -> torch.Tensor:
        return weight + weight.new_empty(SIDE, SIDE).normal_(0, 1e-3, generator=generator)

    middle = list(base)[count // 2]
    sides = {
        "base": base,
        "none": base,
        "one": base | {middle: moved(base[middle])},
        "all": {name: moved(weight) for name, weight in base.items()},
    }
    for name, tensors in sides.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")


def plain(base: Path, tuned: Path) -> dict[str, float]:
    """The shortest way to a norm of every change."""
    found = {}
    with safe_open(base, framework="pt") as ours, safe_open(tuned, framework="pt") as theirs:
        for name in ours.keys():  # noqa: SIM118 - no mapping
            one, other = ours.get_tensor(name), theirs.get_tensor(name)
            same = torch.equal(one, other)
            found[name] = 0.0 if same else float((other.float() - one.float()).norm())
    return found


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds of all threads, and what the call gave."""
    start, busy = time.perf_counter(), time.process_time()
    found = call()
    return time.perf_counter() - start, time.process_time() - busy, found


def one_round(base: Path, tuned: Path) -> dict[str, float]:
    import workbench as wb

    shutil.rmtree(os.environ["WORKBENCH_CACHE"], ignore_errors=True)
    files = [folder / "model.safetensors" for folder in (base, tuned)]
    calls = {
        "plain": lambda: plain(*files),
        "check": lambda: wb.load_pair(base, tuned).check(run=False).changes,
        "hashing": lambda: wb.load_pair(base, tuned).check(run=False, fingerprints=True).changes,
    }
    row, given = {}, {}
    for name, call in calls.items():
        row[f"{name}_s"], row[f"{name}_cpu_s"], given[name] = timed(call)
    for change in given["check"].itertuples():
        expected = given["plain"][change.name]
        # torch's float32 sum over 16 million squares is itself right to three digits.
        if abs(change.norm - expected) > 2e-3 * expected:
            raise AssertionError(f"{change.name}: {change.norm} is not {expected}")
    return row


def one_case(folder: Path, member: str, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, the first of which warms up and is left out."""
    made = [one_round(folder / "base", folder / member) for _ in range(rounds + 1)][1:]
    size = (folder / member / "model.safetensors").stat().st_size / 1e9
    middle = {name: statistics.median(row[name] for row in made) for name in made[0]}
    ratios = {
        f"plain / {name}": statistics.median(row["plain_s"] / row[f"{name}_s"] for row in made)
        for name in ("check", "hashing")
    }
    speeds = {f"{name} GB/s a side": size / middle[f"{name}_s"] for name in ("check", "hashing")}
    return {"GB a side": round(size, 2), **middle, **ratios, **speeds, "rounds": made}


def write(out: Path, found: dict[str, Any]) -> None:
    """preflight.json, and preflight.md for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "preflight.json").write_text(json.dumps(found, indent=1))
    host = found["machine"]
    columns = [name for name in found["rows"][0] if name != "rounds"]
    lines = [
        "# The preflight beside a plain loop",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['threads']} threads, "
        f"{host['date']}; load of the machine at the start {found['load'][0]:.1f}, at the end "
        f"{found['load'][1]:.1f} (1 minute, this benchmark included). Random bfloat16 matrices of "
        "4096 x 4096 from the page cache. plain: safetensors, torch.equal, float32 norm of the "
        "difference. check: `workbench check` as a call. hashing: the same with the sha256 of both "
        "files, as `compare` needs them. Medians of "
        f"{len(found['rows'][0]['rounds'])} rounds, ratios within a round; cpu: seconds of "
        "all threads.",
        "",
        *table(found["rows"], columns),
        "",
    ]
    (out / "preflight.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--gigabytes", type=float, default=2, help="a side; four are written")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="workbench-preflight-") as name:
        os.environ["WORKBENCH_CACHE"] = str(Path(name) / "cache")
        lay(Path(name), chosen.gigabytes)
        for case, member in CASES.items():
            rows.append({"": case, **one_case(Path(name), member, chosen.rounds)})
            print({k: v for k, v in rows[-1].items() if k != "rounds"}, flush=True)
    write(chosen.out, {"machine": machine(), "load": [load, os.getloadavg()[0]], "rows": rows})


if __name__ == "__main__":
    main()
