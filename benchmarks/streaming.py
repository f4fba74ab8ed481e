"""Weights larger than memory: does the peak of memory depend on the size of a checkpoint?

A base and a full fine-tune of 10 and of 40 GB are laid out as sharded safetensors with whole
headers, of 4096 x 4096 bfloat16 matrices. Their data are holes of sparse files, which read as
zeros at the speed of memory and take no room on the disk, but for two matrices a side that hold
numbers. Each size is read in a process of its own: the preflight (every parameter of both sides,
once), the fingerprints (sha256 over every byte), the spectrum of every change, and an edited model
(half of the change), which is written in full.

    python -m benchmarks.streaming --out benchmarks/results [--sizes 10 40] [--stages preflight]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, table

SIDE, PER_SHARD = 4096, 160  # bfloat16: 32 MiB a matrix, 5 GiB a shard
STAGES = ["preflight", "fingerprints", "spectrum", "edit"]  # the last two take the second too
NUMBERS = ("model.layers.0.m0.weight", "model.layers.1.m0.weight")


def lay(folder: Path, gigabytes: float, seed: int) -> None:
    """A sharded checkpoint of `gigabytes` (10^9 bytes) whose data are holes, NUMBERS apart."""
    folder.mkdir(parents=True)
    matrices, size = round(gigabytes * 1e9 / (2 * SIDE * SIDE)), 2 * SIDE * SIDE
    generator, index = torch.Generator().manual_seed(seed), {}
    for first in range(0, matrices, PER_SHARD):
        count = min(PER_SHARD, matrices - first)
        names = [f"model.layers.{(first + i) // 8}.m{(first + i) % 8}.weight" for i in range(count)]
        header = {
            name: {"dtype": "BF16", "shape": [SIDE, SIDE],
                   "data_offsets": [i * size, (i + 1) * size]}
            for i, name in enumerate(names)
        }  # fmt: skip
        text = json.dumps(header).encode()
        shard = f"model-{first // PER_SHARD:05d}.safetensors"
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + count * size)
            for name in set(NUMBERS) & set(names):
                file.seek(8 + len(text) + names.index(name) * size)
                values = torch.randn(SIDE, SIDE, generator=generator).to(torch.bfloat16)
                file.write(values.view(torch.uint8).numpy().tobytes())
        index |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def peak() -> int:
    """MiB of this process's largest resident set; pages of mapped files count while they are in."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def read(folder: Path, stages: list[str]) -> dict[str, Any]:
    """Seconds and peaks of reading the pair in `folder`, by STAGES."""
    import workbench as wb

    found: dict[str, Any] = {"peak_before_MiB": peak()}
    start = time.perf_counter()
    pair = wb.load_pair(folder / "base", folder / "tuned")
    found |= {"matrices": len(pair.sites()), "headers_s": time.perf_counter() - start}
    calls = {
        "preflight": lambda: pair.check().require(),
        "fingerprints": lambda: (pair.base.fingerprint, pair.tuned.fingerprint),
        "spectrum": lambda: wb.spectral.delta_spectrum(pair),
        "edit": lambda: wb.edits.save(wb.edits.edits(pair, "alpha")(0.5), folder / "edited"),
    }
    for name in stages:
        start = time.perf_counter()
        calls[name]()
        found |= {f"{name}_s": time.perf_counter() - start, f"{name}_peak_MiB": peak()}
    return found


def one_size(gigabytes: float, stages: list[str]) -> dict[str, Any]:
    """The row of one size, measured in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="workbench-large-") as name:
        folder = Path(name)
        for seed, side in enumerate(("base", "tuned")):
            lay(folder / side, gigabytes, seed)
        held = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        room = sum(file.stat().st_blocks * 512 for file in folder.rglob("*.safetensors"))
        command = [sys.executable, "-m", "benchmarks.streaming", "--read", name]
        command += ["--stages", *stages]
        environment = os.environ | {"WORKBENCH_CACHE": str(folder / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        about = {"GB_a_side": round(held / 2e9, 2), "GB_on_disk": round(room / 1e9, 2)}
        return about | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 40], help="GB a side")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        print(json.dumps(read(chosen.read, chosen.stages)))
        return
    for size in chosen.sizes:
        row = one_size(size, chosen.stages)
        print(json.dumps(row), flush=True)
        write(chosen.out, {"machine": machine(), "rows": joined(chosen.out, row)})


def joined(out: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows there are, with this one among them: what it measured anew replaces what was."""
    file = out / "streaming.json"
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    before = next((r for r in known if r["GB_a_side"] == row["GB_a_side"]), {})
    others = [r for r in known if r["GB_a_side"] != row["GB_a_side"]]
    return sorted([*others, before | row], key=lambda r: r["GB_a_side"])


def write(out: Path, found: dict[str, Any]) -> None:
    """streaming.json, and streaming.md for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "streaming.json").write_text(json.dumps(found, indent=1))
    host = found["machine"]
    lines = [
        "# Weights larger than memory",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['threads']} threads, "
        f"{host['date']}. A base and a full fine-tune of 4096 x 4096 bfloat16 matrices in sparse "
        "files: all zeros, which are read, hashed and compared like any numbers, but for two "
        "matrices a side, of whose changes the singular values are taken; half of the "
        "change is written as a checkpoint of the same size. Peaks are of the "
        "process's resident set, mapped pages among them. The stages of a size may be of runs of "
        "their own, beside other work: compare peaks, not seconds; a peak counts the stages "
        "before it in its run.",
        "",
        *table(found["rows"], max(map(list, found["rows"]), key=len)),
        "",
    ]
    (out / "streaming.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
