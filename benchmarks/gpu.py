"""What does a GPU give? Every analysis against the CPU, and the costs at 7B shapes, in one command.

    make gpu                            or python -m benchmarks.gpu --out out/gpu
    make gpu DEVICE=cpu SHAPES=tiny     the same anywhere, at a shape that is no measurement

Each part is a process of its own with a time limit: one that fails or takes too long costs itself,
and keeps what it had written. The limits add up to eight minutes. A part's numbers are in
OUT/FILE.json and .md, what it printed in OUT/NAME.log, all of it in short in OUT/gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import SHAPES, machine, save, table

ROOT = Path(__file__).parents[1]
PATIENCE = 4  # times the limit on a CPU, whose seconds are no measurement


@dataclass(frozen=True)
class Part:
    """command: what python is called with; {device}, {shape}, {pair} and {out} are filled in.
    limit: seconds. file: the name of its .json and .md under OUT. aim: what we hope for."""

    name: str
    command: str
    limit: float
    file: str
    aim: str = ""


RUN = "--device {device} --dtype bfloat16 --out {out}"
PARTS = (
    Part(
        "analyses", "-m benchmarks.analyses --device {device} --out {out}{quick}", 110, "analyses",
        "all agree",
    ),
    Part(
        "intruders", f"-m benchmarks.spectral --shape {{shape}} {RUN}", 130,
        "spectral-pairs-{device}", "below 60 s",
    ),
    Part("pair", f"-m benchmarks.pair --shape {{shape}} --folder {{pair}} {RUN}", 40, "pair"),
    Part(
        "tuco", f"-m benchmarks.tuco --shape {{shape}} --pair {{pair}} {RUN}", 60,
        "tuco-{shape}-{device}", "at most 2.1 forwards; a LoRA in 1.1x one model's memory",
    ),
    Part(
        "sweep", f"-m benchmarks.patching --shape {{shape}} --sweep --name sweep {RUN}", 50,
        "sweep", "at least 4x",
    ),
    Part(
        "files", f"-m benchmarks.files --pair {{pair}} {RUN}", 90, "files",
        "a preflight of 14 GB a side below 30 s",
    ),
)  # fmt: skip


def run(part: Part, out: Path, values: dict[str, str]) -> dict[str, Any]:
    """One part to its end, or to its limit; its row of the last table."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True", "WORKBENCH_CACHE": values["cache"],
    }  # fmt: skip
    command = [sys.executable, *part.command.format(**values).split()]
    file = out / f"{part.file.format(**values)}.json"
    file.unlink(missing_ok=True)  # of an earlier run
    start, status = time.perf_counter(), "failed"
    with (out / f"{part.name}.log").open("w") as log:
        # A session of its own: what the part started ends with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = (
                "failed"
                if process.wait(part.limit * (PATIENCE if values["device"] == "cpu" else 1))
                else "ok"
            )
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = headline(file)
    if status != "ok" and not said:
        said = last_line(out / f"{part.name}.log")
    return {
        "part": part.name, "seconds": time.perf_counter() - start, "status": status,
        "found": said, "aim": part.aim,
    }  # fmt: skip


def headline(file: Path) -> str:
    """What a part's own file says in one sentence; nothing where there is none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("headline", ""))
    except (OSError, ValueError):
        return ""


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def drive(parts: Sequence[Part], out: Path, *, device: str, shape: str) -> int:
    """Run all parts, whatever becomes of each; 1 where any failed, else 0."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="workbench-gpu-"))
    values = {
        "device": device, "shape": shape, "out": str(out.resolve()),
        "pair": str(scratch / "pair"), "cache": str(scratch / "cache"),
        "quick": " --quick" if device == "cpu" else "",  # the CPU against itself says little
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    try:
        for part in parts:
            rows.append(run(part, out, values))
            last = rows[-1]
            print(f"{part.name}: {last['seconds']:.0f} s, {last['status']}", flush=True)
            summary(out, rows, device, shape)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print("\n".join(["", *table(rows, list(rows[0]))]), flush=True)
    return int(any(row["status"] != "ok" for row in rows))


def summary(out: Path, rows: list[dict[str, Any]], device: str, shape: str) -> None:
    """gpu.json and gpu.md so far."""
    try:
        host = machine(device)
    except (RuntimeError, AssertionError) as error:  # no such device: every part says so, too
        host = machine() | {"device": f"{device}: {error}"}
    lines = [
        "# On an accelerator",
        "",
        f"{host['device']}, {host['cpu']}, {host['cores']} cores, torch {host['torch']}, shape "
        f"{shape}, {host['date']}.",
        "",
        *table(rows, list(rows[0])),
        "",
    ]
    save(out, "gpu", {"machine": host, "shape": shape, "parts": rows}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS])
    chosen = parser.parse_args()
    # Ended from outside it still ends its part, and takes its gigabytes from the disk.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = [part for part in PARTS if not chosen.only or part.name in chosen.only]
    sys.exit(drive(parts, chosen.out, device=chosen.device, shape=chosen.shape))


if __name__ == "__main__":
    main()
