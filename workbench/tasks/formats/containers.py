"""Which rows does a file or folder hold? Lines of JSON, a JSON list, CSV, parquet, and what
`datasets` wrote with save_to_disk.

What the rows mean is `shapes`. Each comes with its number, by which a fault is told: that of its
line in files of text, else its place from 1 on. Whoever wrote the file may be anyone: text is read
strictly and bounded (`files.reading`), tables of Arrow in a process of its own (`sandbox`).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError, reason, some
from workbench.files.reading import MIB, parsed, read_json, read_text
from workbench.log import log
from workbench.sandbox.process import bounded
from workbench.tasks.prompts import DATASET, DATASETS, FILES

MOST = 512 * MIB  # of a file of prompts
# Of a table of Arrow: its rows as JSON, the clock, and bytes of memory.
MOST_ROWS, SECONDS, ROOM = 128 * MIB, 120.0, 2 << 30
Row = tuple[int, Any]
# Columns whose cells hold several texts, JSON or separated by "|", or an object in JSON.
LISTS = ("foils", "choices", "endings")
OBJECTS = ("messages", "conversations", "tags", "spans")


class Rows(NamedTuple):
    """each: (number, row), a WorkbenchError in the place of one that cannot be read. cells: every
    value is text, as in a table of CSV."""

    each: Iterator[Row]
    cells: bool = False


def rows_of(path: Path) -> Rows:
    """The rows of a file or folder; raises WorkbenchError where it is none that is read."""
    if path.is_dir():
        return Rows(_of_dataset(path))
    if not path.is_file():
        raise WorkbenchError(
            f"Expected prompts ({', '.join(FILES)}, or a folder of datasets) at {path}; no file is "
            "there."
        )
    if path.suffix == ".parquet":
        return Rows(_of_arrow(path, [path], "parquet"))
    kinds: dict[str, Callable[[str], Iterator[Row]]] = {
        ".jsonl": _json_lines, ".json": _json_list, ".csv": _table, ".tsv": _tabbed,
    }  # fmt: skip
    if path.suffix not in kinds:
        raise WorkbenchError(
            f"Expected a file of prompts that ends in {', '.join(FILES)}, found {path}; save its "
            "rows as one of these."
        )
    text = read_text(path, most=MOST, remedy="give prompts as UTF-8 text")
    return Rows(kinds[path.suffix](text), path.suffix in (".csv", ".tsv"))


def _json_lines(text: str) -> Iterator[Row]:
    """(line number, object), or the parser's complaint in its place; empty lines are skipped."""
    if text.lstrip()[:1] == "[":
        try:
            whole = parsed(text)
        except ValueError:
            whole = None
        if isinstance(whole, list):
            told = "expected one object a line, found a JSON list; name the file .json."
            yield 1, WorkbenchError(told)
            return
    # Not splitlines: a line separator of Unicode may stand inside a prompt.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parsed(line)
            except ValueError as error:
                yield number, WorkbenchError(f"not JSON ({error}); fix or remove the line.")


LINES = "one object a line is read from a file that ends in .jsonl"


def _json_list(text: str) -> Iterator[Row]:
    """(number, object) of a JSON list, from 1; of anything else the one complaint."""
    try:
        found = parsed(text)
    except ValueError as error:
        yield 1, WorkbenchError(f"not JSON ({error}); fix it; {LINES}.")
        return
    if not isinstance(found, list):
        told = f"expected a list of objects, found {type(found).__name__}; {LINES}."
        yield 1, WorkbenchError(told)
        return
    yield from enumerate(found, 1)


def _tabbed(text: str) -> Iterator[Row]:
    return _table(text, "\t")


def _table(text: str, delimiter: str = ",") -> Iterator[Row]:
    """(line number, column -> cell) of a table with a header; empty cells are left out, and columns
    without a name, as an index has. A header that is one cell is parted by the mark in it, as
    spreadsheets write ";" where numbers have a decimal comma."""

    def parted(by: str) -> csv.DictReader[str]:
        return csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=by)

    reader = parted(delimiter)
    try:
        header = reader.fieldnames or []
        other = next((one for one in ";\t|," if one in header[0]), "") if len(header) == 1 else ""
        if other:
            reader = parted(other)
            header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise csv.Error("a column occurs twice in its header")
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, WorkbenchError(f"expected {len(header)} cells.")
                continue
            yield reader.line_num, {k: v for k, v in row.items() if k and v}
    except csv.Error as error:
        yield reader.line_num + 1, WorkbenchError(f"not CSV ({error}); fix it.")


