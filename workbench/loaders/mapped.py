"""Files mapped into memory: their bytes as tensors, and sha256 of them, from one reading.

A map and not reads into a buffer: what one thread brought in, to compare it, is there for the one
that hashes it. Pages that are done with are given back, so that they do not pile up.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workbench import cache
from workbench.errors import WorkbenchError
from workbench.files import MIB


class Mapped:
    """One file, as it was when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path, self.memo = path, cache.digest_memo(path)
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # Nothing here writes.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            self.bytes = torch.frombuffer(self.map, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.map)

    def entries(self, start: int, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Entries [first:last] of the tensor whose data begin at byte `start`; no copy of them
        where they are aligned."""
        size = dtype.itemsize
        if start + last * size > len(self):
            raise WorkbenchError(
                f"{self.path} was changed while it was read; run the command again."
            )
        run = self.bytes[start + first * size : start + last * size]
        return (run.clone() if start % size else run).view(dtype)

    def release(self) -> None:
        """Give back the pages; what is asked for again is mapped again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)

    def keep(self, digest: str) -> None:
        """Remember the file's sha256, unless the file was written meanwhile."""
        # A cache that cannot be written costs the next one who asks a second reading, no more.
        with contextlib.suppress(OSError, WorkbenchError):
            if cache.digest_memo(self.path) == self.memo:
                cache.keep_digest(self.memo, digest)


class Files(dict[Path, Mapped]):
    """Resolved path -> its map, made when it is first asked for."""

    def __missing__(self, path: Path) -> Mapped:
        real = path.resolve()
        if real != path:
            return self[real]
        self[real] = Mapped(real)
        return self[real]

    def release(self) -> None:
        for file in self.values():
            file.release()


class Hashing:
    """sha256 of files one after another, as far as it was asked for; each is remembered as it
    ends. Only one thread at a time may call `advance`."""

    def __init__(self, files: Sequence[Mapped]) -> None:
        self.files = [file for file in files if cache.kept_digest(file.memo) is None]
        self._size, self._done = sum(map(len, self.files)), 0
        self._steps = self._hashed()

    def advance(self, share: float) -> None:
        """Go on until this share of all bytes is hashed."""
        while self._done < share * self._size:
            self._done += next(self._steps)

    def _hashed(self) -> Iterator[int]:
        for file in self.files:
            sha, content = hashlib.sha256(), memoryview(file.map)
            for first in range(0, len(file), MIB):
                run = content[first : first + MIB]
                sha.update(run)
                if first + len(run) == len(file):
                    file.keep(sha.hexdigest())
                yield len(run)
