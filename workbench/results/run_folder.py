"""What a run keeps under its folder, read strictly: a copy of it may come from anyone.

results/NAME    the Results
run.json        the report's title, the names of its chapters in order, what failed, the preflight,
                the command, the colour and marker of every model in the figures, and by name what
                was refused of models that learned nothing, "" where there is a Result
figures/        NAME.FIGURE.png and .pdf
report.html
config.yaml     what it was asked, as `workbench compare --config` reads it
failed/         a traceback for each analysis that failed
units/          the units of work that the Results were joined from
phantoms/NAME   the same Results of models that learned nothing
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import MIB, read_json, read_text
from workbench.files.writing import OWN, Mark, holds, recover, require_free, writing
from workbench.results.result import Result

QUESTION = "What did fine-tuning do to this model?"  # the title, where none is given
ABOUT, FAILED, ASKED, PHANTOMS = "run.json", "failed", "config.yaml", "phantoms"
WRITTEN = ("results", "figures", FAILED, "units", PHANTOMS)
EMPTY: dict[str, Any] = {
    "results": [], "failures": [], "preflight": [], "command": "", "asked": [], "looks": {},
    "phantoms": {},
}  # fmt: skip
PREFLIGHT = {"item", "status", "found", "remedy"}


def begin(out: Path, options: Mapping[str, Any] | None = None) -> None:
    """Make `out` the folder of a run, before its first result.

    options: what config.yaml is to say; None takes away that of an earlier run. Raises
    WorkbenchError where `out` holds anything that no run wrote, or a config.yaml that was edited.
    """
    require_free(out, RUN)
    require_own(out, WRITTEN)
    require_free(out / ASKED, OPTIONS)
    if not (out / ABOUT).exists():
        write_about(out, EMPTY | {"title": QUESTION})
    if options is not None:
        with writing(out / ASKED, OPTIONS) as fresh:
            fresh.write_text(_signed(options), encoding="utf-8")
    elif (out / ASKED).exists():
        (out / ASKED).unlink()


SIGNED = "# As workbench compare was asked; --config reads it. sha256 of the lines below: "


def _signed(options: Mapping[str, Any]) -> str:
    """YAML behind the digest of its text, by which an edited copy is told from what was written."""
    import yaml

    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
    return f"{SIGNED}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _is_signed(file: Path) -> bool:
    with contextlib.suppress(WorkbenchError):
        head, _, text = read_text(file, most=MIB).partition("\n")
        return head == SIGNED + hashlib.sha256(text.encode()).hexdigest()
    return False


OPTIONS = Mark("the options of a run", _is_signed)


def require_own(out: Path, names: Sequence[str]) -> None:
    """Raise WorkbenchError where a folder of a run is a link: what is written would land, and what
    is replaced be lost, wherever it leads."""
    for path in (out / name for name in names):
        if path.is_symlink():
            raise WorkbenchError(
                f"{path} is a link to {os.readlink(path)}, outside the run; put the "
                "folder itself there, or remove the link."
            )


def write_about(out: Path, about: dict[str, Any]) -> None:
    with writing(out / ABOUT, OWN) as fresh:
        fresh.write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")


def load(folder: str | Path) -> dict[str, Result]:
    """The Results of the report under `folder`, by name and in its order; those of earlier runs
    that lie beside them stay out. Raises WorkbenchError where there are none."""
    folder = Path(folder)
    for name in about_run(folder)["results"]:
        if Path(name).name == name:
            recover(folder / "results" / name)
    there = sorted(path.parent.name for path in (folder / "results").glob("*/result.json"))
    if not there:
        raise WorkbenchError(
            f"Expected the results of a run in {folder / 'results'}, found none; give the folder "
            "that was the --out of `workbench compare` or `demo`."
        )
    listed = about_run(folder)["results"]
    lost = [name for name in listed if name not in there]
    if lost:
        raise WorkbenchError(
            f"{folder / ABOUT} lists {lost[0]!r}, which is not in {folder / 'results'}; run the "
            "comparison again."
        )
    return {name: Result.load(folder / "results" / name) for name in listed or there}


def load_phantoms(folder: str | Path) -> dict[str, Result | str]:
    """What the same analyses gave of models that learned nothing, by name: a Result, or the
    sentence by which it was refused. Raises WorkbenchError where one that is listed is gone."""
    folder = Path(folder)
    told = about_run(folder)["phantoms"]
    found: dict[str, Result | str] = {}
    for name, said in told.items():
        found[name] = said or Result.load(folder / PHANTOMS / Path(name).name)
    return found


def failures(folder: str | Path) -> list[str]:
    """What failed in the run under `folder`: one sentence each, as the report says it."""
    return about_run(Path(folder))["failures"]


def about_run(folder: Path) -> dict[str, Any]:
    """run.json, or what stands for it where only results were copied."""
    empty = EMPTY | {"title": QUESTION}
    if not (folder / ABOUT).exists():
        return empty
    found = empty | read_json(folder / ABOUT)
    lists = [found[name] for name in ("results", "failures", "preflight", "asked")]
    fit = all(isinstance(found[name], str) for name in ("title", "command"))
    drawn: Any = found["phantoms"]
    fit = fit and isinstance(found["looks"], dict) and isinstance(drawn, dict)
    fit = fit and all(isinstance(said, str) for said in drawn.values())
    fit = fit and all(isinstance(one, list) for one in lists)
    if fit:
        names, told, rows, asked = lists
        fit = all(isinstance(text, str) for text in (*names, *told, *asked))
        fit = fit and all(isinstance(row, dict) and set(row) >= PREFLIGHT for row in rows)
    if not fit:
        raise WorkbenchError(
            f"{folder / ABOUT} was not written by a comparison; run the comparison again."
        )
    return found


def _marked(folder: Path) -> bool:
    try:
        return (folder / ABOUT).exists() and bool(about_run(folder))
    except WorkbenchError:
        return False


RUN = Mark(
    "the results of a run",
    holds(
        "results", ABOUT, "figures", "report.html", ASKED, FAILED, "units", PHANTOMS, marked=_marked
    ),
)