def of_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table, its cells as what they stand for: lists, objects, and the number of an
    answer. Raises WorkbenchError where that is not plain."""
    made = dict(row)
    for name in (*LISTS, *OBJECTS):
        cell = made.get(name)
        if isinstance(cell, str):
            made[name] = _listed(cell) if name in LISTS else _json(cell, name)
        if name in ("choices", "endings") and isinstance(cell, str) and len(made[name]) == 1:
            raise WorkbenchError(
                f"the cell {name} holds one text; separate them by |, or give a list in JSON."
            )
    for name in ("answer", "answerKey", "label"):
        cell, choices = made.get(name), made.get("choices", made.get("endings"))
        choices = choices["text"] if isinstance(choices, dict) and "text" in choices else choices
        if isinstance(cell, str) and isinstance(choices, list) and cell.isdecimal():
            if cell in choices and choices.index(cell) != int(cell):
                raise WorkbenchError(
                    f"{name} {cell} is the text of one choice and the number of another, counted "
                    "from 0; give a letter."
                )
            made[name] = int(cell)
    return made


def _listed(cell: str) -> Any:
    """The texts of a cell: a list or an object in JSON, or separated by "|"."""
    if cell[:1] in "[{":
        try:
            return parsed(cell)
        except ValueError:
            pass
    return cell.split("|")


def _json(cell: str, name: str) -> Any:
    try:
        return parsed(cell)
    except ValueError as error:
        raise WorkbenchError(f"{name} must be JSON in a table ({error}).") from error


def _of_dataset(folder: Path) -> Iterator[Row]:
    """The rows of what save_to_disk wrote: of one split, where there are several."""
    if (folder / DATASETS).is_file():
        folder = folder / _split(folder)
    if not (folder / DATASET).is_file():
        raise WorkbenchError(
            f"Expected a folder that `datasets` wrote with save_to_disk ({DATASET} or {DATASETS}) "
            f"at {folder}, found neither; give a file ({', '.join(FILES)}) or such a folder."
        )
    state = read_json(folder / DATASET)
    parts = state.get("_data_files")
    listed = parts if isinstance(parts, list) else []
    names = [str(p.get("filename") if isinstance(p, dict) else "") for p in listed]
    if not names or not all(_plain(name) and name.endswith(".arrow") for name in names):
        raise WorkbenchError(f"{folder / DATASET} names no files of the dataset; save it again.")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise WorkbenchError(
            f"{folder} stores a selection of its rows in a separate file; save it "
            "again after flatten_indices()."
        )
    yield from _of_arrow(folder, [folder / name for name in names], "stream")


def _plain(name: Any) -> bool:
    """Whether it names something that lies in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {*name} & {*"/\\\0"}


def _split(folder: Path) -> str:
    """Which split of a DatasetDict is read: test, validation, or the only one."""
    names = read_json(folder / DATASETS).get("splits")
    if not isinstance(names, list) or not all(map(_plain, names)):
        raise WorkbenchError(f"{folder / DATASETS} does not name its splits; save it again.")
    for name in ("test", "validation"):
        if name in names:
            if len(names) > 1:
                log.info("%s: reads the split %s; the splits are %s.", folder, name, some(names))
            return name
    if len(names) == 1:
        return names[0]
    raise WorkbenchError(
        f"Expected the split test or validation in {folder}, found "
        f"{some(names) or 'none'}; give the folder of one, for example "
        f"{folder / (names or ['train'])[0]}."
    )


def _of_arrow(place: Path, files: list[Path], kind: str) -> Iterator[Row]:
    """The rows of tables of Arrow, read in a process of its own. kind: "parquet" or "stream"."""
    for file in files:
        if not file.is_file():
            raise WorkbenchError(f"Expected a file at {file}, found none; save {place} again.")
    paths = [os.path.abspath(file) for file in files]
    try:
        found = bounded("table", seconds=SECONDS, room=ROOM, paths=paths, kind=kind, most=MOST_ROWS)
    except (ValueError, TimeoutError) as error:
        raise WorkbenchError(
            f"Expected a table in {place}, which cannot be read ({reason(error)}); save it again, "
            "or as .jsonl."
        ) from error
    yield from enumerate(found, 1)
