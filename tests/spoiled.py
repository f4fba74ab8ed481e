"""Whether the test that is named for a metric notices a wrong value of it.

    python -m tests.spoiled [--analysis KEY]    every metric of tests.truths wrong in turn

Those of FORMULAS are not tried: they do not see the Result that is spoiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from workbench.results.result import Result

ROOT = Path(__file__).parents[1]
ASKED = "WORKBENCH_SPOILED"  # "analysis metric", read when the tests start


def spoil(analysis: str, metric: str) -> None:
    """From here on every Result of `analysis` has wrong values of `metric`, which may hold *: by
    one per cent and a hundredth."""
    checked = Result.__post_init__

    def spoiled(self: Result) -> None:
        checked(self)
        if self.analysis == analysis:
            own = self.table["value"]
            spared = [not fnmatchcase(one, metric) for one in self.table["metric"]]
            wrong = own.where(pd.Series(spared, self.table.index), own * 1.01 + 0.01)
            object.__setattr__(self, "table", self.table.assign(value=wrong))

    Result.__post_init__ = spoiled


def noticed(analysis: str, metric: str, test: str) -> bool:
    """Whether the test fails where the metric is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{test}"],
        cwd=ROOT, capture_output=True, check=False,
        env=os.environ | {ASKED: f"{analysis} {metric}"},
    )  # fmt: skip
    return done.returncode == 1


def unnoticed(only: str | None = None) -> Iterator[tuple[str, str, str]]:
    """(analysis, metric, test) where the test passes all the same."""
    from tests.truths import FORMULAS, TRUTHS

    for analysis, tests in TRUTHS.items():
        for test, metrics in tests.items():
            for metric in metrics if only in (None, analysis) and test not in FORMULAS else ():
                if not noticed(analysis, metric, test):
                    yield analysis, metric, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--analysis", help="this one alone, by its key")
    found = 0
    for missed in unnoticed(parser.parse_args().analysis):
        found += 1
        print(*missed, flush=True)
    print(f"{found} unnoticed")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
