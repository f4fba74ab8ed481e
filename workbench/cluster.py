"""Where units of work are run: in this process, by worker processes of this machine, or by Ray.

One word names the place:

    here              this process
    local:4           four processes of this machine, a GPU to each where --device is cuda
    ray:auto          the Ray cluster this machine belongs to; ray:HOST:PORT names it
    ray://HOST:PORT   a Ray cluster seen from outside, through Ray's client

A unit is the same call everywhere, and its Result is written by the process that was started and by
no other. A worker runs one unit at a time and stays for the next; it is given those of the members
it had before. One that dies is replaced and its unit run again.

Which numbers can differ: decompositions depend in their last digits on the number of threads, the
kind of processor and GPU, and the versions of libraries. Workers with other versions than the
process that was started are refused. With OMP_NUM_THREADS set every unit has so many threads
wherever it runs, and gives the same bytes on processors of one kind; without it the processors are
shared out among the workers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import platform
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.results import Result, versions
from workbench.units import Unit, code_fingerprint

HERE = "here"
TRIES = 3  # workers that one unit may lose
START = "their start"
THREADS = "OMP_NUM_THREADS"
PASSED_ON = ("HF_HUB_OFFLINE", "WORKBENCH_CACHE")  # to workers of other machines
KNOCK = 10  # seconds for a port to answer
SILENCE = 60  # seconds without a worker, before it is said
SHARING = 4  # workers on one GPU at most


class Lane(Protocol):
    """One worker. ready: done when it can take units."""

    ready: Future[Any]

    def submit(self, unit: Unit) -> Future[Result]: ...

    def reason(self, error: Exception) -> Exception | None:
        """What the unit raised; None where the worker was lost."""
        ...

    def stop(self) -> None:
        """End the worker, whatever it does."""
        ...

    def again(self) -> Lane:
        """Another worker in the place of this one."""
        ...


class Crew:
    """At most `most` workers, made by `hire` (of the number of workers there are) when there is
    work for them."""

    def __init__(self, most: int, hire: Callable[[int], Lane]) -> None:
        self.most, self.hire = most, hire
        self.idle: deque[Lane] = deque()
        self.running: dict[Future[Any], tuple[Lane, Unit | None]] = {}  # None: getting ready
        self.last: dict[str, Lane] = {}  # members -> who had them last
        self.lost: Counter[str] = Counter()
        self.bar = tqdm(total=0, desc="units", disable=None, leave=False)

    def fill(self, store: Path, wanted: Sequence[Unit]) -> dict[str, Exception]:
        """Run those of the units that `store` lacks, and keep each Result as it comes.

        Returns what units raised, by their keys; one that lost `TRIES` workers counts among them.
        Raises where workers cannot start or a Result cannot be written: then no further unit
        begins, and those that run are waited for and kept.
        """
        found = {unit.key: unit for unit in wanted}
        missing = deque(unit for unit in found.values() if not unit.kept(store))
        self.bar.total += len(found)
        self.bar.update(len(found) - len(missing))
        while (hired := len(self.idle) + len(self.running)) < min(self.most, len(missing)):
            self._add(self.hire(hired))
        failed: dict[str, Exception] = {}
        first: Exception | None = None
        while missing or any(unit for _, unit in self.running.values()):
            while self.idle and missing:
                lane, unit = self._next(missing)
                self.running[lane.submit(unit)] = lane, unit
            done = wait(self.running, timeout=SILENCE, return_when=FIRST_COMPLETED).done
            if not done and not any(unit for _, unit in self.running.values()):
                self.bar.write("units: no worker has begun yet; still waiting.", file=sys.stderr)
            for future in done:
                try:
                    self._take(future, store, missing, failed)
                except Exception as error:
                    first = first or error
                    missing.clear()
        if first is not None:
            raise first
        return failed

    def stop(self) -> None:
        """End all workers, whatever they do."""
        for lane in [*self.idle, *(lane for lane, _ in self.running.values())]:
            lane.stop()
        self.bar.close()

    def _add(self, lane: Lane) -> None:
        self.running[lane.ready] = lane, None

    def _next(self, missing: deque[Unit]) -> tuple[Lane, Unit]:
        """An idle worker, and the first unit of members that it had last or nobody had; where all
        are somebody else's, the first."""
        lane = self.idle.popleft()
        own = (u for u in missing if self.last.get(_members(u), lane) is lane)
        unit = next(own, missing[0])
        missing.remove(unit)
        self.last[_members(unit)] = lane
        return lane, unit

    def _take(
        self,
        future: Future[Any],
        store: Path,
        missing: deque[Unit],
        failed: dict[str, Exception],
    ) -> None:
        """Keep what a worker gave, or what its unit raised; replace a worker that was lost."""
        lane, unit = self.running.pop(future)
        try:
            made = future.result()
        except Exception as error:
            reason = lane.reason(error)
            if reason is not None:
                self.idle.append(lane)
                if unit is None:
                    raise reason from reason.__cause__
                self._give_up(unit, reason, failed)
                return
            lane.stop()
            self.last = {who: own for who, own in self.last.items() if own is not lane}
            spent = self._spent(unit, error)
            if unit is None and spent:
                raise spent from None
            if unit is not None and spent:
                self._give_up(unit, spent, failed)
            elif unit is not None:
                missing.appendleft(unit)
            self._add(lane.again())
            return
        self.idle.append(lane)
        if unit is None:
            del self.lost[START]
        else:
            made.save(store / unit.key)
            self.bar.update()

    def _give_up(self, unit: Unit, reason: Exception, failed: dict[str, Exception]) -> None:
        failed[unit.key] = reason
        self.bar.update()

    def _spent(self, unit: Unit | None, error: Exception) -> WorkbenchError | None:
        """What is said of a unit that has now lost too many workers, or where so many in a row
        were lost at their start."""
        key, name = (unit.key, unit.name) if unit else (START, START)
        self.lost[key] += 1
        if self.lost[key] < TRIES:
            return None
        told = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        likely = "a unit may need more memory than there is; use fewer workers"
        if unit is None:
            likely = 'a script that starts workers needs `if __name__ == "__main__":`'
        return WorkbenchError(f"{TRIES} workers were lost at {name} ({told}); {likely}.")


