"""Imports run one way, from checkpoints over analyses and Results to figures and the report."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "workbench"

# What each part may import of the workbench. A part not listed may not exist.
SHARED = {"errors", "files", "log", "stats", "results", "meaning", "cache", "devices"}
SHARED |= {"magnitude", "decompose", "counting", "outputs", "progress", "bounded"}
ANALYSES = {"spectral", "forgetting", "behaviour", "patching", "skills", "tuco"}
MAY = {
    "errors": set(),
    "log": set(),
    "version": set(),
    "stats": set(),
    "magnitude": set(),
    "decompose": set(),
    "counting": {"errors", "results", "stats"},
    "files": {"errors"},
    "bounded": {"errors"},
    "bounded_child": set(),
    "outputs": {"errors"},
    "progress": {"log"},
    "stored": {"errors", "files"},
    "results": {"errors", "files", "outputs", "stored", "version"},
    "meaning": {"results"},
    "cache": {"errors", "outputs"},
    "devices": {"errors"},
    "loaders": SHARED,
    "models": SHARED | {"loaders", "tasks"},
    "tasks": SHARED,
    "lab": SHARED | {"loaders", "models", "tasks"},
    "costs": SHARED | {"loaders", "tasks"},
    "asked": SHARED | {"costs", "loaders", "tasks"},
    "units": SHARED | {"asked", "loaders"},
    "cluster": SHARED | {"units"},
    "spectral": SHARED | {"asked", "loaders", "models", "tasks"},
    "forgetting": SHARED | {"asked", "loaders", "models", "tasks", "lab"},
    "behaviour": SHARED | {"asked", "loaders", "models", "tasks", "lab"},
    "patching": SHARED | {"asked", "loaders", "models", "tasks"},
    "skills": SHARED | {"asked", "loaders", "models", "tasks"},
    "tuco": SHARED | {"asked", "loaders", "models", "tasks"},
    "catalogue": SHARED | ANALYSES,
    "figures": SHARED,
    "reports": SHARED | {"figures"},
    "shown": SHARED | {"figures", "loaders", "tasks"},
    "equivalence": SHARED,
    "findings": SHARED | {"equivalence", "runs"},
    "runs": SHARED | {"figures", "reports"},
    "study": SHARED | {"costs", "loaders", "tasks", "units", "catalogue"},
    "compare": SHARED
    | {"loaders", "units", "forgetting", "skills", "equivalence"}
    | {"catalogue", "cluster", "reports", "runs", "study"},
    "demo": SHARED | {"loaders", "tasks", "lab", "behaviour", "patching", "catalogue", "study"},
}
# The public names, and the command line, stand above everything.
ABOVE = {"__init__", "cli"}
# Result.plot(), pair.models() and the like are conveniences looked up when they are called.
DEFERRED = {("results", "figures"), ("loaders", "models"), ("units", "catalogue")}
DEFERRED |= {(part, "shown") for part in ("results", "loaders", "tasks")}


def part(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST, where: ast.AST | None = None):
    """(part of the workbench, whether the import waits for a call or is for types alone)."""
    for node in ast.iter_child_nodes(tree):
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        inside = where is not None or isinstance(node, ast.FunctionDef) or types
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "workbench":
            names = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
            yield from ((name, inside) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("workbench."):
                    yield alias.name.split(".")[1], inside
        yield from imported(node, node if inside else None)


FILES = sorted(f for f in ROOT.rglob("*.py") if part(f) not in ABOVE)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file: Path):
    own = part(file)
    assert own in MAY, f"{own} has no place in the order of imports yet"
    for other, inside in imported(ast.parse(file.read_text())):
        allowed = other == own or other in MAY[own] or (inside and (own, other) in DEFERRED)
        assert allowed, f"{file.relative_to(ROOT)} imports {other}"


def test_the_walk_sees_a_wrong_import():
    tree = ast.parse("def f():\n    from workbench.figures import draw\nimport workbench.cli")
    assert list(imported(tree)) == [("figures", True), ("cli", False)]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, workbench, workbench.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
