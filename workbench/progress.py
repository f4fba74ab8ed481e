"""How far has long work come? A bar in a terminal and a notebook, elsewhere a line every half
minute, through the log.

A bar is drawn when a step is done, which can take minutes; `heartbeat` says a line in between.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from weakref import WeakSet

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

from workbench.log import PROGRESS

EVERY = 30.0  # seconds between two lines
LEAST = 0.05  # seconds that a heartbeat sleeps, however short EVERY is


class Lines(plain):
    """A bar whose every drawing is a line of the log; work that ends sooner says nothing.

    open: those that are at work. said: when the last line was, in seconds of `time.monotonic`.
    """

    open: ClassVar[WeakSet[Lines]] = WeakSet()
    said = 0.0

    def __init__(self, *given: Any, **options: Any) -> None:
        options |= {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1, "delay": EVERY}
        super().__init__(*given, **options | {"disable": False, "ascii": True, "ncols": 100})
        self.begun = time.monotonic()
        Lines.open.add(self)

    def __iter__(self) -> Iterator[Any]:
        steps: Any = self.iterable
        try:
            for one in steps:
                yield one
                self.update()  # tqdm's own counts only where it draws
        finally:
            self.close()

    def close(self) -> None:
        super().close()
        Lines.open.discard(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        done = self.format_dict
        if msg == "" or done["elapsed"] < EVERY:
            return
        rate = done["n"] / done["elapsed"] if done["elapsed"] else 0.0
        left = (done["total"] - done["n"]) / rate if rate and done["total"] else None
        more = "" if left is None else f", about {self.format_interval(left)} left"
        said = f" ({done['postfix']})" if done["postfix"] else ""
        whole = f" of {done['total']}" if done["total"] else ""
        name = (done["prefix"] or "").rstrip(": ")
        Lines.said = time.monotonic()
        PROGRESS.info("%s: %s%s%s%s", name, done["n"], whole, more, said)


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm over `iterable`, or of `total=` steps; desc: what is done.

    Silent behind a pipe or in a file until half a minute has passed, then a line every half minute.
    """
    kind: Any = tqdm if _interactive() else Lines
    return kind(iterable, **{"leave": False} | options)


@contextlib.contextmanager
def heartbeat(name: str) -> Iterator[None]:
    """Where no bar can be drawn, a line at least every half minute while the block runs: of the bar
    that was begun first, or of `name` and its time so far where there is none. In a block inside
    another the outer one says it."""
    if _interactive() or any(t.name == HEARTBEAT for t in threading.enumerate()):
        yield
        return
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(name, over), name=HEARTBEAT, daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()


HEARTBEAT = "workbench heartbeat"


def _beat(name: str, over: threading.Event) -> None:
    begun = time.monotonic()
    while not over.wait(max(EVERY + max(begun, Lines.said) - time.monotonic(), LEAST)):
        now = time.monotonic()
        if now - max(begun, Lines.said) < EVERY:
            continue  # a bar has said one itself
        bars = [bar for bar in Lines.open if now - bar.begun >= EVERY]
        if bars:
            min(bars, key=lambda bar: bar.begun).display()
        else:
            Lines.said = now
            PROGRESS.info("%s: %s so far", name, plain.format_interval(now - begun))


def _interactive() -> bool:
    """In a terminal, or in a notebook: where a kernel runs, not where some library imports one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())
