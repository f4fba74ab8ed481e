"""What a worker process does, wherever it is: it stands where the run was started, checks that it
is like it, and runs units."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Mapping

from workbench.errors import WorkbenchError
from workbench.log import log
from workbench.results.result import Result, versions
from workbench.study.units import Unit, code_fingerprint

THREADS = "OMP_NUM_THREADS"


def about() -> tuple[str, list[str], dict[str, str]]:
    """What a worker needs to stand where this process stands, and to be like it."""
    return os.getcwd(), sys.argv, versions() | {"code": code_fingerprint()}


def begin(folder: str, command: list[str], like: Mapping[str, str]) -> None:
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
            f"{machine} does not see {folder} ({error.strerror}); start the run in a "
            "folder that every machine can read."
        ) from error
    sys.argv = command
    log.setLevel(logging.WARNING)  # the process that was started says what runs


def work(unit: Unit) -> Result:
    """In a worker: a unit, of the very checkpoints it is named after."""
    for one in (unit.subject.base, *unit.members.values()):
        if not one.as_sent:
            raise WorkbenchError(
                f"{platform.node()} finds other content at {one.name} than the machine "
                "where the run was started; give every machine the same checkpoints."
            )
    return unit.run()
