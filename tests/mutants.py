"""Would the tests notice a wrong formula? Random one-line faults, each against the tests it meets.

    python -m tests.mutants --modules stats/ranks,spectral/intruders --each 15 --seed 0

cosmic-ray makes the faults (another operator, comparison, number, a loop that never runs). A copy
of the tree is tested, never the tree itself: once whole, to see which test reaches which line, and
then with each fault by the tests that reach its line, those of the file that mirrors it and then
the quickest first, until one of them fails. What no test notices is listed; where that is right,
because the fault changes no value that anyone can tell, EQUIVALENT says why. The tables are kept
with those of earlier modules.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent.json")  # "module: before -> after" -> reason
# The mathematics, and what decides which matrices are compared.
WHOLE = ("stats", "spectral", "tuco", "patching", "skills", "forgetting", "behaviour", "findings")
MODULES = ("loaders/names", "loaders/adapters/lora", "loaders/pair")
MOST = 60  # tests a fault is held against; those that a hundred tests reach fail at once or never
NOTICED = ("noticed", "too slow")
# What a module does at import is in no test's own lines: these look at every record.
RECORDS = (
    "tests/analysis/test_cost.py::test_every_analysis_has_a_cost",
    "tests/analysis/test_defaults.py::test_the_numbers_that_are_not_asked_for",
)


@dataclass(frozen=True)
class Fault:
    """A module of workbench/ with one line changed. code: the whole of it."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.module}: {self.before} -> {self.after}"


def modules() -> list[str]:
    package = ROOT / "workbench"
    found = [
        p.relative_to(package) for part in WHOLE for p in sorted((package / part).glob("*.py"))
    ]
    return [*MODULES, *(str(p.with_suffix("")) for p in found if p.name != "__init__.py")]


def faults(module: str, most: int, seed: int) -> list[Fault]:
    """`most` faults at random places of a module, one a place, none in what is not executed."""
    from cosmic_ray.ast import get_ast_from_path
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    path = ROOT / "workbench" / f"{module}.py"
    code = path.read_text(encoding="utf-8")
    tree = get_ast_from_path(path)
    places: dict[Any, list[tuple[str, int]]] = defaultdict(list)
    for name in operator_names():
        if name.startswith("core/") and "Variable" not in name and "NoOp" not in name:
            positions = _positions(get_operator(name)(), tree)
            for number, place in enumerate(positions):
                places[place].append((name, number))
    draw = random.Random(f"{module} {seed}")
    order = sorted(places)
    draw.shuffle(order)
    found: list[Fault] = []
    for place in order:
        name, number = draw.choice(places[place])
        made = mutate_code(code.encode(), get_operator(name)(), number)
        made = made.decode() if isinstance(made, bytes) else made
        if made is None or _runs_alike(code, made):
            continue
        pairs = zip(code.splitlines(), made.splitlines(), strict=False)
        line, (old, new) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        short = name.removeprefix("core/")
        found.append(Fault(module, line, short, old.strip(), new.strip(), made))
        if len(found) == most:
            break
    return found


def _positions(operator: Any, tree: Any) -> list[Any]:
    """Where an operator changes something, in the order that it counts."""
    found = []

    def visit(node: Any) -> None:
        found.extend(operator.mutation_positions(node))
        for child in getattr(node, "children", ()):
            visit(child)

    visit(tree)
    return found


def _runs_alike(before: str, after: str) -> bool:
    """Whether only annotations differ, which are text here, or what comes out is no Python."""
    try:
        return _executed(before) == _executed(after)
    except SyntaxError:
        return True


def _executed(code: str) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, None)
    return ast.dump(tree)


