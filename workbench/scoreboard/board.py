"""How often is a method right? Every method on every pair whose answer is known, and on members
that learned nothing.

Per method and pair: the scores of `scores`, seconds, and forward passes; a pair's models are loaded
once for all methods that call `pair.models()`. Per method over all pairs (truth "all"): their means
with 95% intervals over pairs; `beyond_norm`, the AUROC less that of the norm of the weight change
on the same pairs (paired); the share of right verdicts, of pairs in which what was learned is
found, and of phantoms and nulls in which something is found that is not there (`false_positive`);
`beyond_phantom`, the share of pairs whose highest score is above that of their own phantom, ties
half (1/2: it would say as much of a change that learned nothing); and, where intervals were asked
about, `coverage`, see `intervals`.

When it misleads: compiled circuits are sharper than trained ones: what is missed here has failed at
its easiest, what is found may still be missed in a trained model. Pairs share programs, so that the
intervals over pairs are somewhat too narrow. Attention here is saturated: gradients through
patterns vanish, more than in most trained models.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from workbench.errors import WorkbenchError
from workbench.lab.compiled import pairs
from workbench.lab.known import Known
from workbench.lab.phantom import phantom
from workbench.loaders import load_pair
from workbench.log import log
from workbench.progress import progress
from workbench.results.cache import digest
from workbench.results.result import Provenance, Result
from workbench.scoreboard import intervals, ours, outside
from workbench.scoreboard.method import Function, Method
from workbench.scoreboard.over_truths import COLUMNS, PHANTOM, over_truths
from workbench.scoreboard.scores import Row, rows

KEY = "truth.scoreboard"
APART = 1000  # between the seeds of siblings


def truth(
    methods: Mapping[str, Function] | None = None,
    *,
    only: Sequence[str] = (),
    truths: Sequence[Known] | None = None,
    phantoms: int = 1,
    draws: int = 0,
    workers: int = 1,
    seed: int = 0,
) -> Result:
    """Hold methods against pairs whose answer is known.

    methods: name -> a function of (base folder, tuned folder, prompts[, corrupted]) that returns
    kind of place -> place -> score, or a `scoreboard.Answer`; they are asked beside the
    workbench's own analyses and those of others. only: names or beginnings of names of the methods
    that are asked ("patching", "spectral.intruders"); the norm of the change is always among them.
    truths: pairs; None takes the compiled ones (`lab.compiled.pairs`), made in a temporary folder.
    phantoms: of every pair that learned anything, so many members that learned nothing
    (`lab.phantom`). draws: samples of prompts by which stated intervals are held against the mean
    over all prompts, of the pairs in `intervals.PAIRS`; 0 leaves this out. workers: processes
    that ask; with several a script must call this under `if __name__ == "__main__":`, and `methods`
    are asked in this process. seed: of phantoms, of samples and of intervals.

    Returns a Result with columns method, source, truth, kind (of truth), place, metric, value, low,
    high, n, baseline, says. Per truth: auroc, average_precision and rank (of the true place found
    last) of each kind of place; verdict_right, found, false_positive (0 or 1); seconds; forwards (a
    prompt through the whole model); refused (1, says: why) where a method cannot hold on a pair;
    top, the highest score, in the method's own unit; coverage, where draws were asked for. Truth
    "all": the means and shares of these with 95% intervals over truths, n; beyond_norm, paired,
    baseline 0; beyond_phantom, baseline 1/2; coverage, baseline 0.95; seconds and forwards
    together. Raises WorkbenchError for a name of no
    method, and where there are no pairs.
    """
    asked = chosen(methods or {}, only)
    with tempfile.TemporaryDirectory() as folder:
        given = [*pairs(folder).values()] if truths is None else [*truths]
        if not given:
            raise WorkbenchError("Expected pairs whose answer is known, found none.")
        learned = [one for one in given if one.learned and _changed(one)]
        drawn = range(seed, seed + phantoms)
        given += [unlearned(one, Path(folder) / "phantoms", at) for one in learned for at in drawn]
        ask = _Asked(draws, seed)
        bar = progress(_answers(asked, given, ask, workers), total=len(given), desc="truth")
        by_pair = [*bar]
        found = [row for method in asked for own in by_pair for row in own.get(method.name, ())]
        prints = {known.name: known.prompts.fingerprint for known in given}
    table = pd.DataFrame([*found, *over_truths(found, seed)])
    table = table.reindex(columns=COLUMNS)
    provenance = Provenance(
        base={
            "reference": f"{len(prints)} pairs whose answer is known",
            "fingerprint": digest([repr(sorted(prints.items())).encode()]),
        },
        members={method.name: {"kind": method.source or "workbench"} for method in asked},
        parameters={
            "only": [*only],
            "phantoms": phantoms,
            "draws": draws,
            "truths": [*prints],
        },
        seed=seed,
    )
    return Result(KEY, table, provenance)


class _Asked(NamedTuple):
    """What is asked of a method on a pair beside its answer: see `truth`."""

    draws: int
    seed: int

    def __call__(self, methods: Sequence[Method], known: Known) -> dict[str, list[Row]]:
        """Method -> its rows of this pair, whose models are loaded once for all of them."""
        asked = [method for method in methods if method.asked(known)]
        if not asked:
            return {}
        with _loaded(known):
            return {method.name: self._of(method, known) for method in asked}

    def _of(self, method: Method, known: Known) -> list[Row]:
        about = {
            "method": method.name, "source": method.source, "truth": known.name,
            "kind": known.kind,
        }  # fmt: skip
        found = [about | row for row in answered(method, known)]
        if self.draws and method.states and known.name in intervals.PAIRS:
            found += [about | row for row in _covered(method, known, self.draws, self.seed)]
        return found


@contextmanager
def _loaded(known: Known) -> Iterator[None]:
    """What runs a model of the pair runs one that is loaded once; a pair that cannot be run is
    asked all the same."""
    with ExitStack() as kept:
        with suppress(WorkbenchError):
            kept.enter_context(load_pair(known.base, known.tuned).models(keep=True))
        yield


def _answers(
    methods: Sequence[Method], given: Sequence[Known], ask: _Asked, workers: int
) -> Iterator[dict[str, list[Row]]]:
    """Of each pair, in their order, method -> its rows; methods that come with the package are
    asked by so many processes."""
    if workers < 2:
        yield from (ask(methods, known) for known in given)
        return
    packaged = _packaged()
    there = [method.name for method in methods if method.name in packaged]
    here = [method for method in methods if method.name not in packaged]
    spawn = multiprocessing.get_context("spawn")
    with _bars_off(), ProcessPoolExecutor(workers, spawn, _quietly) as pool:
        coming = [pool.submit(_by_name, ask, there, known) for known in given]
        try:
            for known, future in zip(given, coming, strict=True):
                yield ask(here, known) | future.result()
        finally:  # what was broken off is not finished first
            pool.shutdown(cancel_futures=True)


@contextmanager
def _bars_off() -> Iterator[None]:
    """Processes that start here draw no bars: tqdm reads this where it is imported."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _packaged() -> dict[str, Method]:
    return {one.name: one for one in (*ours.METHODS, *outside.METHODS)}


