"""Arrays that may be larger than memory: beyond a size they lie in a file without a name.

The file is a temporary one in the folder that TMPDIR names. The system takes it away with the array
and with the process, however that ends, so that an interrupted run leaves nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from workbench.errors import WorkbenchError

LARGE = 256 << 20  # bytes; what is larger lies in a file
ROOM = 1 << 22  # numbers that are worked on at once
STEP = 1000  # rows; parts are of whole steps, as those of `stats.ratios` are


def unknown(shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """An array full of NaN. Raises WorkbenchError where it is large and the disk has no room."""
    size = prod(shape) * np.dtype(dtype).itemsize
    if size <= LARGE:
        return np.full(shape, np.nan, dtype)
    try:
        with tempfile.TemporaryFile(prefix="workbench-") as file:
            # Written and not only made longer: a disk without room says so now, by an error.
            for begin in range(0, prod(shape), ROOM):
                file.write(np.full(min(ROOM, prod(shape) - begin), np.nan, dtype).data)
            file.flush()
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except OSError as error:
        raise WorkbenchError(
            f"Expected {size / 2**30:,.1f} GiB of room in {tempfile.gettempdir()} for what single "
            f"prompts score ({error}); let TMPDIR name a folder with more, or give fewer sites, "
            "positions or prompts."
        ) from error


def parts(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of the rows of (rows, items) that are worked on at once, at least one."""
    width = max(1, prod(values.shape[1:]))
    rows = max(1, ROOM // width // STEP) * STEP
    yield from (slice(begin, begin + rows) for begin in range(0, max(1, len(values)), rows))


def less(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """one - other, of which either may be (items,) where the other is (rows, items)."""
    made = unknown(np.broadcast_shapes(one.shape, other.shape))
    for some in parts(made):
        ends = (end[some] if end.ndim > 1 else end for end in (one, other))
        np.subtract(*ends, out=made[some])
    return made


def converted(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """A copy (rows, items) in another precision."""
    made = unknown(values.shape, dtype)
    for some in parts(values):
        made[some] = values[some]
    return made
