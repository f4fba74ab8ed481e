"""Feeds every reader damaged and hostile files, and stops at the first that breaks a promise.

    python -m tests.hostile.fuzz --cases 10000 --seed 0 --out out/fuzz

Prints the cases of each reader: how many were refused with a sentence, how many could be read. The
files of a case that broke a promise, made as small as hypothesis can, are kept under --out; the
same seed finds it again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.hostile.cases import Files, Reader, Seeds, readers
from tests.hostile.guard import Guard, Violation, scratch

WHOLE = 10_000


class Broken(AssertionError):
    """A promise broken by a case; an Exception, so that hypothesis makes the case smaller."""


def lay(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def one(reader: Reader, files: Files, folder: Path, guard: Guard) -> bool:
    """Whether the case was refused; raises Broken."""
    lay(files, folder)
    try:
        with guard.over(folder.parent / "MARKER") as refused:
            reader.read(folder)
    except Violation as violation:
        raise Broken(f"{reader.name}: {violation}") from violation
    return bool(refused)


def run(reader: Reader, cases: int, seed: int, root: Path, guard: Guard) -> dict[str, int]:
    """Counts of one reader; raises Broken, the smallest case left in root/case."""
    if one(reader, reader.whole, root / "case", guard):
        raise Broken(f"{reader.name}: whole files are refused")
    counts = {"cases": 0, "refused": 0}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @hypothesis.given(reader.cases)
    def each(files: Files) -> None:
        counts["cases"] += 1
        counts["refused"] += one(reader, files, root / "case", guard)

    each()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=WHOLE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    chosen = parser.parse_args()
    root = scratch()
    online()
    os.environ |= {"WORKBENCH_CACHE": str(root / "cache"), "MPLCONFIGDIR": str(root / "mpl")}
    home = Path.cwd()
    total, start = 0, time.monotonic()
    try:
        from matplotlib import font_manager  # noqa: F401 - it looks for fonts once, by fc-list

        every = readers(Seeds(root / "seeds"))
        # A pickle that runs writes MARKER where the process stands.
        os.chdir(root)
        guard = Guard(root, Path(tempfile.gettempdir()))
        for reader in every:
            if chosen.only in (None, reader.name):
                cases = max(1, reader.share * chosen.cases // WHOLE)
                began = time.monotonic()
                with quiet(root / "log"):
                    counts = run(reader, cases, chosen.seed, root, guard)
                total += counts["cases"]
                print(
                    f"{reader.name:12} {counts['cases']:6} cases, {counts['refused']:6} refused, "
                    f"{time.monotonic() - began:6.1f} s",
                    flush=True,
                )
    except (Broken, ExceptionGroup) as broken:  # a group where a case does not break it again
        kept = home / chosen.out / f"{reader.name}-{chosen.seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(root / "case", kept, symlinks=True)
        again = f"--only {reader.name} --cases {chosen.cases} --seed {chosen.seed}"
        print(str(broken)[:1000], file=sys.stderr)
        print(f"The case is kept in {kept}; {again} finds it again.", file=sys.stderr)
        return 1
    finally:
        os.chdir(home)
        shutil.rmtree(root, ignore_errors=True)
    print(f"{total} cases, no promise broken, {time.monotonic() - start:.0f} s", flush=True)
    return 0


class Yes(io.TextIOBase):
    """Standard input that says yes to whatever is asked."""

    def readline(self, *_: object) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "y\n"


def online() -> None:
    """Nothing outside of the library keeps it from the hub; a connection breaks a promise."""
    from huggingface_hub import constants

    os.environ.pop("HF_HUB_OFFLINE", None)
    constants.HF_HUB_OFFLINE = False
    sys.stdin = Yes()


@contextlib.contextmanager
def quiet(log: Path):
    """What libraries print goes to a file: thousands of cases are warned of."""
    with log.open("w") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(file):
            yield


if __name__ == "__main__":
    sys.exit(main())
