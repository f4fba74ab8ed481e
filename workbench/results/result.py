"""What an analysis returns: one tidy table, its tensors, and where it all came from."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.conveniences import convenience
from workbench.errors import WorkbenchError, visible
from workbench.files.reading import read_json
from workbench.files.writing import Mark, holds, recover, replacing
from workbench.results import storage
from workbench.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import Dataset

    from workbench.reports.explore import Explorer

FORMAT = 1
VERSIONED = ("torch", "transformers", "peft", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python, of the workbench and of the packages that decide a number."""
    own = {"python": platform.python_version(), "workbench": __version__}
    return own | {name: _version(name) for name in VERSIONED}


_version = cache(metadata.version)  # read from files, a second in a hundred Results


@dataclass(frozen=True)
class Provenance:
    """Everything needed to know, and to make again, what a Result shows.

    base: reference and fingerprint of the base checkpoint.
    members: member name -> reference, fingerprint, kind ("full" or "lora") and, where they are
        known, the LoRA rank and alpha, the training step, seed and recipe (see `recipes`).
    parameters: every argument of the analysis that can change a number.
    notes: what the preflight found that limits how the numbers may be read.
    """

    base: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    command: str = field(default_factory=lambda: command_line())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def with_notes(self, notes: tuple[str, ...]) -> Provenance:
        return replace(self, notes=tuple(dict.fromkeys(notes)))


PLACE = ("layer", "component", "expert")  # what names a matrix; the last of experts alone


def matrix_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a table that tell one matrix of a model from another."""
    return [column for column in PLACE if column in table]


def changed_matrices(table: pd.DataFrame) -> pd.DataFrame:
    """(member, the columns that name a matrix) of the matrices that fine-tuning changed, by what a
    table of matrices says of that; all where it says nothing, as older ones of intruders."""
    keys = ["member", *matrix_columns(table)]
    for metric in ("changed", "effective_rank"):
        told = table[table["metric"] == metric]
        if len(told):
            return told.loc[told["value"] > 0, keys]
    return table[keys].drop_duplicates()


def changed_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of those matrices, with the index they had."""
    changed = changed_matrices(table)
    keys = list(changed)
    return table[pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(changed))]


