"""Whether the test that is named for a metric notices a wrong value of it.

python -m tests.spoiled [--analysis KEY]      every metric of tests.truths wrong in turn
python -m tests.spoiled --find PATHS --analysis KEY   which tests there notice each metric
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from workbench.results.result import Result

ROOT = Path(__file__).parents[1]
ALL = "*"
ASKED = "WORKBENCH_SPOILED"  # "analysis metric", read when the tests start


def spoil(analysis: str, metric: str) -> None:
    """From here on every Result of `analysis` has wrong values of `metric`, or of all where that is
    ALL: by one per cent and a hundredth."""
    checked = Result.__post_init__

    def spoiled(self: Result) -> None:
        checked(self)
        if self.analysis == analysis:
            own = self.table["value"]
            spared = self.table["metric"] != metric if metric != ALL else False
            wrong = own.where(spared, own * 1.01 + 0.01)
            object.__setattr__(self, "table", self.table.assign(value=wrong))

    Result.__post_init__ = spoiled


def run(analysis: str, metric: str, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest on these, the metric being wrong."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider",
         "-W", "ignore", *tests],
        cwd=ROOT, text=True, capture_output=True, check=False,
        env=os.environ | {ASKED: f"{analysis} {metric}"},
    )  # fmt: skip


def unnoticed(only: str | None = None) -> Iterator[tuple[str, str, str]]:
    """(analysis, metric, test) where the test passes all the same."""
    from tests.truths import TRUTHS

    for analysis, tests in TRUTHS.items():
        for test, metrics in tests.items() if only in (None, analysis) else ():
            for metric in metrics:
                if run(analysis, metric, f"tests/{test}").returncode != 1:
                    yield analysis, metric, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--analysis")
    parser.add_argument("--find", nargs="+", metavar="PATH")
    parser.add_argument("--metrics", nargs="+")
    chosen = parser.parse_args()
    if chosen.find:
        for metric in chosen.metrics:
            said = run(chosen.analysis, metric, *chosen.find).stdout.splitlines()
            found = [line.split()[1] for line in said if line.startswith("FAILED")]
            print(chosen.analysis, metric, *found or ["NONE"], sep="\t", flush=True)
        return 0
    found = 0
    for missed in unnoticed(chosen.analysis):
        found += 1
        print(*missed, flush=True)
    print(f"{found} unnoticed")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
