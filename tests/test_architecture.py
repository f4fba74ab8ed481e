"""Imports run one way, from checkpoints over analyses and Results to figures and the report."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "workbench"

# The way of the data, floor by floor: a file imports what stands above it here, and what its own
# folder holds. A part not listed may not exist.
ANALYSES = ("spectral", "tuco", "patching", "skills", "forgetting", "behaviour")
FLOORS = (
    ("errors", "version", "conveniences"),
    ("log", "stats", "numerics", "rotations"),
    ("files", "progress"),
    ("sandbox", "results"),
    ("loaders",),
    ("tasks",),
    ("models",),
    ("lab",),
    ("analysis",),
    ANALYSES,
    ("edits",),
    ("figures",),
    ("reports", "findings"),
    ("export",),
    ("study",),
    ("scoreboard",),
    ("demo", "integrations"),
    ("__init__",),
    ("cli",),
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
# Drawn, written and read is what was kept: nothing from here on up to the studies sees a model.
OF_RESULTS = ("figures", "reports", "findings", "export")
OF_MODELS = ("loaders", "tasks", "models", "lab", "analysis", *ANALYSES, "edits")


def named(file: Path) -> str:
    """workbench/spectral/intruders.py as workbench.spectral.intruders."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {named(file): file for file in sorted(ROOT.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the workbench that a file imports, also those that wait for a call; not those that
    are there for types alone, which no run imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "workbench":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "workbench")
        yield from imported(node)


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(imported(ast.parse(FILES[module].read_text())))


def part(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module: str):
    own = part(module)
    assert own in FLOOR, f"{own} has no place in the order of imports yet"
    for other in map(part, imports(module)):
        assert other == own or FLOOR[other] < FLOOR[own], f"{module} imports {other}"
        assert own not in OF_RESULTS or other not in OF_MODELS, f"{module} imports {other}"


def test_no_file_imports_itself_by_way_of_others():
    graph = {module: imports(module) & set(FILES) for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_walk_sees_every_import():
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from workbench.demo import family\n"
        "def f():\n    from workbench.figures import draw\n"
        "import workbench.cli\nfrom workbench.results import cache"
    )
    assert list(imported(tree)) == ["workbench.figures", "workbench.cli", "workbench.results.cache"]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, workbench, workbench.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
