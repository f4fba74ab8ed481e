"""One pass over both sides of a pair: what differs, by how much, and what is hashed.

Entries are read in the order of the base's files, a stretch of both sides at a time, and compared
in blocks that stay in a processor's cache while they are turned to float32, subtracted and summed.
No tensor is copied whole, and memory depends neither on the checkpoint's size nor on its largest
tensor. NaN and inf show in the very sums. Other threads hash the same stretch of the files
meanwhile where that is asked for, so that fingerprints need no second reading; the threads change
no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import MIB
from workbench.loaders.devices import cores
from workbench.loaders.memory_map import (
    Entries,
    Files,
    Following,
    Hashing,
    entries_of,
    held,
    same_bytes,
)  # fmt: skip
from workbench.loaders.names import ParameterSite
from workbench.loaders.pair import (
    CheckpointPair,
    not_finite,
    oriented,
    require_finite,
    require_fit,
    turned,
)  # fmt: skip
from workbench.loaders.weights import Weights, shard_files

BLOCK = 1 << 17  # entries at a time: two float32 blocks are 1 MiB, which a core's cache holds
PART = 32 * BLOCK  # entries that one thread takes
STRETCH = 128 * MIB  # bytes of the base between two times that all threads wait for each other
MOST_THREADS = 8  # more have nothing to do: hashing one file is the work of one
# A float32 sum of squares below this may have lost entries whose squares are no float32 any more.
LEAST = 1e-20


@dataclass(frozen=True)
class Change:
    """One parameter: |base|_F, NaN where it cannot be read, and |tuned - base|_F, or in `problem`
    why they are not known."""

    site: ParameterSite
    base: float
    norm: float
    problem: str = ""


class Sums(NamedTuple):
    """Of some entries: sums of squares of base and change, and how many are NaN or inf."""

    base: float
    change: float
    bad_base: int = 0
    bad_tuned: int = 0


class Part(NamedTuple):
    """Entries [first:last] of one parameter; `step` of them make a block."""

    name: str
    first: int
    last: int
    step: int


class Sides(NamedTuple):
    """Both sides of one parameter. tuned: None where all of its entries are the base's, or its
    change is known by its factors."""

    base: Entries
    tuned: Entries | None


def measured(pair: CheckpointPair, *, fingerprints: bool = False) -> list[Change]:
    """Every parameter's change, in the order of `pair.sites("all")`.

    fingerprints: take the sha256 of both sides' files on the way, as long as the comparison again,
    and keep it for `Checkpoint.fingerprint`.
    """
    sites = {site.name: site for site in pair.sites("all")}
    sums: dict[str, list[Sums]] = {name: [] for name in sites}
    problems: dict[str, str] = {}
    files = Files()
    hashing = _hashing(pair, files) if fingerprints else []
    with _workers() as pool:
        for parts, share in _stretches(pair):
            opened: dict[str, Sides] = {}
            for name in dict.fromkeys(part.name for part in parts):
                try:
                    opened[name] = _sides(pair, name, files)
                except WorkbenchError as error:
                    problems[name] = str(error)
            hashed = [pool.submit(one.advance, share) for one in hashing]
            summed = [
                (part.name, pool.submit(_summed, part, opened[part.name]))
                for part in parts
                if part.name in opened
            ]
            for name, found in summed:
                sums[name].append(found.result())
            for done in hashed:
                done.result()
            for one in hashing:
                one.settle()
            files.release()
    return [_change(pair, site, sums[name], problems.get(name)) for name, site in sites.items()]


@contextmanager
def _workers() -> Iterator[Executor]:
    """Threads that each compute alone: torch would start threads of its own in every one."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(cores(), MOST_THREADS), "preflight", torch.set_num_threads, (1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _hashing(pair: CheckpointPair, files: Files) -> list[Hashing]:
    """The files of each side that are not hashed yet; those of both sides once."""
    sides = [
        [path.resolve() for path in shard_files(side.folder)] if side.folder is not None else []
        for side in (pair.base, pair.tuned)
    ]
    sides[1] = [path for path in sides[1] if path not in set(sides[0])]
    leader, follower = ([files[path] for path in side] for side in sides)
    first = Hashing(leader)
    return [first, Following(follower, first)]


