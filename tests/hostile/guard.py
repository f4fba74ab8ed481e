"""What no input may do, watched while one is read: write elsewhere, connect, start a program, hang,
fill the memory, or end in anything but a WorkbenchError of one plain line."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import LONGEST, WorkbenchError
from workbench.sandbox.process import COMMAND

SECONDS = 60  # of one case by the clock; all take less than one on a machine at rest
MEMORY = 1 << 20  # KiB that the process's largest resident set may grow by, over all cases
ROOM = 12 << 30  # bytes of address space beyond what is taken: a stop for the machine's sake
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system",
             "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "shutil.rmtree")  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Violation(BaseException):
    """What happened that must not; no `except Exception` of the library may swallow it."""


class Guard:
    """Watches this process; made once, since an audit hook cannot be taken off."""

    def __init__(self, *allowed: Path) -> None:
        self.allowed = [str(path.resolve()) for path in allowed]
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, self._late)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
        self.before = peak()

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & WRITES) or any(c in (mode or "") for c in "wax+")
            if writes and isinstance(path, str | bytes) and not self._mine(os.fsdecode(path)):
                self.seen.append(f"wrote {os.fsdecode(path)!r}")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.symlink", "os.link"):
            for path in arguments:
                if isinstance(path, str | bytes) and not self._mine(os.fsdecode(path)):
                    self.seen.append(f"{event} {os.fsdecode(path)!r}")
        elif event == "shutil.rmtree":
            if not self._mine(os.fsdecode(arguments[0])):
                self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "subprocess.Popen" and [*arguments[1]] == COMMAND:
            return  # where what takes too long or too much is tried
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}")

    def _mine(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == os.devnull or any(real.startswith(root) for root in self.allowed)

    def _late(self, *_: object) -> None:
        raise Violation(f"still busy after {SECONDS} s")

    @contextlib.contextmanager
    def over(self, marker: Path) -> Iterator[list[WorkbenchError]]:
        """A block in which a case is read; the WorkbenchError it ended in, if any, is in the list.

        marker: a file that code in the case would write. Raises Violation.
        """
        refused: list[WorkbenchError] = []
        self.seen = []
        signal.alarm(SECONDS)
        self.watching = True
        try:
            yield refused
        except WorkbenchError as error:
            refused.append(error)
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        finally:
            self.watching = False
            signal.alarm(0)
        if self.seen:
            raise Violation("; ".join(self.seen[:3]))
        if marker.exists():
            marker.unlink()
            raise Violation("code of the case was run")
        grown = peak() - self.before
        if grown > MEMORY:
            raise Violation(f"the resident set grew by {grown >> 10} MiB")
        for error in refused:
            require_sentence(str(error))


def peak() -> int:
    """KiB of this process's largest resident set; getrusage would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def require_sentence(text: str) -> None:
    """Raise Violation unless `text` is one plain, bounded line that does not speak of memory."""
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    if not text.strip() or odd or len(text) > LONGEST + 10 or "Traceback" in text:
        raise Violation(f"not one plain sentence: {text!r}")
    if any(word in text for word in ("MemoryError", "allocate memory", "Cannot allocate")):
        raise Violation(f"memory ran out: {text}")


def scratch() -> Path:
    """A folder for cases, in memory where the system has one."""
    shm = Path("/dev/shm")
    root = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="workbench-hostile-", dir=root))
