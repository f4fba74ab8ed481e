"""Every notebook is stored clean, teaches before it computes, and runs as it is."""

from __future__ import annotations

import ast
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = (
    "01_first_look", "02_intruder_dimensions", "03_tuco", "04_where_does_it_live", "05_grafts",
    "06_forgetting", "07_your_own_model", "08_hand_over",
    "09_a_whole_walk",
)  # fmt: skip
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
CELL = 600  # seconds, after which a cell hangs
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_they_are_all_there():
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES


@every_notebook
def test_it_is_stored_without_outputs_and_as_one_writes_it(path: Path):
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    nbformat.validate(stored)
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert stored["metadata"].keys() == {"kernelspec", "language_info"}
    assert [cell["id"] for cell in stored["cells"]] == [
        f"cell-{number:02d}" for number in range(1, len(stored["cells"]) + 1)
    ]
    for cell in stored["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
    # A changed line of a cell is then a changed line of the file.
    assert text == json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


@every_notebook
def test_it_calls_the_library_and_says_why(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == "markdown"
    assert cells[0].source.startswith("# ")
    # Never more than three cells that compute without a word between them.
    assert not any(kinds[at : at + 4] == ["code"] * 4 for at in range(len(kinds)))
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            parsed = ast.parse(cell.source)
            assert not any(isinstance(node, DEFINES) for node in ast.walk(parsed))
            assert len(cell.source.splitlines()) <= 14, cell.source
            assert not re.search(r"\b_\w+\(|import _|\._\w", cell.source), "a private name"
        elif before.cell_type == "markdown":
            raise AssertionError(f"two cells of prose in a row: {cell.source[:60]}")


@every_notebook
def test_it_runs_and_leaves_nothing_behind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    before = tree()
    notebook = nbformat.read(path, as_version=4)
    asked = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
    notebook.cells.append(asked)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=CELL, kernel_name="python3", resources=place).execute()
    assert tree() == before
    assert notebook.cells.pop().outputs[0].text.strip() == sys.executable
    drawn = 0
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            if output.output_type == "stream":
                warned = [line for line in output.text.splitlines() if "Warning" in line]
                # What a library will change one day is no reader's concern.
                assert [line for line in warned if "DeprecationWarning" not in line] == []
                continue
            assert "<Drawn" not in output.data["text/plain"] or "image/png" in output.data
            drawn += "image/png" in output.data
    assert drawn >= ("01" <= path.stem[:2] <= "07")


def tree() -> dict[str, tuple[int, int]]:
    """Every file where a notebook stands or reads, and beside that, with its size and time."""
    kept = [ROOT / name for name in ("notebooks", "data", "figures")]
    files = [file for folder in kept for file in folder.rglob("*") if file.is_file()]
    files += [file for file in ROOT.iterdir() if not file.name.startswith(".") and file.is_file()]
    return {
        str(file.relative_to(ROOT)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    }
