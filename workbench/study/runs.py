"""A run written to its folder, and its figures and report drawn from what is kept there alone; what
lies where is in `workbench.results.run_folder`."""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench import figures
from workbench.errors import WorkbenchError, visible
from workbench.figures import style
from workbench.files.reading import read_text
from workbench.files.writing import OWN, require_free, writing
from workbench.reports.page import PAGE, report
from workbench.results.result import Result, command_line
from workbench.results.run_folder import (
    FAILED,
    QUESTION,
    about_run,
    load,
    load_phantoms,
    require_own,
    write_about,
)


def keep(
    out: Path,
    made: Mapping[str, Result],
    *,
    title: str | None = None,
    preflight: pd.DataFrame | None = None,
    failed: Mapping[str, Exception] | None = None,
    asked: Sequence[str] = (),
    phantoms: Mapping[str, Result | str] | None = None,
    formats: Sequence[str] = ("png", "pdf"),
    workers: int = 1,
) -> Path:
    """Write everything of a run but results/, which are there; returns the report's path.

    made: Results by name, in the report's order. failed: what was raised, by what it was. asked:
    the first prompts as they were read. phantoms: the same Results of models that learned nothing,
    which are there too, or why there is none. formats: of the figures' files, PNG among them.
    workers: processes that draw.
    """
    failed = failed or {}
    lines = [] if preflight is None else preflight.to_dict("records")
    about = {
        "title": title or QUESTION,
        "results": list(made),
        "failures": [_said(name, error) for name, error in failed.items()],
        "preflight": lines,
        "command": command_line(),
        "asked": list(asked),
        "phantoms": {
            name: one if isinstance(one, str) else "" for name, one in (phantoms or {}).items()
        },
        # An earlier run of this folder keeps the colours that its figures have.
        "looks": style.saved(figures.everyone([*made.values()]), about_run(out)["looks"]),
    }
    earlier = set(about_run(out)["failures"])
    write_about(out, about)
    _write_failed(out / FAILED, failed, earlier)
    return redraw(out, formats=formats, workers=workers)


def _write_failed(folder: Path, failed: Mapping[str, Exception], earlier: set[str]) -> None:
    """A traceback for each of them, and none of an earlier run, which begin as its run.json says;
    whatever else lies there stays."""
    for left in folder.glob("*.txt"):
        if _begins_with(left, earlier):
            left.unlink()
    names = (folder / f"{number:02d}.txt" for number in itertools.count(1))
    free = (file for file in names if not os.path.lexists(file))
    for (name, error), file in zip(failed.items(), free, strict=False):
        trace = "".join(traceback.format_exception(error))
        with writing(file, OWN) as fresh:
            fresh.write_text(f"{_said(name, error)}\n\n{trace}", encoding="utf-8")
    if not failed and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _begins_with(file: Path, lines: set[str]) -> bool:
    try:
        return read_text(file).partition("\n")[0] in lines
    except WorkbenchError:
        return False


def redraw(
    folder: str | Path,
    *,
    pictures: str | Path | None = None,
    formats: Sequence[str] = ("png", "pdf"),
    workers: int = 1,
) -> Path:
    """Draw the figures and the report of a finished run from what it kept, without a model.

    folder: what `compare` wrote, or a copy of its results/ and run.json. pictures: where figures
    go, None for figures/ in it. formats: of their files, PNG among them. workers: processes that
    draw, see `figures.save_all`. Returns the report's path. Raises WorkbenchError where it holds no
    results.
    """
    folder = Path(folder)
    require_free(folder / "report.html", PAGE)
    require_own(folder, () if pictures else ("figures",))
    made, about = load(folder), about_run(folder)
    pictures = Path(pictures or folder / "figures")
    with style.as_saved(figures.everyone([*made.values()]), about["looks"]):
        figures.save_all(made, pictures, formats=formats, workers=workers)
        return report(
            made,
            folder / "report.html",
            title=about["title"],
            preflight=pd.DataFrame(about["preflight"]) if about["preflight"] else None,
            failures=about["failures"],
            command=about["command"],
            asked=about["asked"],
            pictures=pictures,
            phantoms=load_phantoms(folder),
        )


def _said(name: str, error: Exception) -> str:
    kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
    return " ".join(visible(f"{name}: {kind}{error}").split())
