"""How long will an analysis take here? Told before it begins, to a factor of about three.

A run of a model costs two operations a weight and token, a pass forward over all its prompts and
texts; how many passes it takes with its defaults an analysis declares (`Analysis.passes`), and how
fast the machine is is measured when it is asked.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

from workbench.loaders import CheckpointPair
from workbench.log import log
from workbench.tasks.desiderata import Counterfactuals
from workbench.tasks.prompts import PromptSet
from workbench.tasks.scorers import Generation

TOKENS, CHARACTERS = 100, 4  # of a text that is sampled; of a token
SAMPLES = 64  # texts drawn from the base where none are given
ROWS = 32  # texts of a forward pass, unless told
WATCHED = 0.1  # seconds in which the machine's speed is measured
SHORT = 0.5  # minutes that nothing is said of, unless told to
_ALWAYS: ContextVar[bool] = ContextVar("told", default=False)


class Size(NamedTuple):
    """Of a pair: matrices compared, all weights, the largest matrix, what decomposing each of the
    compared ones costs, m n min(m, n), and the rows of the widest matrix, which are those of the
    vocabulary."""

    matrices: int
    weights: int
    largest: int
    cubic: int
    vocabulary: int


def size(pair: CheckpointPair) -> Size:
    """Read from headers alone."""
    info = pair.base.weights().info
    shapes = [info[site.name].shape for site in pair.sites() if site.name in pair.comparable]
    return Size(
        len(shapes),
        sum(math.prod(one.shape) for one in info.values()),
        max(map(math.prod, shapes), default=0),
        sum(math.prod(shape) * min(shape) for shape in shapes),
        max((one.shape[0] for one in info.values() if len(one.shape) > 1), default=0),
    )


def memory(own: Size, *, models: int, width: int, longest: float) -> int:
    """Bytes that a run of models takes at most: every copy at `width` bytes a weight, and in
    float32 the logits of ROWS texts of `longest` tokens twice, as they come and as logarithms of
    probabilities. models: 0 decomposes, which holds W, U, V, the tuned matrix and two more."""
    if not models:
        return 6 * 4 * own.largest
    return models * width * own.weights + 2 * 4 * ROWS * round(longest) * own.vocabulary


def minutes(passes: float, own: Size, tokens: float) -> float:
    """Of so many passes on a pair of this size; tokens: of the prompts and texts. Without any pass
    its matrices are decomposed."""
    svd, matmul = speeds()
    if passes:
        return passes * 2 * own.weights * tokens / matmul / 60
    return 2 * own.cubic / svd / 60


def tokens_of(sets: Iterable[PromptSet], texts: Sequence[str] | None, sampled: bool) -> float:
    """About how many tokens they have; sampled: texts are drawn where none are given."""
    given = list(sets)
    read = sum(len(text) for one in given for text in one.texts) / CHARACTERS
    for one in given:
        if isinstance(one.scorer, Generation):  # every token that is written is a step of its own
            read += len(one) * one.scorer.samples * one.scorer.length
    if not sampled:
        return read
    return read + (sum(map(len, texts)) / CHARACTERS if texts else SAMPLES * TOKENS)


def tell(key: str, passes: float | None, arguments: Mapping[str, Any]) -> None:
    """Say what an analysis will run that is about to with these arguments, and how long that takes
    where it is known: always inside `told`, else where it is long."""
    pair = next((one for one in arguments.values() if isinstance(one, CheckpointPair)), None)
    if pair is None or (passes is None and not _ALWAYS.get()):
        return
    drawn = "texts" in arguments or arguments.get("prompts", ()) is None
    sets, texts, own = list(_sets(arguments.values())), arguments.get("texts"), size(pair)
    long = None if passes is None else minutes(passes, own, tokens_of(sets, texts, drawn))
    if not _ALWAYS.get() and (long is None or long < SHORT):
        return
    counted = f"{own.matrices} matrices" if passes == 0 else _counted(passes, sets, texts, drawn)
    log.info(
        "%s of %s: %s, %s; a bar, or a line every half minute, shows the progress.",
        key, pair.name, counted, _about(long),
    )  # fmt: skip


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What runs in this block says so before, also where it is short."""
    token = _ALWAYS.set(True)
    try:
        yield
    finally:
        _ALWAYS.reset(token)


def _counted(
    passes: float | None, sets: Sequence[PromptSet], texts: Sequence[str] | None, drawn: bool
) -> str:
    """What is read, and how often."""
    parts = [f"{sum(map(len, sets))} prompts"] if sets else []
    parts += [f"{len(texts) if texts else SAMPLES} texts"] if drawn else []
    often = "" if passes is None else f" about {passes:g} times"
    return f"{' and '.join(parts) or 'one model'}{often}"


def _about(long: float | None) -> str:
    """Minutes, None where they are not known, in words."""
    if long is None:
        return "and the time cannot be estimated"
    if long < SHORT:
        return "takes less than half a minute on this machine as it is now"
    rounded = "a minute" if long < 1.5 else f"{long:.0f} minutes"
    return f"takes about {rounded} on this machine as it is now, within a factor of three"


def _sets(values: Iterable[Any]) -> Iterable[PromptSet]:
    for value in values:
        if isinstance(value, PromptSet):
            yield value
        elif isinstance(value, Counterfactuals):
            yield value.bases
        elif isinstance(value, Mapping):
            yield from _sets(value.values())
        elif isinstance(value, list | tuple):
            yield from _sets(value)


@cache
def speeds() -> tuple[float, float]:
    """(m n min(m, n) of an SVD, floating-point operations of a product) per second of one thread,
    measured once on the CPU, over a tenth of a second each: a single call is as fast as an idle
    machine, or waits for other work as long as that likes. Several threads beside other work would
    wait for each other far longer than they compute."""
    import torch

    side, threads = 256, torch.get_num_threads()
    matrix = torch.randn(side, side)
    found = []
    torch.set_num_threads(1)
    try:
        for work, call in (
            (side**3, lambda: torch.linalg.svd(matrix)),
            (2 * side**3, lambda: matrix @ matrix),
        ):
            call()
            start, calls, spent = time.perf_counter(), 0, 0.0
            while spent < WATCHED:
                call()
                calls, spent = calls + 1, time.perf_counter() - start
            found.append(calls * work / spent)
    finally:
        torch.set_num_threads(threads)
    return found[0], found[1]
