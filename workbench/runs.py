"""What a finished run keeps under its folder, and its figures and report drawn from that alone.

results/NAME    the Results
run.json        the report's title, the names of its chapters in order, what failed, the preflight,
                and the command
figures/        NAME.FIGURE.png and .pdf
report.html
failed/         a traceback for each analysis that failed
units/          the units of work that the Results were joined from
"""

from __future__ import annotations

import itertools
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import figures
from workbench.errors import WorkbenchError, visible
from workbench.files import read_json, read_text
from workbench.outputs import OWN, Mark, holds, recover, require_free, writing
from workbench.reports import PAGE, QUESTION, report
from workbench.results import Result, command_line

ABOUT, FAILED = "run.json", "failed"
WRITTEN = ("results", "figures", FAILED, "units")
EMPTY: dict[str, Any] = {
    "results": [], "failures": [], "preflight": [], "command": "", "asked": [],
}  # fmt: skip
PREFLIGHT = {"item", "status", "found", "remedy"}


def keep(
    out: Path,
    made: Mapping[str, Result],
    *,
    title: str | None = None,
    preflight: pd.DataFrame | None = None,
    failed: Mapping[str, Exception] | None = None,
    asked: Sequence[str] = (),
    formats: Sequence[str] = ("png", "pdf"),
    workers: int = 1,
) -> Path:
    """Write everything of a run but results/, which are there; returns the report's path.

    made: Results by name, in the report's order. failed: what was raised, by what it was. asked:
    the first prompts as they were read. formats:
    of the figures' files, PNG among them. workers: processes that draw.
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
    }
    earlier = set(_about(out)["failures"])
    _write_about(out, about)
    _write_failed(out / FAILED, failed, earlier)
    return redraw(out, formats=formats, workers=workers)


def begin(out: Path) -> None:
    """Make `out` the folder of a run, before its first result. Raises WorkbenchError where it holds
    anything that no run wrote."""
    require_free(out, RUN)
    _require_own(out, WRITTEN)
    if not (out / ABOUT).exists():
        _write_about(out, EMPTY | {"title": QUESTION})


def _require_own(out: Path, names: Sequence[str]) -> None:
    """Raise WorkbenchError where a folder of a run is a link: what is written would land, and what
    is replaced be lost, wherever it leads."""
    for path in (out / name for name in names):
        if path.is_symlink():
            raise WorkbenchError(
                f"{path} is a link to {os.readlink(path)}, out of the run; put the folder itself "
                "there, or remove it."
            )


def _write_about(out: Path, about: dict[str, Any]) -> None:
    with writing(out / ABOUT, OWN) as fresh:
        fresh.write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")


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
    _require_own(folder, () if pictures else ("figures",))
    made, about = load(folder), _about(folder)
    pictures = Path(pictures or folder / "figures")
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
    )


def load(folder: str | Path) -> dict[str, Result]:
    """The Results of the report under `folder`, by name and in its order; those of earlier runs
    that lie beside them stay out. Raises WorkbenchError where there are none."""
    folder = Path(folder)
    for name in _about(folder)["results"]:
        if Path(name).name == name:
            recover(folder / "results" / name)
    there = sorted(path.parent.name for path in (folder / "results").glob("*/result.json"))
    if not there:
        raise WorkbenchError(
            f"Expected the results of a run in {folder / 'results'}, found none; give the folder "
            "that was the --out of `workbench compare` or `demo`."
        )
    listed = _about(folder)["results"]
    lost = [name for name in listed if name not in there]
    if lost:
        raise WorkbenchError(
            f"{folder / ABOUT} lists {lost[0]!r}, which is not in {folder / 'results'}; run the "
            "comparison again."
        )
    return {name: Result.load(folder / "results" / name) for name in listed or there}


def failures(folder: str | Path) -> list[str]:
    """What failed in the run under `folder`: one sentence each, as the report says it."""
    return _about(Path(folder))["failures"]


def _marked(folder: Path) -> bool:
    try:
        return (folder / ABOUT).exists() and bool(_about(folder))
    except WorkbenchError:
        return False


RUN = Mark(
    "the results of a run",
    holds("results", ABOUT, "figures", "report.html", FAILED, "units", marked=_marked),
)


def _said(name: str, error: Exception) -> str:
    kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
    return " ".join(visible(f"{name}: {kind}{error}").split())


def _about(folder: Path) -> dict[str, Any]:
    """run.json, or what stands for it where only results were copied."""
    empty = EMPTY | {"title": QUESTION}
    if not (folder / ABOUT).exists():
        return empty
    found = empty | read_json(folder / ABOUT)
    lists = [found[name] for name in ("results", "failures", "preflight", "asked")]
    fit = all(isinstance(found[name], str) for name in ("title", "command"))
    fit = fit and all(isinstance(one, list) for one in lists)
    if fit:
        names, told, rows, asked = lists
        fit = all(isinstance(text, str) for text in (*names, *told, *asked))
        fit = fit and all(isinstance(row, dict) and set(row) >= PREFLIGHT for row in rows)
    if not fit:
        raise WorkbenchError(
            f"{folder / ABOUT} is not what a comparison writes; run the comparison again."
        )
    return found
