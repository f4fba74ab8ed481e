"""Files mapped into memory: their bytes as tensors, and sha256 of them, from one reading.

A map and not reads into a buffer: what one thread brought in, to compare it, is there for the one
that hashes it. Pages that are done with are given back, so that they do not pile up.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import MIB
from workbench.loaders.weights import Weights
from workbench.results import cache


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


Entries = Callable[[int, int], Tensor]
"""(first, last) -> those entries of a flattened parameter, at stored precision."""


def entries_of(weights: Weights, name: str, files: Files) -> Entries:
    """Entries as they are stored, without the rest of the tensor where it lies in a file as it is:
    a transposed matrix is not turned."""
    known = weights.info[name]
    if known.start is None or known.dtype is None:
        return held(weights[name])
    file, start, dtype = files[weights.home[name]], known.start, known.dtype
    return lambda first, last: file.entries(start, dtype, first, last)


def held(tensor: Tensor) -> Entries:
    """The entries of a tensor in memory."""
    flat = tensor.flatten()
    return lambda first, last: flat[first:last].cpu()


class Hashing:
    """sha256 of files one after another, as far as it was asked for; each is remembered as it
    ends. Only one thread at a time may call it."""

    def __init__(self, files: Sequence[Mapped]) -> None:
        self.files = [file for file in files if cache.kept_digest(file.memo) is None]
        self.sizes = [len(file) for file in self.files]
        self.size = sum(self.sizes)
        self.ended: list[str] = []  # digests of the files that are done
        self.sha, self.first, self.done = hashlib.sha256(), 0, 0  # first: byte of the file in hand

    def advance(self, share: float) -> None:
        """Go on until this share of all bytes is hashed."""
        while self.done < share * self.size:
            file = self.files[len(self.ended)]
            run = memoryview(file.map)[self.first : self.first + MIB]
            self.sha.update(run)
            self.first, self.done = self.first + len(run), self.done + len(run)
            if self.first == len(file):
                self.ended.append(self.sha.hexdigest())
                file.keep(self.ended[-1])
                self.sha, self.first = hashlib.sha256(), 0

    def settle(self) -> None:
        """To be called between two shares, when no thread is in `advance` of either side."""


class Following(Hashing):
    """The other side's files. As long as they are the leader's byte for byte they are compared,
    which is faster, and the leader's hash is theirs."""

    def __init__(self, files: Sequence[Mapped], leader: Hashing) -> None:
        super().__init__(files)
        self.leader, self.same = leader, self.sizes == leader.sizes

    def advance(self, share: float) -> None:
        if self.same:
            self.same = self._same(share)
        if not self.same:
            super().advance(share)

    def settle(self) -> None:
        """Take over what the leader hashed."""
        leader = self.leader
        if self.same:
            for digest in leader.ended[len(self.ended) :]:
                self.files[len(self.ended)].keep(digest)
                self.ended.append(digest)
            self.sha, self.first, self.done = leader.sha.copy(), leader.first, leader.done

    def _same(self, share: float) -> bool:
        """Whether both sides have the same bytes from where they are to this share."""
        at, first, done = len(self.ended), self.first, self.done
        while done < share * self.size:
            run = slice(first, first + MIB)
            if not same_bytes(self.files[at].bytes[run], self.leader.files[at].bytes[run]):
                return False
            size = min(MIB, self.sizes[at] - first)
            done, first = done + size, first + size
            if first == self.sizes[at]:
                at, first = at + 1, 0
        return True


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of bytes of one length are equal; by words of 8 where they begin at one."""
    if one.storage_offset() % 8 or other.storage_offset() % 8:
        return torch.equal(one, other)
    whole = len(one) // 8 * 8
    words = [run[:whole].view(torch.int64) for run in (one, other)]
    return torch.equal(*words) and torch.equal(one[whole:], other[whole:])
