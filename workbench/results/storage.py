"""A saved Result, read strictly: any folder may claim to be one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import is_count, is_number, read_json

MOST_CELLS = 50_000_000  # of a table; the largest analyses have some 100,000 rows of 15 columns
MOST_MEMBERS = 500  # each has a row of every table and a line of every figure
MOST_TEXT = 1 << 30  # bytes of one column's text, which a file of a few kilobytes can claim
KEY = re.compile(r"\w[\w.-]{0,99}")  # an analysis names files of figures
TEXTS = ("device", "dtype", "command", "created")
NAMES = ("reference", "fingerprint", "kind")  # of a checkpoint
MAPPINGS = ("base", "members", "parameters", "versions")


def provenance(folder: Path) -> tuple[dict[str, Any], str]:
    """(fields of a Provenance, analysis) from result.json; raises WorkbenchError."""
    about = read_json(folder / "result.json")
    about.pop("format", None)
    analysis, notes = about.pop("analysis", None), about.get("notes")
    bad = [name for name in TEXTS if not isinstance(about.get(name), str)]
    bad += [name for name in MAPPINGS if not isinstance(about.get(name), dict)]
    if not bad and not all(isinstance(one, dict) for one in about["members"].values()):
        bad = ["members"]
    if not bad and len(about["members"]) > MOST_MEMBERS:
        raise WorkbenchError(
            f"{folder / 'result.json'} names {len(about['members'])} models, and no "
            f"more than {MOST_MEMBERS} can be shown; take `result.of` some of them "
            "before it is saved."
        )
    numbers = ("rank", "alpha", "step")
    if not bad and not all(
        one.get(name) is None or is_number(one[name])
        for one in about["members"].values()
        for name in numbers
    ):
        bad = ["members"]
    for where in () if bad else ("base", "members"):
        told = about[where].values() if where == "members" else [about[where]]
        if not all(isinstance(one.get(name, ""), str) for one in told for name in NAMES):
            bad.append(where)
    if not isinstance(analysis, str) or not KEY.fullmatch(analysis):
        bad.append("analysis")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        bad.append("notes")
    if about.get("seed") is not None and not is_count(about["seed"], 0):
        bad.append("seed")
    bad += sorted(about.keys() - {*TEXTS, *MAPPINGS, "notes", "seed"})
    if bad:
        raise WorkbenchError(
            f"{folder / 'result.json'} lacks the description of a saved Result "
            f"({', '.join(bad)} missing or of another kind); run its analysis again."
        )
    return about | {"notes": tuple(about["notes"])}, str(analysis)


def table(file: Path) -> pd.DataFrame:
    """table.parquet; raises WorkbenchError where it is damaged, far larger than its bytes, or holds
    anything but numbers and text."""
    _require_file(file)
    try:
        _require_modest(file)
        with file.open("rb") as opened:  # pyarrow itself knows no path outside the locale's code
            found = pd.read_parquet(opened)
    except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
        raise WorkbenchError(
            f"Expected a saved Result, but {file} cannot be read ({reason(error)}); "
            "run its analysis again."
        ) from error
    if "member" in found and found["member"].nunique() > MOST_MEMBERS:
        raise WorkbenchError(
            f"{file} has rows of {found['member'].nunique()} models, and no more than "
            f"{MOST_MEMBERS} can be shown; run its analysis on fewer."
        )
    numeric = "value" in found and pd.api.types.is_numeric_dtype(found["value"])
    named = "metric" in found and found["metric"].map(lambda name: isinstance(name, str)).all()
    if not (numeric and named and isinstance(found.index, pd.RangeIndex)):
        raise WorkbenchError(
            f"Expected text in the column metric and numbers in value of {file}; run "
            "its analysis again."
        )
    return found


def _require_file(file: Path) -> None:
    """Raise WorkbenchError for a pipe, which would be waited for, and a folder, of which pandas
    would read whatever is in it."""
    if not file.is_file():
        raise WorkbenchError(
            f"Expected a saved Result, but {file} is not a file; run its analysis again."
        )


def write(table: pd.DataFrame, file: Path) -> None:
    """A table as parquet, at three quarters of pandas' own size: numbers that hardly repeat are
    split into their bytes, those that do (shares of n, counts) are kept once."""
    split = [
        name
        for name in table
        if pd.api.types.is_float_dtype(table[name]) and table[name].nunique() > len(table) / 2
    ]
    with file.open("wb") as opened:
        table.to_parquet(
            opened,
            index=False,
            compression="zstd",
            compression_level=12,
            use_dictionary=[name for name in table if name not in split],
            use_byte_stream_split=split or False,
            write_statistics=False,  # of one row group nobody skips, and as large as small tables
        )


def write_tensors(arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Arrays as safetensors, one after the other, so that memory holds none that lies in a file."""
    import torch

    from workbench.files import tensors

    # torch warns of what may not be written, such as what was read from a file.
    plain = {name: np.require(own, requirements=["C", "W"]) for name, own in arrays.items()}
    given = {name: torch.from_numpy(own) for name, own in plain.items()}
    shapes = {name: (own.dtype, tuple(own.shape)) for name, own in given.items()}
    tensors.write_tensors(file, shapes, given.__getitem__)


def _require_modest(file: Path) -> None:
    """Raise ValueError where a table would take far more memory than anyone means."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with file.open("rb") as raw, pq.ParquetFile(raw) as opened:
        about, schema = opened.metadata, opened.schema_arrow
        if about.num_rows < 0 or about.num_rows * about.num_columns > MOST_CELLS:
            raise ValueError(f"{about.num_rows} rows of {about.num_columns} columns")
    texts = [one.name for one in schema if pa.types.is_large_string(one.type) or
             pa.types.is_string(one.type)]  # fmt: skip
    for one in schema:
        plain = pa.types.is_integer(one.type) or pa.types.is_floating(one.type)
        plain = plain or pa.types.is_boolean(one.type) or pa.types.is_null(one.type)
        if not plain and one.name not in texts:
            raise ValueError(f"column {one.name} is of type {one.type}")
    # As dictionaries a text that repeats takes its room once.
    with file.open("rb") as raw:
        dictionaries = pq.read_table(raw, columns=texts, read_dictionary=texts).columns
    for column in dictionaries:
        size = 0
        for chunk in column.chunks:
            lengths = pc.call_function("binary_length", [chunk.dictionary])
            size += pc.call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0
        if size > MOST_TEXT:
            raise ValueError(f"a column of {size} characters")


def tensors(file: Path) -> Mapping[str, np.ndarray]:
    """tensors.safetensors, empty where there is none; raises WorkbenchError where damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.exists():
        return {}
    _require_file(file)
    try:
        return load_file(file)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkbenchError(
            f"Expected a saved Result, but {file} cannot be read ({error}); run its analysis again."
        ) from error