def _members(unit: Unit) -> str:
    return ",".join(unit.members)


@contextlib.contextmanager
def workers(on: str = HERE, *, device: str = "cpu", peak: float = 0) -> Iterator[Crew]:
    """Workers at a place (see above), for as long as a block lasts.

    device: of the units. peak: bytes that one unit takes on it at most; on Ray's GPUs several
    workers share one where that is a small part of it. A cluster is asked once, at the beginning,
    how many workers it has room for. Raises WorkbenchError for another place, or one that has no
    such device.
    """
    kind, where = place(on)
    if kind != HERE and device.startswith("cuda:"):
        raise WorkbenchError(
            f"Expected --device cuda, of which each worker is given its own, found {device}."
        )
    with _connected(where) if kind == "ray" else contextlib.nullcontext():
        if kind == HERE:
            crew = Crew(1, lambda _: Here())
        else:
            crew = _ray(device, peak) if kind == "ray" else _processes(int(where), device)
        try:
            yield crew
        finally:
            crew.stop()


def place(on: str) -> tuple[str, str]:
    """(here, local or ray; how many workers or Ray's address). Raises WorkbenchError."""
    kind, _, where = on.partition(":")
    if on == HERE or (kind == "local" and where.isdecimal() and int(where)):
        return kind, where
    if kind == "ray" and where:
        return kind, on if where.startswith("//") else where
    raise WorkbenchError(
        f"Expected --on here, local:N, ray:auto, ray:HOST:PORT or ray://HOST:PORT, found {on!r}."
    )


class Here:
    """This process as a worker: a unit is done when `submit` returns."""

    def __init__(self) -> None:
        self.ready: Future[Any] = Future()
        self.ready.set_result(None)

    def submit(self, unit: Unit) -> Future[Result]:
        made: Future[Result] = Future()
        try:
            made.set_result(unit.run())
        except Exception as error:
            made.set_exception(error)
        return made

    def reason(self, error: Exception) -> Exception:
        return error

    def stop(self) -> None:
        pass

    def again(self) -> Here:
        return self


class Process:
    """A process of this machine, started with these variables in its environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _attend)
        with _set(environment):  # the first task starts the process
            self.ready: Future[Any] = self.pool.submit(_begin, *_about())
        self.latest = self.ready

    def submit(self, unit: Unit) -> Future[Result]:
        made: Future[Result] = Future()
        try:
            made = self.pool.submit(_work, unit)
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


def _processes(count: int, device: str) -> Crew:
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
def _connected(address: str) -> Iterator[None]:
    """In touch with a Ray cluster; where this process already is with one, with that."""
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError("Running on Ray needs it: pip install 'workbench[ray]'.") from error
    if ray.is_initialized():
        yield
        return
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:  # Ray itself takes minutes to give up
            socket.create_connection((host, int(port)), timeout=KNOCK).close()
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise WorkbenchError(
            f"No Ray cluster answers at {address} ({told}); `ray start --head` starts one."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class Actor:
    """A worker of a Ray cluster."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        import ray

        self.options = options
        made: Any = ray.remote(_Worker)
        self.actor = made.options(**options).remote()
        self.ready: Future[Any] = self.actor.begin.remote(*_about()).future()

    def submit(self, unit: Unit) -> Future[Result]:
        # Ray's own arrays are read-only; pickled ones are what the other places hand over.
        return self.actor.work.remote(pickle.dumps(unit)).future()

    def reason(self, error: Exception) -> Exception | None:
        from ray.exceptions import RayError, RayTaskError

        if isinstance(error, RayTaskError):
            return error.cause
        return None if isinstance(error, RayError) else error

    def stop(self) -> None:
        import ray

        ray.kill(self.actor)

    def again(self) -> Actor:
        return Actor(self.options)