def _stretches(pair: CheckpointPair) -> Iterator[tuple[list[Part], float]]:
    """Parts of parameters as they lie in the base's files, about STRETCH bytes at a time, with the
    share of all bytes that is then done."""
    base = pair.base.weights()
    places = [
        (str(base.home.get(site.name, "")), base.info[site.name].start or 0, site.name)
        for site in pair.sites("all")
    ]
    # Sorting by place alone keeps the order of a model in memory.
    names = [name for _, _, name in sorted(places, key=lambda place: place[:2])]
    total = sum(math.prod(pair.shape(name)) * _itemsize(base, name) for name in names)
    parts, held, done = [], 0, 0
    for name in names:
        entries, step = math.prod(pair.shape(name)), _step(pair, name)
        size = step * max(1, PART // step)
        for first in range(0, entries, size):
            part = Part(name, first, min(first + size, entries), step)
            parts.append(part)
            held += (part.last - part.first) * _itemsize(base, name)
            if held >= STRETCH:
                done += held
                yield parts, done / total
                parts, held = [], 0
    yield parts, 1.0


def _itemsize(weights: Weights, name: str) -> int:
    dtype = weights.info[name].dtype
    assert dtype is not None
    return dtype.itemsize


def _step(pair: CheckpointPair, name: str) -> int:
    """Entries of a block: whole rows where the tuned matrix has to be formed."""
    if not _is_formed(pair, name):
        return BLOCK
    columns = _columns(pair, name)
    return columns * max(1, BLOCK // max(columns, 1))


def _columns(pair: CheckpointPair, name: str) -> int:
    """Entries of a row; of a vector, which has as many rows as entries, 1."""
    stored = torch.empty(pair.base.weights().info[name].shape, device="meta")
    return math.prod(turned(stored, pair.base, name).shape[1:])


def _is_factored(pair: CheckpointPair, name: str) -> bool:
    """Whether the change is a product of two factors and nothing else."""
    theirs = pair.comparable[name]
    if theirs not in pair.targets or theirs in pair.replaced:
        return False
    return pair.shared_base and pair.tuning.is_factored(theirs)


def _is_formed(pair: CheckpointPair, name: str) -> bool:
    """Whether an adapter changes the parameter by more than factors, or on another base."""
    return pair.comparable[name] in pair.adapted and not _is_factored(pair, name)


def _sides(pair: CheckpointPair, name: str, files: Files) -> Sides:
    theirs, base = pair.comparable[name], pair.base.weights()
    if pair.is_sealed(name):
        return Sides(lambda first, last: torch.zeros(last - first), None)
    if _is_formed(pair, name):
        return _formed(pair, name)
    ours = entries_of(base, name, files)
    if theirs in pair.replaced:
        assert pair.tuned.lora is not None
        whole = pair.tuned.lora.replacement(pair.replaced[theirs])
        if name not in pair.resized:
            require_fit(theirs, tuple(whole.shape), base.info[name].shape)
        return Sides(ours, held(whole))
    if pair.shared_base:
        return Sides(ours, None)
    return Sides(ours, entries_of(pair.tuned.weights(), theirs, files))


def _formed(pair: CheckpointPair, name: str) -> Sides:
    """Both sides of a parameter of which an adapter makes another, by whole rows."""
    theirs, base, columns = pair.comparable[name], oriented(pair.base, name), _columns(pair, name)
    stored = pair.stored(theirs, base)
    made = pair.tuning.rows(theirs, base if stored is None else stored)

    def rows(first: int, last: int) -> tuple[int, int]:
        return first // columns, last // columns

    return Sides(
        lambda first, last: base[slice(*rows(first, last))].flatten(),
        lambda first, last: made(*rows(first, last)).flatten(),
    )


def _summed(part: Part, sides: Sides) -> Sums:
    """The sums of one part, block by block."""
    space = torch.empty(2, min(part.step, part.last - part.first))
    found = []
    for first in range(part.first, part.last, part.step):
        last = min(first + part.step, part.last)
        tuned = None if sides.tuned is None else sides.tuned(first, last)
        found.append(_sums(sides.base(first, last), tuned, space[:, : last - first]))
    return _total(found)


def _total(sums: list[Sums]) -> Sums:
    columns = list(zip(*sums, strict=True)) or [()] * 4
    return Sums(math.fsum(columns[0]), math.fsum(columns[1]), sum(columns[2]), sum(columns[3]))


def _sums(base: Tensor, tuned: Tensor | None, space: Tensor) -> Sums:
    """The sums of one block. space: (2, entries), float32, written over."""
    if tuned is not None and tuned.dtype == base.dtype and same_bytes(_bits(base), _bits(tuned)):
        tuned = None
    ours = space[0].copy_(base)
    size, change = float(torch.dot(ours, ours)), 0.0
    sound = _sound(size, ours)
    if tuned is not None and sound:
        theirs = space[1].copy_(tuned).sub_(ours)
        change = float(torch.dot(theirs, theirs))
        sound = _sound(change, theirs)
    # Where base and change have finite sums, all entries of both sides are finite.
    return Sums(size, change) if sound else _exactly(base, tuned)


def _bits(entries: Tensor) -> Tensor:
    return entries.view(torch.uint8)


def _sound(square: float, entries: Tensor) -> bool:
    """Whether a float32 sum of squares lost nothing: no NaN, inf or overflow, no underflow. Writes
    over entries whose squares are all zero: so enlarged, any that is not zero itself would show."""
    if square == 0:
        entries.mul_(2.0**100)
        return float(torch.dot(entries, entries)) == 0
    return LEAST <= square < math.inf


def _exactly(base: Tensor, tuned: Tensor | None) -> Sums:
    """The sums of one block in float64, less the entries that are NaN or inf, which are counted."""
    ours = base.double()
    theirs = ours if tuned is None else tuned.double()
    fine = [torch.isfinite(side) for side in (ours, theirs)]
    change = torch.where(fine[0] & fine[1], theirs - ours, 0.0)
    size = torch.where(fine[0], ours, 0.0)
    bad = [int((~side).sum()) for side in fine]
    return Sums(float(size @ size), float(change @ change), bad[0], 0 if tuned is None else bad[1])


def _change(
    pair: CheckpointPair, site: ParameterSite, sums: list[Sums], problem: str | None
) -> Change:
    """What the sums of one parameter say."""
    found, theirs = _total(sums), pair.comparable[site.name]
    entries = math.prod(pair.shape(site.name))
    base, norm = math.sqrt(found.base), math.sqrt(found.change)
    try:
        if problem is not None:
            raise WorkbenchError(problem)
        if found.bad_base:
            raise not_finite(pair.base, site.name, found.bad_base, entries)
        if found.bad_tuned:
            raise not_finite(pair.tuned, theirs, found.bad_tuned, entries)
        if _is_factored(pair, site.name):
            factors = pair.tuning.factors(theirs)
            for part in vars(factors).values():
                require_finite(part, pair.tuned, theirs)
            norm = factors.norm
        base = math.nan if pair.is_sealed(site.name) else base
    except WorkbenchError as error:
        return Change(site, base, norm, str(error))
    return Change(site, base, norm)
