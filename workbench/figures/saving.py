"""How a figure is saved: the same bytes each time, and in them what it was drawn from."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.catalogue import drawings, everyone
from workbench.files.writing import Mark, require_free, says, writing
from workbench.results.result import Result


def metadata(title: str, results: Sequence[Result]) -> dict[str, str]:
    """What a file of a figure says of itself: Title, and Keywords (JSON) with the analyses and the
    fingerprints of their tables, of the base and of every member. Nothing that another day, folder
    or version would change."""
    prints = {name: about.get("fingerprint") for name, about in everyone(results).items()}
    keywords = {
        "analyses": [result.analysis for result in results],
        "tables": [result.fingerprint for result in results],
        "base": results[0].provenance.base.get("fingerprint"),
        "members": prints,
    }
    return {"Title": title, "Keywords": json.dumps(keywords)}


# What matplotlib would add of itself and of the moment.
UNSAID: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

# By the keywords of `metadata`.
FIGURE = Mark("a figure", says(b'"analyses": [', b'"tables": ['))


def write(
    figure: Figure,
    target: Path | BinaryIO,
    about: dict[str, str],
    *,
    format: str = "png",
    dpi: int = style.DPI,
) -> None:
    """`figure` as PNG or PDF with `about` as its metadata, the same bytes each time."""
    with mpl.rc_context(style.RC):
        figure.savefig(target, format=format, dpi=dpi, metadata=about | UNSAID[format])


def png(figure: Figure, about: dict[str, str]) -> bytes:
    """`figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    write(figure, buffer, about)
    return buffer.getvalue()


def named(results: Mapping[str, Result] | Sequence[Result]) -> dict[str, Result]:
    """Results by what the files of their figures are called: a mapping as it is; else the analysis,
    and ANALYSIS-2 for the second one of it."""
    if isinstance(results, Mapping):
        return dict(results)
    found: dict[str, Result] = {}
    seen: Counter[str] = Counter()
    for result in results:
        seen[result.analysis] += 1
        occurrence = seen[result.analysis]
        found[result.analysis + (f"-{occurrence}" if occurrence > 1 else "")] = result
    return found


def save_all(
    results: Mapping[str, Result] | Sequence[Result],
    folder: str | Path,
    *,
    formats: Sequence[str] = ("png", "pdf"),
    workers: int = 1,
) -> list[Path]:
    """Every figure of `results` as PNG and PDF in `folder`; their paths. A model has one colour and
    marker in all of them.

    Files are NAME.FIGURE.png and .pdf, NAME as `named` gives it. workers: processes that draw; with
    several a script must call this under `if __name__ == "__main__":`.
    """
    given = named(results)
    # As the block around gives them, which the processes that draw do not see.
    looks = style.saved(everyone([*given.values()]), {})
    album = Album(given, Path(folder), tuple(formats), looks)
    wanted = album.wanted()
    for one in wanted:
        for path in album.paths(*one):
            require_free(path, FIGURE)
    if min(workers, len(wanted)) < 2:
        return [path for one in wanted for path in album.save(*one)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(wanted)), spawn, _open, (album,)) as pool:
        return [path for paths in pool.map(_save, wanted) for path in paths]


class Album(NamedTuple):
    """Results by name, whose figures go to a folder. looks: colour and marker of every model."""

    results: Mapping[str, Result]
    folder: Path
    formats: tuple[str, ...]
    looks: Mapping[str, Sequence[str]] = {}

    def wanted(self) -> list[tuple[str, str]]:
        """(name of a Result, name of a figure) of every figure there is."""
        return [
            (name, drawing.name)
            for name, result in self.results.items()
            for drawing, _ in drawings(result, list(self.results.values()))
        ]

    def paths(self, name: str, figure: str) -> list[Path]:
        """The files of one of them."""
        return [self.folder / f"{name}.{figure}.{format}" for format in self.formats]

    def save(self, name: str, figure: str) -> list[Path]:
        """Draw one of them; the paths of its files."""
        everything, paths = list(self.results.values()), self.paths(name, figure)
        (drawing, group), *_ = (
            one for one in drawings(self.results[name], everything) if one[0].name == figure
        )
        with style.as_saved(everyone(everything), self.looks):
            drawn, about = drawing.draw(*group), metadata(drawing.title, group)
            for format, path in zip(self.formats, paths, strict=True):
                with writing(path, FIGURE) as fresh:
                    write(drawn, fresh, about, format=format)
        return paths


_OPENED: list[Album] = []  # in a process that draws


def _open(album: Album) -> None:
    _OPENED.append(album)


def _save(one: tuple[str, str]) -> list[Path]:
    return _OPENED[-1].save(*one)