class _Worker:
    """What runs in an actor."""

    def begin(self, *about: Any) -> None:
        _begin(*about)

    def work(self, unit: bytes) -> Result:
        return _work(pickle.loads(unit))


def _ray(device: str, peak: float) -> Crew:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = any("GPU" in node for node in nodes)
    wanted = device == "cuda" or (device == "auto" and gpus)
    memory = 0.0
    if wanted and gpus:
        asked = ray.remote(num_gpus=1)(_gpu_memory).remote()
        answered, _ = ray.wait([asked], timeout=SILENCE)  # all may be taken
        memory = ray.get(asked) if answered else 0.0
    share = shared(peak, memory, whole=device == "auto") if wanted else 0
    most, threads = room(nodes, share)
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    options = {
        "num_cpus": threads,
        "num_gpus": share,
        "runtime_env": {"env_vars": passed | {THREADS: str(threads)}},
    }
    return Crew(most, lambda _: Actor(options))


def shared(peak: float, memory: float, whole: bool = False) -> float:
    """How many GPUs of `memory` bytes a unit of `peak` bytes is given: one, or half, a third or a
    fourth of one; whole: as many as hold it, for a unit that spreads over them."""
    if not peak or not memory:
        return 1
    if whole:
        return math.ceil(peak / memory)
    return 1 / min(SHARING, max(1, int(memory // peak)))


def room(nodes: Sequence[Mapping[str, float]], share: float) -> tuple[int, int]:
    """(workers a cluster has room for, threads of each). share: of a GPU for each, 0 for none.

    Threads are what OMP_NUM_THREADS says; else a node's processors, shared out among its GPUs.
    Raises WorkbenchError where there is no room for one.
    """
    able = [node for node in nodes if node.get("GPU" if share else "CPU", 0) >= max(1, share)]
    if not able:
        what = f"{max(1, math.ceil(share))} {'GPU' if share else 'processor'}"
        raise WorkbenchError(f"The Ray cluster has no node with {what} for a worker.")
    gpus = [math.floor(node.get("GPU", 0) / share) if share else 1 for node in able]
    cpus = [int(node.get("CPU", 0)) for node in able]
    fair = min(max(1, cpu // gpu) for cpu, gpu in zip(cpus, gpus, strict=True))
    threads = int(os.environ.get(THREADS) or fair)
    held = [cpu // threads for cpu in cpus]
    if share:
        held = [min(pair) for pair in zip(held, gpus, strict=True)]
    if not sum(held):
        raise WorkbenchError(
            f"No node of the Ray cluster has {threads} processors for a worker, the most is "
            f"{max(cpus)}; set {THREADS} to fewer."
        )
    return sum(held), threads


def _gpu_memory() -> float:
    """Bytes of the GPU that this task was given; 0 where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.get_device_properties(0).total_memory)


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


def _about() -> tuple[str, list[str], dict[str, str]]:
    """What a worker needs to stand where this process stands, and to be like it."""
    return os.getcwd(), sys.argv, versions() | {"code": code_fingerprint()}


def _begin(folder: str, command: list[str], like: Mapping[str, str]) -> None:
    """In a worker, before its first unit. Raises WorkbenchError where it would not compute what
    the process that was started would."""
    machine = platform.node()
    own = versions() | {"code": code_fingerprint()}
    for name, wanted in like.items():
        if own.get(name) != wanted:
            raise WorkbenchError(
                f"Expected {name} {wanted[:16]} on every machine as where the run was started, "
                f"{machine} has {own.get(name, 'none')[:16]}; install the same there."
            )
    try:
        os.chdir(folder)
    except OSError as error:
        raise WorkbenchError(
            f"{machine} does not see {folder} ({error.strerror}); start the run in a folder that "
            "every machine sees."
        ) from error
    sys.argv = command


def _work(unit: Unit) -> Result:
    """In a worker: a unit, of the very checkpoints it is named after."""
    for one in (unit.subject.base, *unit.members.values()):
        if one.fingerprint != one.about["fingerprint"]:
            raise WorkbenchError(
                f"{platform.node()} finds other content at {one.name} than the machine where the "
                "run was started; every machine must see the same checkpoints."
            )
    return unit.run()