def how_many_changed(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Member -> matrices that changed, and matrices looked at."""
    told = table[table["metric"].isin(["changed", "effective_rank"])]
    every = (told if len(told) else table)[["member", *matrix_columns(table)]].drop_duplicates()
    changed = changed_matrices(table)["member"].value_counts()
    return {
        str(name): (int(changed.get(name, 0)), int(count))
        for name, count in every["member"].value_counts().items()
    }


def by_matrix(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """A table of (member, layer, component, expert, rank, metric, value); `expert` is a column only
    where any matrix is an expert's."""
    columns = ["member", *PLACE, "rank", "metric", "value"]
    table = pd.DataFrame(rows, columns=pd.Index(columns))
    table = table.astype({"layer": "Int64", "expert": "Int64", "rank": "Int64"})
    return table if table["expert"].notna().any() else table.drop(columns="expert")


def describe(value: Any) -> Any:
    """A parameter as JSON; prompt sets and lists of text by name, size and fingerprint."""
    if hasattr(value, "fingerprint") and hasattr(value, "name"):
        return {"name": value.name, "n": len(value), "fingerprint": value.fingerprint}
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Result):
        return {"analysis": value.analysis, "fingerprint": value.fingerprint}
    if isinstance(value, Mapping):
        return {str(name): describe(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > 16 and all(isinstance(part, str) for part in value):
            content = hashlib.sha256(json.dumps(list(value)).encode()).hexdigest()
            return {"texts": len(value), "fingerprint": content}
        return [describe(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def command_line() -> str:
    """The command that runs now, without the folder the program lies in."""
    name = Path(sys.argv[0]).name or "python"
    # As `python -m workbench.cli` it is the same program.
    return visible(" ".join(["workbench" if name == "__main__.py" else name, *sys.argv[1:]]))


@dataclass(frozen=True)
class Result:
    """One analysis of one pair, or of a family after `wb.over`.

    analysis: its key, e.g. "spectral.intruders".
    table: tidy; some of (member, layer, component, head, position, prompt, rank, seed, x), then
        metric, value, and where the value is a mean: low, high (95% interval), n and baseline.
    tensors: name -> array, for what does not fit a table (a similarity matrix).
    """

    analysis: str
    table: pd.DataFrame
    provenance: Provenance
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = {"metric", "value"} - set(self.table.columns)
        if missing:
            raise WorkbenchError(
                "A Result's table needs the columns metric and value; "
                f"{sorted(missing)} is missing."
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the table's content; when and where it was made stay out."""
        content = self.table.to_json(orient="split", double_precision=15)
        return hashlib.sha256(f"{self.analysis} {content}".encode()).hexdigest()

    @property
    def members(self) -> list[str]:
        """Member names, in the order they were given."""
        return list(self.provenance.members)

    def of(self, *members: str) -> Result:
        """The same of these members alone, in this order; raises for one that is not in it."""
        about = self.provenance.members
        unknown = [name for name in members if name not in about]
        if unknown:
            raise WorkbenchError(
                f"{self.analysis} has no model {unknown[0]!r}; it has {', '.join(about)}."
            )
        if "member" not in self.table:
            raise WorkbenchError(
                f"{self.analysis} compares its models with each other, so it cannot "
                "show only some of them."
            )
        rows = [self.table[self.table["member"] == name] for name in members]
        tensors = {
            name: array
            for name, array in self.tensors.items()
            if _owner(name, about) in (None, *members)
        }
        provenance = replace(self.provenance, members={name: about[name] for name in members})
        return Result(self.analysis, pd.concat(rows, ignore_index=True), provenance, tensors)

    def has(self, metric: str) -> bool:
        """Whether the table has rows of this metric."""
        return bool((self.table["metric"] == metric).any())

    def metric(self, name: str) -> pd.DataFrame:
        """The rows of one metric; raises if the table has none of it."""
        rows = self.table.loc[self.table["metric"] == name]
        if rows.empty:
            known = sorted(self.table["metric"].unique())
            raise WorkbenchError(f"{self.analysis} has no metric {name!r}; it has {known}.")
        return rows

    def plot(self, ax: Axes | None = None, **options: Any) -> Figure:
        """The first figure of this analysis; `workbench.figures` holds the others. options: of the
        figure, and figsize=(inches, inches) and title=."""
        return convenience("Result.plot")(self, ax=ax, **options)

    def explore(self) -> Explorer:
        """Interactive views of the table, offline, in a notebook or as a file, see
        `workbench.reports.explore`."""
        return convenience("Result.explore")(self)

    def to_csv(self, path: str | Path) -> Path:
        """Every row of the table as CSV, see `workbench.export.to_csv`; the file's path."""
        return convenience("Result.to_csv")(self, path)

    def to_latex(
        self, path: str | Path | None = None, *, metrics: Sequence[str] | None = None
    ) -> str:
        """A table for a paper, written to `path` too where one is given: a row a member and task, a
        column a metric with its interval, see `workbench.export.to_latex`."""
        return convenience("Result.to_latex")(self, path, metrics=metrics)

    def to_xarray(self) -> Dataset:
        """Table and tensors as an xarray Dataset, see `workbench.export.to_xarray`."""
        return convenience("Result.to_xarray")(self)

    def _repr_html_(self) -> str:
        return convenience("Result._repr_html_")(self)

    def save(self, folder: str | Path) -> Path:
        """Write table.parquet, tensors.safetensors and result.json to `folder`, all or nothing.

        A Result already there is replaced only after the new one is complete on disk. Raises
        WorkbenchError where anything else is there.
        """
        with replacing(Path(folder), SAVED) as fresh:
            storage.write(self.table, fresh / "table.parquet")
            if self.tensors:
                storage.write_tensors(self.tensors, fresh / "tensors.safetensors")
            about = {"format": FORMAT, "analysis": self.analysis} | asdict(self.provenance)
            (fresh / "result.json").write_text(json.dumps(about, indent=1, default=str))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` wrote; raises WorkbenchError where the folder does not hold a Result."""
        folder = Path(folder)
        recover(folder)
        if not (folder / "result.json").is_file():
            raise WorkbenchError(
                f"Expected a saved Result (result.json and table.parquet) in {folder}, found none."
            )
        if read_json(folder / "result.json").get("format") != FORMAT:
            raise WorkbenchError(
                f"{folder} holds a Result of another format; run its analysis again."
            )
        about, analysis = storage.provenance(folder)
        arrays = storage.tensors(folder / "tensors.safetensors")
        return cls(analysis, storage.table(folder / "table.parquet"), Provenance(**about), arrays)


def _owner(tensor: str, members: Iterable[str]) -> str | None:
    """Whose a tensor "MEMBER/NAME" is; None where it is everyone's. A member's own name may hold a
    slash, so the longest that fits counts."""
    return max((m for m in members if tensor.startswith(f"{m}/")), key=len, default=None)


def _marked(folder: Path) -> bool:
    try:
        found = read_json(folder / "result.json")
    except WorkbenchError:
        return False
    return isinstance(found.get("analysis"), str) and "format" in found


SAVED = Mark(
    "a saved Result",
    holds("result.json", "table.parquet", "tensors.safetensors", marked=_marked),
)


def concatenate(results: list[Result]) -> Result:
    """Join results of one analysis over several models of one base into one Result.

    Raises WorkbenchError if the analyses, bases or parameters differ: such rows must not be in one
    table.
    """
    first = results[0]
    for other in results[1:]:
        for what in ("base", "parameters", "seed"):
            ours, theirs = getattr(first.provenance, what), getattr(other.provenance, what)
            if json.dumps(ours, default=str) != json.dumps(theirs, default=str):
                raise WorkbenchError(
                    f"Cannot join results whose {what} differ: {ours} and {theirs}."
                )
        if other.analysis != first.analysis:
            raise WorkbenchError(f"Cannot join {first.analysis} with {other.analysis}.")
    table = pd.concat([r.table for r in results], ignore_index=True)
    members = {name: about for r in results for name, about in r.provenance.members.items()}
    tensors = {
        f"{r.members[0]}/{name}" if len(results) > 1 else name: array
        for r in results
        for name, array in r.tensors.items()
    }
    notes = tuple(dict.fromkeys(note for r in results for note in r.provenance.notes))
    return Result(
        first.analysis, table, replace(first.provenance, members=members, notes=notes), tensors
    )