class Copy:
    """A copy of the tree in which faults are made."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in ("workbench", "tests", "benchmarks", "notebooks", "figures"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("data", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile"):
            (place / name).symlink_to(ROOT / name)

    def run(
        self, arguments: list[str], seconds: float | None = None, by: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """pytest's exit status and what it said; 124 where it takes longer. by: what runs it."""
        own = {"PYTHONPATH": str(self.place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        own["SECONDS"] = str(self.place / "seconds.json")
        command = [sys.executable, *by, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        try:
            done = subprocess.run(
                command, cwd=self.place, env=os.environ | own, timeout=seconds,
                capture_output=True, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, ""
        return done.returncode, done.stdout + done.stderr

    def reached(self, tests: list[str], wanted: list[str]) -> dict[tuple[str, int], list[str]]:
        """(module, line) -> the tests that run it, the quickest first; line 0: any line of it."""
        from coverage import CoverageData

        told = self.place / ".coverage"
        by = ("-m", "coverage", "run", f"--data-file={told}", f"--source={self.place}/workbench")
        status, said = self.run(["-p", "tests.reaching", *tests], by=by)
        if status:
            raise SystemExit(f"Expected tests that pass, before any fault is made:\n{said[-3000:]}")
        seconds = json.loads((self.place / "seconds.json").read_text())
        data = CoverageData(str(told))
        data.read()
        found: dict[tuple[str, int], set[str]] = defaultdict(set)
        for module in wanted:
            lines = data.contexts_by_lineno(str(self.place / "workbench" / f"{module}.py"))
            for line, own in lines.items():
                found[module, line] |= {*own} - {""}
                found[module, 0] |= {*own} - {""}
        return {key: sorted(own, key=seconds.__getitem__) for key, own in found.items()}

    def judged(self, fault: Fault, tests: list[str]) -> str:
        """noticed, survived, unreached, or too slow."""
        if not tests:
            return "unreached"
        own = f"/test_{fault.module.rpartition('/')[2]}.py"
        tests = sorted(tests, key=lambda test: own not in test)  # its own first
        path = self.place / "workbench" / f"{fault.module}.py"
        whole = path.read_text(encoding="utf-8")
        path.write_text(fault.code, encoding="utf-8")
        try:
            status, _ = self.run(["-x", "-p", "no:randomly", *tests[:MOST]], 300)
        finally:
            path.write_text(whole, encoding="utf-8")
        return {0: "survived", 124: "too slow"}.get(status, "noticed")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line a module, and the faults that nobody notices."""
    reasons = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of[row["module"]].append(row)
    lines = ["| module | faults | noticed | equivalent | unnoticed |", "|---|---|---|---|---|"]
    total = [0, 0, 0, 0]
    for module, own in sorted(of.items()):
        noticed = sum(row["outcome"] in NOTICED for row in own)
        alike = sum(row["outcome"] not in NOTICED and row["name"] in reasons for row in own)
        counts = [len(own), noticed, alike, len(own) - noticed - alike]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(f"| {module} | " + " | ".join(map(str, counts)) + " |")
    lines.append("| all | " + " | ".join(map(str, total)) + " |")
    share = total[1] / max(1, total[0] - total[2])
    lines += [
        "",
        f"{share:.0%} of the faults that change anything are noticed.",
        "",
        "Unnoticed:",
        "",
    ]
    for row in rows:
        if row["outcome"] not in NOTICED:
            why = reasons.get(row["name"], "")
            said = f"`{row['before']}` -> `{row['after']}`"
            lines.append(
                f"- {row['module']}:{row['line']} {said}" + (f": equivalent, {why}" if why else "")
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", default="", help="comma-separated; default: all of the maths")
    parser.add_argument("--each", type=int, default=15, help="faults a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", default="tests", help="comma-separated folders that may notice")
    parser.add_argument(
        "--unnoticed", action="store_true", help="leave alone what was noticed before"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    wanted = [name for name in chosen.modules.split(",") if name] or modules()
    kept = chosen.out / "mutants.json.gz"
    known = json.loads(gzip.decompress(kept.read_bytes()))["faults"] if kept.exists() else []
    rows = [row for row in known if row["module"] not in wanted]
    noticed = {row["name"]: row for row in known if row["outcome"] in NOTICED}
    with tempfile.TemporaryDirectory(prefix="workbench-mutants-") as place:
        copy = Copy(Path(place))
        reached = copy.reached(chosen.tests.split(","), wanted)
        for module in wanted:
            for fault in faults(module, chosen.each, chosen.seed):
                if chosen.unnoticed and fault.name in noticed:
                    rows.append(noticed[fault.name] | {"line": fault.line})
                    continue
                begun = time.monotonic()
                tests = reached.get((module, fault.line))
                if not tests and (module, 0) in reached:
                    # Of a module that only declares something, all that may notice.
                    tests = [*RECORDS, *(reached[module, 0] or chosen.tests.split(","))]
                outcome = copy.judged(fault, tests or [])
                row = asdict(fault) | {"name": fault.name, "outcome": outcome}
                rows.append({k: v for k, v in row.items() if k != "code"})
                took = time.monotonic() - begun
                print(f"{outcome:9} {took:4.0f} s {module}:{fault.line} {fault.after}", flush=True)
            save(chosen, rows)


def save(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["module"], row["line"]))
    lines = [
        "# Faults that the tests notice",
        "",
        f"Random one-line faults (`make mutants`, seed {chosen.seed}), each against the tests that "
        f"reach its line. torch {version('torch')}, Python {platform.python_version()} on "
        f"{platform.machine()}, {date.today()}.",
        "",
        *table(rows),
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(json.dumps({"faults": rows}).encode(), mtime=0)  # the same bytes again
    (chosen.out / "mutants.json.gz").write_bytes(packed)
    (chosen.out / "mutants.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
