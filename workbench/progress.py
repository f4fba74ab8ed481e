"""How far has long work come? A bar in a terminal and a notebook, elsewhere a line every half
minute, through the log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

from workbench.log import PROGRESS

EVERY = 30.0  # seconds between two lines


class Lines(plain):
    """A bar whose every drawing is a line of the log; work that ends sooner says nothing."""

    def __init__(self, *given: Any, **options: Any) -> None:
        options |= {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1, "delay": EVERY}
        super().__init__(*given, **options | {"disable": False, "ascii": True, "ncols": 100})

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
        PROGRESS.info("%s: %s%s%s%s", name, done["n"], whole, more, said)


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm over `iterable`, or of `total=` steps; desc: what is done.

    Silent behind a pipe or in a file until half a minute has passed, then a line every half minute.
    """
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    kind: Any = tqdm if interactive else Lines
    return kind(iterable, **{"leave": False} | options)
