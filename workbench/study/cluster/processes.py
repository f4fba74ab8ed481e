"""Worker processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from workbench.errors import WorkbenchError
from workbench.results.result import Result
from workbench.study.cluster.pool import Crew
from workbench.study.cluster.worker import THREADS, about, begin, work
from workbench.study.units import Unit


class Process:
    """A process of this machine, started with these variables in its environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _attend)
        with _set(environment):  # the first task starts the process
            self.ready: Future[Any] = self.pool.submit(begin, *about())
        self.latest = self.ready

    def submit(self, unit: Unit) -> Future[Result]:
        made: Future[Result] = Future()
        try:
            made = self.pool.submit(work, unit)
        except BrokenProcessPool as error:  # it was lost between two units
            made.set_exception(error)
        self.latest = made
        return made

    def reason(self, error: Exception) -> Exception | None:
        return None if isinstance(error, BrokenProcessPool) else error

    def stop(self) -> None:
        if not self.latest.done():
            # What ProcessPoolExecutor.kill_workers() does from Python 3.14 on.
            for process in list((self.pool._processes or {}).values()):
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    def again(self) -> Process:
        return Process(self.environment)


def processes(count: int, device: str) -> Crew:
    import torch

    threads = os.environ.get(THREADS) or str(max(1, torch.get_num_threads() // count))
    environment = {THREADS: threads}
    there = torch.cuda.device_count()
    if device == "cuda" and not there:
        raise WorkbenchError("There is no CUDA device here; use --device cpu.")
    if device not in ("cuda", "auto") or not there:
        return Crew(count, lambda _: Process(environment))
    seen = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    gpus = seen or [str(number) for number in range(there)]

    def hire(number: int) -> Process:
        own = gpus[number::count] or [gpus[number % len(gpus)]]
        return Process(environment | {"CUDA_VISIBLE_DEVICES": ",".join(own)})

    return Crew(count, hire)


@contextlib.contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process's environment, for a block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _attend() -> None:
    """In a process of a pool, first of all: it ends with its parent, and leaves ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Bars of several processes would write over each other.
    setattr(sys.stderr, "isatty", lambda: False)  # noqa: B010 - on this one stream
    parent = multiprocessing.parent_process()

    def leave() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