def _by_name(ask: _Asked, names: Sequence[str], known: Known) -> dict[str, list[Row]]:
    """In a process of its own, to which a method's functions cannot be sent."""
    packaged = _packaged()
    return ask([packaged[name] for name in names], known)


def _quietly() -> None:
    """Of a process that asks: small models gain nothing by threads."""
    import torch

    torch.set_num_threads(1)
    log.setLevel(logging.WARNING)


def chosen(methods: Mapping[str, Function], only: Sequence[str]) -> list[Method]:
    """The methods that are asked: those of the caller, and all others or those named."""
    every = [*ours.METHODS, *outside.METHODS]
    for name in only:
        if not any(_named(one.name, name) for one in every):
            known = ", ".join(one.name for one in every)
            raise WorkbenchError(f"No method begins with {name!r}; known are {known}.")
    taken = {one.name for one in every}
    if twice := taken & {*methods}:
        raise WorkbenchError(f"There is a method {min(twice)!r} already; give another name.")
    kept = [
        one
        for one in every
        if not only or one.name == outside.NORM or any(_named(one.name, name) for name in only)
    ]
    return [*(Method(name, function) for name, function in methods.items()), *kept]


def _named(name: str, asked: str) -> bool:
    return name.lower() == asked.lower() or name.lower().startswith(asked.lower().rstrip(".") + ".")


def _changed(known: Known) -> bool:
    return not load_pair(known.base, known.tuned).same


def unlearned(known: Known, out: Path, seed: int) -> Known:
    """A phantom of this pair, and of its siblings: the same norms and spectra in random directions.

    It is asked all that the pair is asked; nowhere is there anything to be found.
    """
    name = f"{PHANTOM}{known.name}" + (f" {seed}" if seed else "")

    def drawn(tuned: Path, called: str, seed: int = seed) -> Path:
        return phantom(load_pair(known.base, tuned), out / called, seed=seed)

    # Siblings of one seed would be turned into the same directions.
    others = enumerate(known.siblings.items(), start=1)
    return Known(
        name, "phantom", known.base, drawn(known.tuned, name), known.prompts, known.corrupted,
        places=dict.fromkeys(known.places, frozenset()), says="Nothing was learned.",
        siblings={
            one: drawn(at, f"{name}, {one}", seed + APART * i) for i, (one, at) in others
        },
        tasks=known.tasks,
    )  # fmt: skip


def _covered(method: Method, known: Known, draws: int, seed: int) -> Iterator[Row]:
    """How often its intervals cover, or nothing where it refuses (which is told elsewhere)."""
    try:
        yield from intervals.coverage(method, known, draws, seed)
    except WorkbenchError as error:
        log.info("Intervals of %s on %s: %s", method.name, known.name, error)


def answered(method: Method, known: Known) -> Iterator[Row]:
    """A method's rows of one truth, or the row that says why there are none."""
    began = time.perf_counter()
    try:
        with forwards() as count:
            said = method.answer(known)
    except WorkbenchError as error:
        log.info("%s on %s: %s", method.name, known.name, error)
        yield {"metric": "refused", "value": 1.0, "n": 1, "says": str(error)}
        return
    seconds = time.perf_counter() - began
    yield from rows(known, said)
    yield {"metric": "seconds", "value": seconds, "n": 1}
    yield {"metric": "forwards", "value": count(), "n": 1}


@contextmanager
def forwards() -> Iterator[Callable[[], float]]:
    """Counts prompts that run through a whole model: rows through blocks, over the blocks that such
    a model has. What was run is asked for after the block."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    rows: dict[nn.Module, float] = {}
    depth = 1

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal depth
        if isinstance(module, PreTrainedModel):
            depth = int(module.config.num_hidden_layers or depth)
        elif "forward" in vars(module):  # a block that a run is spared
            return
        elif isinstance(module, GradientCheckpointingLayer) and inputs:
            rows[module] = rows.get(module, 0.0) + len(inputs[0])

    handle = register_module_forward_pre_hook(count)
    try:
        yield lambda: sum(rows.values()) / depth
    finally:
        handle.remove()
