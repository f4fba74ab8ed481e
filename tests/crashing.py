"""Runs that are killed at random points and then left to end.

    python -m tests.crashing FOLDER SEED KILLS

FOLDER holds base, full and lora. The package is loaded once; every attempt is a fork of this
process, killed with SIGKILL after a random part of the time that an undisturbed one took. KILLS
times the analyses of the weights over the family are killed once, each in a folder of its own, the
n-th within the n-th part of that time, and run again; then a whole comparison with its figures and
report is killed a third as often in one folder. Clocks stand still, so that an undisturbed run and
a disturbed one can be the same to the byte. Prints how many Results each killed run of the analyses
had kept.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import workbench as wb
import workbench.figures
from workbench.results import result as results
from workbench.study.compare import Study, compare

ANALYSES = (wb.spectral.delta_spectrum, wb.spectral.similarity, wb.spectral.intruders)


class Stopped(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 1, tzinfo=UTC)


def analyses(family: wb.Family, out: Path) -> None:
    for analysis in ANALYSES:
        made = wb.over(family, analysis, store=out / "units")
        made.save(out / "results" / made.analysis)


def comparison(family: wb.Family, out: Path) -> None:
    compare(Study(family, only=("spectral.delta_spectrum",)), out, formats=("png",))


def attempt(
    folder: Path, name: str, work: Callable[[wb.Family, Path], None], seconds: float | None = None
) -> float:
    """Seconds of one run in a fork, killed after `seconds` where that is given."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        # A cache of its own: nothing is left from another run.
        os.environ["WORKBENCH_CACHE"] = str(folder / "caches" / name)
        members = {"full": folder / "full", "lora": folder / "lora"}
        work(wb.load_family(folder / "base", members), folder / name)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if seconds is None and status:
        raise SystemExit("a run that nobody killed failed")
    return time.monotonic() - start


def main(folder: Path, seed: int, kills: int) -> None:
    results.datetime = Stopped  # type: ignore[attr-defined]
    draw = random.Random(seed)
    attempt(folder, "warm", analyses)
    whole = attempt(folder, "plain", analyses)
    for number in range(kills):
        name = f"killed-{number}"
        attempt(folder, name, analyses, draw.uniform(number, number + 1) / kills * whole)
        print(sum(1 for _ in (folder / name).rglob("result.json")), flush=True)
        attempt(folder, name, analyses)
    whole = attempt(folder, "compared", comparison)
    for _ in range(kills // 3):
        attempt(folder, "compared-killed", comparison, draw.uniform(0, whole))
    attempt(folder, "compared-killed", comparison)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
