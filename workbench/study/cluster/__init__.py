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
from collections.abc import Iterator

from workbench.errors import WorkbenchError
from workbench.study.cluster import ray
from workbench.study.cluster.pool import Crew, Here
from workbench.study.cluster.processes import processes

__all__ = ["HERE", "LOCAL", "Crew", "place", "workers"]

HERE, LOCAL = "here", "local"


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
            f"Expected --device cuda, so that each worker gets its own GPU, found {device}."
        )
    with ray.connected(where) if kind == "ray" else contextlib.nullcontext():
        if kind == HERE:
            crew = Crew(1, lambda _: Here())
        else:
            crew = ray.actors(device, peak) if kind == "ray" else processes(int(where), device)
        try:
            yield crew
        finally:
            crew.stop()


def place(on: str) -> tuple[str, str]:
    """(here, local or ray; how many workers or Ray's address). Raises WorkbenchError."""
    kind, _, where = on.partition(":")
    if on == HERE or (kind == LOCAL and where.isdecimal() and int(where)):
        return kind, where
    if kind == "ray" and where:
        return kind, on if where.startswith("//") else where
    raise WorkbenchError(
        f"Expected --on here, local:N, ray:auto, ray:HOST:PORT or ray://HOST:PORT, found {on!r}."
    )
