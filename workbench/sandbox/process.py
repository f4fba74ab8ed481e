"""What a file that was passed on would have us do, done in a process of its own and within bounds.

One such process serves this one for as long as both live: it knows no torch and none of our
objects, gets one request a line and answers each in one. Where a request takes longer or more
memory than it may, in whatever library and in however long a single step, the process is ended
and the next request starts another. It does not know what is asked of it: `child` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

HEARD = 0.25  # seconds until a ctrl-C is heard at the latest
START = 120.0  # seconds until the process may take requests; one or two on a machine at rest
# By its path and with none of the user's folders before Python's own (-P).
COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("child.py"))]
OWN = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Child:
    """The process that does it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | OWN,
            start_new_session=True,  # ctrl-C is this process's to hear
        )
        self.parent = os.getpid()
        try:
            self.answered(START)
        except (EOFError, TimeoutError) as error:
            raise WorkbenchError(
                f"Expected to start a second process ({' '.join(COMMAND)}), in which "
                "untrusted files are tried, but it ended at once; check whether that command runs."
            ) from error

    @property
    def serves(self) -> bool:
        return self.process.poll() is None and self.parent == os.getpid()

    def answered(self, seconds: float, **request: Any) -> Any:
        """Its answer to a request, or to being started. Raises TimeoutError, and EOFError where the
        process ended over it."""
        assert self.process.stdin
        assert self.process.stdout
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self.process.kill()))
        timer.start()
        try:
            if request:
                line = json.dumps(request | {"seconds": seconds}).encode() + b"\n"
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.write(line)
                    self.process.stdin.flush()
            # The system may give a ctrl-C to another thread, which does not wake this one.
            while os.name == "posix" and not select.select([self.process.stdout], [], [], HEARD)[0]:
                pass
            answer = self.process.stdout.readline()
        except BaseException:  # ctrl-C among them
            self.end()
            raise
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self.end()
            raise TimeoutError(f"still busy after {seconds:g} s") if late.is_set() else EOFError
        return json.loads(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


_CHILD: list[Child] = []
_LOCK = threading.Lock()


def bounded(task: str, *, seconds: float, room: int, **given: Any) -> Any:
    """The answer to a task of `child`, by its name and with what it is given.

    seconds: by the clock. room: bytes of memory it may take, kept on Linux alone. Raises
    TimeoutError, or ValueError with what the task raised.
    """
    with _LOCK:
        if not _CHILD or not _CHILD[0].serves:
            _CHILD[:] = [Child()]
        try:
            made = _CHILD[0].answered(seconds, task=task, room=room, given=given)
        except EOFError:
            raise ValueError(
                f"it ended its process, as if it needed more than {room >> 30} GiB"
            ) from None
    if "error" in made:
        raise ValueError(made["error"])
    return made["made"]
