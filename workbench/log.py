"""What is said beside the results, a line a thing on stderr, through Python's own logging.

The logger is named "workbench"; `say(logging.WARNING)`, or --quiet, silences it, also how far long
work has come; with logging.DEBUG, or --verbose, what libraries say of a loading is heard, too.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


class _Now(logging.Handler):
    """To whatever stderr is at that moment: a notebook and a test exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


log = logging.getLogger("workbench")
if not log.handlers:
    log.addHandler(_Now())
    log.setLevel(logging.INFO)
    log.propagate = False


# Of its own level, so that a block which is quiet about its parts still says how far it has come.
PROGRESS = logging.getLogger("workbench.progress")
PROGRESS.setLevel(logging.INFO)


def say(level: int) -> None:
    """From now on only what is of this level (logging.WARNING, INFO, DEBUG) or above."""
    log.setLevel(level)
    PROGRESS.setLevel(max(level, logging.INFO))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only warnings, for a block that says by itself what it does."""
    before = log.level
    log.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(before)
