"""One figure of several panels, as a paper or a notebook shows it, from stored Results and a small
file, which `workbench figures --help` describes.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import catalogue, saving, style
from workbench.files.reading import is_count, is_number, read_json, read_yaml
from workbench.files.writing import require_free, writing
from workbench.results.result import Result
from workbench.results.run_folder import about_run

HEIGHT = 3.2  # inches of one row of panels, where the file does not say
SIZES = {"column": style.COLUMN, "wide": style.WIDE}
LARGEST = 24  # inches
MOST = 48  # columns; the layout's time grows with their number
REMEDY = "see `workbench figures --help`"
# What may be said of a panel beside its Result, and what it may be.
OWN: dict[str, Callable[[Any], bool]] = {
    "figure": lambda value: isinstance(value, str),
    "members": lambda value: (
        isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)
    ),
    "title": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, dict) and all(isinstance(n, str) for n in value),
    "span": is_count,
    "legend": lambda value: isinstance(value, bool),
}


class Style(NamedTuple):
    """How a figure is written: dots per inch, and files."""

    dpi: int
    formats: tuple[str, ...]


STYLES = {"paper": Style(300, ("png", "pdf")), "notebook": Style(style.SCREEN, ("png",))}


@dataclass(frozen=True)
class Panel:
    """One panel as the file asks for it. folder: of the saved Result; figure: None for its first;
    members: None for all."""

    folder: Path
    figure: str | None
    members: tuple[str, ...] | None
    title: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    span: int = 1
    legend: bool = True


@dataclass(frozen=True)
class Spec:
    """A figure as its file asks for it. size: (width, height) in inches."""

    panels: tuple[Panel, ...]
    style: str
    size: tuple[float, float]
    columns: int

    @classmethod
    def load(cls, path: str | Path) -> Spec:
        """Read a file as above; raises WorkbenchError for whatever it does not know."""
        path = Path(path)
        found = _mapping(read_yaml(path, remedy=REMEDY), str(path))
        _require_known(found, ("results", "style", "size", "columns", "panels"), str(path))
        panels = found.get("panels")
        if not isinstance(panels, list) or not 0 < len(panels) <= len(string.ascii_lowercase):
            raise WorkbenchError(f"Expected a list of 1 to 26 panels in {path}, found {panels!r}.")
        columns = found.get("columns", 1)
        if not is_count(columns) or columns > MOST:
            raise WorkbenchError(f"Expected 1 to {MOST} columns in {path}, found {columns!r}.")
        chosen = found.get("style", "paper")
        if chosen not in STYLES:
            raise WorkbenchError(
                f"Expected the style {' or '.join(STYLES)} in {path}, found {chosen!r}."
            )
        read = tuple(_panel(one, path, found.get("results"), columns) for one in panels)
        rows = max(row for row, _ in _places(read, columns)) + 1
        return cls(read, chosen, _size(found.get("size", "column"), rows, path), columns)

    def draw(self) -> Figure:
        """The figure. Raises WorkbenchError where a Result, a figure or a member is not there."""
        results = [_result(panel) for panel in self.panels]
        members = catalogue.everyone(results)
        with mpl.rc_context(style.RC), style.as_saved(members, _saved_looks(self.panels)):
            figure = style.Drawn(figsize=self.size, layout="constrained", dpi=style.SCREEN)
            places = _places(self.panels, self.columns)
            grid = figure.add_gridspec(max(row for row, _ in places) + 1, self.columns)
            letters = string.ascii_lowercase if len(self.panels) > 1 else [""]
            for panel, result, (row, column), letter in zip(
                self.panels, results, places, letters, strict=False
            ):
                part = figure.add_subfigure(grid[row, column : column + panel.span])
                _draw(panel, result, part.subplots())
                title = f"{letter}  {style.text(panel.title, 80)}".strip()
                if title:
                    part.suptitle(title, x=0.01, ha="left", fontsize=style.NORMAL)
        return figure

    def save(self, target: str | Path) -> list[Path]:
        """The figure as TARGET.png and, of the style paper, TARGET.pdf; their paths."""
        dpi, formats = STYLES[self.style]
        made = [Path(f"{target}.{format}") for format in formats]
        for path in made:
            require_free(path, saving.FIGURE)
        figure = self.draw()
        results = [_result(panel) for panel in self.panels]
        title = " · ".join(panel.title or panel.folder.name for panel in self.panels)
        about = saving.metadata(title, results)
        for format, path in zip(formats, made, strict=True):
            with writing(path, saving.FIGURE) as fresh:
                saving.write(figure, fresh, about, format=format, dpi=dpi)
        return made


def _saved_looks(panels: Sequence[Panel]) -> dict[str, Any]:
    """Colour and marker of every model, as the run saved them whose Results the panels show."""
    found: dict[str, Any] = {}
    for panel in panels:
        with contextlib.suppress(WorkbenchError):
            found |= about_run(panel.folder.parent.parent)["looks"]
    return found


def _draw(panel: Panel, result: Result, here: Any) -> None:
    """One panel, with the companion beside it where its figure takes one."""
    beside = [r for r in _beside(panel.folder) if r.provenance.base == result.provenance.base]
    choices = {d.name: (d, group) for d, group in catalogue.drawings(result, [result, *beside])}
    name = panel.figure or next(iter(choices), "")
    if name not in choices:
        raise WorkbenchError(
            f"{panel.folder.name} has no figure {panel.figure!r}; it has {', '.join(choices)}."
        )
    drawing, group = choices[name]
    try:
        drawing.draw(*group, ax=here, **panel.options)
    except Exception as error:
        if not panel.options:
            raise
        raise WorkbenchError(
            f"The figure {name!r} of {panel.folder.name} does not take the options "
            f"{dict(panel.options)} ({error})."
        ) from error
    if not panel.legend:
        for drawn in here.get_figure(root=False).axes:
            if drawn.get_legend():
                drawn.get_legend().remove()


def _places(panels: Sequence[Panel], columns: int) -> list[tuple[int, int]]:
    """(row, first column) of every panel, filling rows from the left."""
    found, row, column = [], 0, 0
    for panel in panels:
        if column + panel.span > columns:
            row, column = row + 1, 0
        found.append((row, column))
        column += panel.span
    return found


def _beside(folder: Path) -> list[Result]:
    """The other Results of the folder that some figure may take as a companion."""
    wanted = [drawing.companion for drawing in catalogue.CATALOGUE if drawing.companion]
    paths = [p.parent for p in sorted(folder.parent.glob("*/result.json")) if p.parent != folder]
    found = []
    for path in paths:
        # Nobody asked for what merely lies beside: whatever else it is, it is no companion.
        with contextlib.suppress(WorkbenchError):
            if read_json(path / "result.json").get("analysis") in wanted:
                found.append(Result.load(path))
    return found


def _result(panel: Panel) -> Result:
    found = Result.load(panel.folder)
    return found if panel.members is None else found.of(*panel.members)


def _panel(found: Any, path: Path, shared: Any, columns: int) -> Panel:
    where = f"a panel of {path}"
    one = _mapping(found, where)
    _require_known(one, ("results", "analysis", *OWN), where)
    folder, analysis = one.get("results", shared), one.get("analysis")
    for name, value in (("results", folder), ("analysis", analysis)):
        if not isinstance(value, str) or not value:
            raise WorkbenchError(f"Expected {name} of every panel in {path}, found {value!r}.")
    own = {name: one[name] for name in OWN if name in one}
    for name, value in own.items():
        if not OWN[name](value):
            raise WorkbenchError(f"{name} cannot be {value!r} in {where}; see its description.")
    if own.get("span", 1) > columns:
        raise WorkbenchError(f"{where} spans {own['span']} columns, and there are {columns}.")
    members = own.pop("members", None)
    return Panel(
        _near(path, str(folder), str(analysis)),
        own.pop("figure", None),
        None if members is None else tuple(members),
        **own,
    )


def _near(path: Path, folder: str, analysis: str) -> Path:
    """The folder of a Result that the file at `path` names, below the file's own folder or the one
    this runs in: a file that was passed on does not choose what else is read."""
    found = path.parent / folder / analysis
    homes = (path.parent.resolve(), Path.cwd().resolve())
    try:
        place = found.resolve()
        found.exists()
    except (ValueError, OSError) as error:  # characters, or so many, that no file system takes
        raise WorkbenchError(
            f"{path} names {folder[:60]!r} and {analysis[:60]!r}, which no folder can be called; "
            "name one of Results."
        ) from error
    if not any(place.is_relative_to(home) for home in homes):
        raise WorkbenchError(
            f"{path} names {found}, which lies neither below its own folder nor below the one you "
            "are in; move the file, or start where both are below."
        )
    return found


def _size(found: Any, rows: int, path: Path) -> tuple[float, float]:
    if isinstance(found, str) and found in SIZES:
        return SIZES[found], HEIGHT * rows
    if isinstance(found, list) and len(found) == 2 and all(map(is_number, found)):
        width, height = found
        if 1 <= width <= LARGEST and 1 <= height <= LARGEST:
            return float(width), float(height)
    raise WorkbenchError(
        f"Expected the size column, wide or [width, height] of 1 to {LARGEST} inches in {path}, "
        f"found {found!r}."
    )


def _mapping(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise WorkbenchError(f"Expected names with values in {where}, found {found!r}.")
    return found


def _require_known(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise WorkbenchError(f"Unknown {unknown[0]!r} in {where}; there are {', '.join(known)}.")
