"""Analyses that workers import: they count their calls, and some take their worker with them."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import workbench as wb

PATIENCE = 60  # seconds


def counted(pair: wb.CheckpointPair, *, calls: Path) -> wb.Result:
    """The delta spectrum; a file in `calls` for every call, named after the member and process."""
    (calls / f"{pair.name}.{os.getpid()}.{uuid.uuid4().hex}").touch()
    return wb.spectral.delta_spectrum(pair)


def killed_once(pair: wb.CheckpointPair, *, calls: Path, member: str) -> wb.Result:
    """As `counted`, but the first worker that runs this member is killed in the middle."""
    made = counted(pair, calls=calls)
    if pair.name == member and _first(calls / "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return made


def always_killed(pair: wb.CheckpointPair, *, calls: Path) -> wb.Result:
    counted(pair, calls=calls)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def node_lost_once(pair: wb.CheckpointPair, *, calls: Path, head: str) -> wb.Result:
    """As `counted`, but the first worker outside the head node ends its node; the head's wait."""
    import ray

    made = counted(pair, calls=calls)
    if ray.get_runtime_context().get_node_id() != head:
        if _first(calls / "killed"):
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet, which is Ray on that node
            time.sleep(PATIENCE)
    else:
        _wait_for(calls / "killed")
    return made


def held(pair: wb.CheckpointPair, *, calls: Path, free: str) -> wb.Result:
    """As `counted`, but only one member is done before there is a file `calls`/go."""
    made = counted(pair, calls=calls)
    if pair.name != free:
        _wait_for(calls / "go")
    return made


def refused(pair: wb.CheckpointPair, *, calls: Path, member: str) -> wb.Result:
    """As `counted`, but bad input for one member."""
    if pair.name == member:
        raise wb.WorkbenchError(f"{member} will not do; give another.")
    return counted(pair, calls=calls)


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for(marker: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.05)
