"""Workers of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from workbench.errors import WorkbenchError
from workbench.results.result import Result
from workbench.study.cluster.pool import SILENCE, Crew
from workbench.study.cluster.worker import THREADS, about, begin, work
from workbench.study.units import Unit

PASSED_ON = ("HF_HUB_OFFLINE", "WORKBENCH_CACHE")  # to workers of other machines
KNOCK = 10  # seconds for a port to answer
SHARING = 4  # workers on one GPU at most


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """In touch with a Ray cluster; where this process already is with one, with that."""
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError(
            "To run on Ray, its package is needed: pip install 'finetune-workbench[ray]'."
        ) from error
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
        self.ready: Future[Any] = self.actor.begin.remote(*about()).future()

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

    def begin(self, *where: Any) -> None:
        begin(*where)

    def work(self, unit: bytes) -> Result:
        return work(pickle.loads(unit))


def actors(device: str, peak: float) -> Crew:
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
        raise WorkbenchError(
            f"The Ray cluster has no node with {what} for a worker; ask for less, or add a node."
        )
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
