"""A Result as an xarray Dataset: values by the names of member, layer, head and prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.conveniences import provides
from workbench.export.tables import KEYS
from workbench.export.wanting import wanted
from workbench.results.result import Result

if TYPE_CHECKING:
    from xarray import Dataset

# (analysis, last part of a tensor's name, "" for any) -> its dimensions.
AXES = {
    ("spectral.similarity", ""): ("tuned_vector", "base_vector"),
    ("patching.patterns", "last"): ("layer", "head", "key"),
    ("patching.patterns", "head"): ("query", "key"),
    ("behaviour.tokens", ""): ("token",),
    ("forgetting.knowledge", ""): ("question",),
    ("forgetting.prune", ""): ("entry",),
    ("skills.localize", ""): ("entry",),
}
# Cells of an array for each value in it at most, and how many are never too many.
SPARSEST, SMALL = 20, 10_000
Array = tuple[tuple[str, ...], np.ndarray]


@provides("Result.to_xarray")
def to_xarray(result: Result) -> Dataset:
    """The table and the tensors as one xarray Dataset.

    A metric is a variable of its name (METRIC.value where a key is called so) over those columns of
    `workbench.export.tables.KEYS` that it has, NaN where it has no value; METRIC.low, .high, .n and
    its other columns are further variables. If its keys do not distinguish its rows, or would leave
    the array almost empty, it has one dimension METRIC.row, and the keys are variables too. A
    missing key is "" or NaN. Tensors are variables of their names; their dimensions (a similarity's
    tuned_vector and base_vector, a pattern's query and key) end in their sizes. attrs: the
    provenance, mappings as JSON. Raises WorkbenchError where xarray is not installed.
    """
    xarray = wanted("xarray")
    table = result.table
    labels = {name: _labels(table[name]) for name in KEYS if name in table}
    found: dict[str, Array] = {}
    for metric, rows in table.groupby("metric", sort=False):
        found |= _variables(str(metric), rows, labels)
    for name, array in result.tensors.items():
        # A tensor of a metric's name stays apart from it.
        own = name if name not in found else f"{name}.tensor"
        found[own] = (_axes(result.analysis, name, array.shape), array)
    used = {axis for axes, _ in found.values() for axis in axes}
    coordinates = {name: own for name, own in labels.items() if name in used}
    return xarray.Dataset(found, coordinates, dict(_about(result)))


def _axes(analysis: str, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The dimensions of a tensor; with their sizes, since one tensor's may be another's or not."""
    known = AXES.get((analysis, name.rpartition("/")[2])) or AXES.get((analysis, ""))
    if known is None or len(known) != len(shape):
        return tuple(f"{name}.{number}" for number in range(len(shape)))
    return tuple(f"{axis}_{size}" for axis, size in zip(known, shape, strict=True))


def _labels(column: pd.Series) -> np.ndarray:
    """The different values of a key, in the order they come in."""
    return pd.unique(_plain(column))


def _plain(column: pd.Series) -> np.ndarray:
    """A column as numpy has it: numbers as float64 where any is missing, text as objects."""
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return column.astype(object).where(column.notna(), "").to_numpy(dtype=object)
    if column.isna().any() or pd.api.types.is_float_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=np.int64)


def _variables(metric: str, rows: pd.DataFrame, labels: dict[str, np.ndarray]) -> dict[str, Array]:
    """What one metric's rows say, by the names of variables."""
    known = [name for name in rows if name != "metric" and rows[name].notna().any()]
    keys = [name for name in labels if name in known]
    told = [name for name in dict.fromkeys(("value", *known)) if name not in keys]
    shape = tuple(len(labels[name]) for name in keys)
    fills = np.prod(shape, dtype=float) <= max(SPARSEST * len(rows), SMALL)
    if not keys or not fills or rows.duplicated(keys).any():
        listed = {name: ((f"{metric}.row",), _plain(rows[name])) for name in (*told, *keys)}
        return {_called(metric, name): own for name, own in listed.items()}
    at = tuple(pd.Index(labels[name]).get_indexer(_plain(rows[name])) for name in keys)
    found = {}
    for name in told:
        values = _plain(rows[name])
        text = values.dtype == object
        whole = np.full(shape, "" if text else np.nan, dtype=object if text else np.float64)
        whole[at] = values
        found[_called(metric, name)] = (tuple(keys), whole)
    return found


def _called(metric: str, column: str) -> str:
    """The variable of a column; a metric that is called like a key keeps apart from it."""
    return metric if column == "value" and metric not in KEYS else f"{metric}.{column}"


def _about(result: Result) -> Iterator[tuple[str, Any]]:
    yield "analysis", result.analysis
    for name, value in asdict(result.provenance).items():
        if value is not None:
            told = isinstance(value, str | int)
            listed = name == "notes"
            yield name, value if told else list(value) if listed else json.dumps(value, default=str)
