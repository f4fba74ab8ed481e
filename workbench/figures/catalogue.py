"""Which figures are there, and what does each analysis say in a sentence? Every method's own.

A method's figures are in the file of its analysis key: those of forgetting.probe in
`forgetting/probe.py`. Such a file names its KEY, its HEADING in a report, its DRAWINGS and its
`sentence`, and is found here by lying in one of the folders.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.conveniences import provides
from workbench.errors import WorkbenchError
from workbench.figures.drawing import Drawing
from workbench.figures.looks import Everyone
from workbench.figures.wording import Findings
from workbench.results.result import Result

PACKAGE = "workbench.figures"


def methods() -> Iterator[ModuleType]:
    """The file of every method: those in the folders beside this one that name a KEY."""
    for folder in _inside(PACKAGE):
        if folder.ispkg:
            for file in _inside(folder.name):
                found = import_module(file.name)
                if hasattr(found, "KEY"):
                    yield found


def _inside(package: str) -> Iterator[pkgutil.ModuleInfo]:
    return pkgutil.iter_modules(import_module(package).__path__, f"{package}.")


METHODS = tuple(methods())
CATALOGUE: tuple[Drawing, ...] = tuple(
    drawing for method in METHODS for drawing in getattr(method, "DRAWINGS", ())
)
SENTENCES: dict[str, Callable[[Result], Findings]] = {
    method.KEY: method.sentence for method in METHODS if hasattr(method, "sentence")
}


# What a chapter of the report is called.
HEADINGS = {method.KEY: method.HEADING for method in METHODS}


@provides("Result.plot")
def draw(
    result: Result,
    ax: Axes | None = None,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    **options: Any,
) -> Figure:
    """The first figure of `result`'s analysis; options are those of its function.

    figsize: width and height in inches, of a figure of its own. title: above all of it, or above
    `ax`. Raises WorkbenchError where no figure shows such a result, or it has no such option.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise WorkbenchError(f"Expected the axes to draw in, or nothing, found {ax!r}.")
    if ax is not None and figsize is not None:
        raise WorkbenchError("Expected figsize, of a new figure, or ax, to draw in; found both.")
    for drawing in CATALOGUE:
        alone = not drawing.companion or drawing.alone
        if drawing.analysis == result.analysis and alone and drawing.applies(result):
            require_options(drawing, options)
            return _titled(drawing.draw(result, ax=ax, **options), ax, figsize, title)
    known = sorted({drawing.analysis for drawing in CATALOGUE})
    raise WorkbenchError(f"No figure of {result.analysis!r} is known; there are those of {known}.")


def require_options(drawing: Drawing, options: Mapping[str, Any]) -> None:
    """Raise WorkbenchError for an option that a figure does not have."""
    known = [
        name
        for name, one in inspect.signature(drawing.draw).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    ]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise WorkbenchError(
            f"Figure {drawing.name} has no option {unknown[0]!r}; it has "
            f"{', '.join([*known, 'figsize', 'title'])}."
        )


def _titled(
    figure: Figure, ax: Axes | None, size: tuple[float, float] | None, title: str | None
) -> Figure:
    if size is not None:
        figure.set_size_inches(*size)
    if title is not None and ax is not None:
        ax.set_title(title)
    elif title is not None:
        figure.suptitle(title)
    return figure


def drawings(
    result: Result, results: Sequence[Result]
) -> Iterator[tuple[Drawing, tuple[Result, ...]]]:
    """Every figure that `result` can be drawn as, with the Results it takes.

    results: where a companion is looked for; it is the one of the same base that shares the most
    members.
    """
    for drawing in CATALOGUE:
        if drawing.analysis != result.analysis:
            continue
        group: tuple[Result, ...] = (result,)
        if drawing.companion:
            others = [
                other
                for other in results
                if other.analysis == drawing.companion
                and other.provenance.base == result.provenance.base
                and set(other.members) & set(result.members)
            ]
            if others:
                group += (max(others, key=lambda o: len(set(o.members) & set(result.members))),)
            elif not drawing.alone:
                continue
        if drawing.applies(*group):
            yield drawing, group


def everyone(results: Sequence[Result]) -> Everyone:
    """Member -> what is known of it, over all `results`."""
    return Everyone(results)


def headline(result: Result) -> str:
    """One sentence per analysis, derived from its table alone.

    An analysis without a sentence of its own gets one that names what its table holds.
    """
    lead, parts = findings(result)
    return f"{lead} — {'; '.join(parts)}." if parts else f"{lead}."


def findings(result: Result) -> Findings:
    """The headline in its parts: what was measured, and a clause per model that begins with it."""
    return SENTENCES.get(result.analysis, _generic)(result)


def _generic(result: Result) -> Findings:
    metrics = list(dict.fromkeys(result.table["metric"]))
    others = " and others" if len(metrics) > 6 else ""
    members = ", ".join(result.members)
    return (
        f"The table holds {len(result.table)} values of "
        f"{', '.join(metrics[:6])}{others} for {members}"
    ), []
