"""Writing files so that nothing a user made is lost: whole or not at all, and only where there is
nothing, or nothing but what was written here before.

Every writer has a `Mark`, by which its own work is known again. What it finds in its place is
either that, which it replaces, or somebody's, which it leaves alone and says so, before any work
where a command can know so early (`require_free`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from workbench.errors import WorkbenchError

Known = Callable[[Path], bool]
ENDS = 1 << 14  # bytes at either end of a file by which it is known


class Mark(NamedTuple):
    """What is written, as a person calls it, and whether a path holds such a thing, written here,
    and nothing else; how a person has it written elsewhere."""

    what: str
    known: Known
    elsewhere: str = "give another path (--out)"


# For places that are nobody else's: a cache, a file within a folder that is ours.
OWN = Mark("a file of the workbench's own", lambda target: True)


def holds(*names: str, marked: Known) -> Known:
    """Folders of nothing but files and folders of these names, `marked` among them, and of what a
    killed process left unfinished there."""

    def ours(target: Path) -> bool:
        return target.is_dir() and {p.name for p in finished(target)} <= {*names} and marked(target)

    return ours


# As `_mark` and tempfile name it: .NAME.HOST-PID.abcdefgh, and a file's suffix.
UNFINISHED = re.compile(r"\..+\..*-\d+\.[a-z0-9_]{8}(\.\w+)?")


def finished(folder: Path) -> list[Path]:
    """What lies in a folder, less the unfinished copies of any process."""
    return [path for path in folder.iterdir() if not UNFINISHED.fullmatch(path.name)]


def says(*marks: bytes) -> Known:
    """Files with all of these marks near their beginning or end."""

    def ours(target: Path) -> bool:
        if not target.is_file():
            return False
        with target.open("rb") as file:
            known = file.read(ENDS)
            file.seek(-min(ENDS, target.stat().st_size), os.SEEK_END)
            known += file.read()
        return all(mark in known for mark in marks)

    return ours


def require_free(target: str | Path, mark: Mark) -> None:
    """Raise WorkbenchError unless `target` is absent, an empty folder, or of this mark."""
    target = Path(target)
    if target.is_symlink():
        raise WorkbenchError(
            f"{target} is a link, and {mark.what} could overwrite whatever it points "
            f"to; {mark.elsewhere}."
        )
    if not os.path.lexists(target):
        _require_folder_above(target, mark)
        return
    if _here(target):
        raise WorkbenchError(
            f"{target} is the folder this runs in, or one above it, where {mark.what} "
            f"must not be written; {mark.elsewhere}."
        )
    try:
        if (target.is_dir() and not finished(target)) or mark.known(target):
            return
    except FileNotFoundError:  # another writer of the same just put it aside
        return
    raise WorkbenchError(
        f"{target} does not hold {mark.what} that the workbench wrote, so nothing was "
        f"changed; {mark.elsewhere}, or move it away."
    )


def _require_folder_above(target: Path, mark: Mark) -> None:
    above = next((p for p in target.parents if os.path.lexists(p)), None)
    if above is not None and not above.is_dir():
        raise WorkbenchError(
            f"{target} cannot be written, since {above} is not a folder; {mark.elsewhere}."
        )


def _here(target: Path) -> bool:
    """Whether it is the folder of this process, or holds it."""
    return Path.cwd().is_relative_to(target.resolve())


@contextlib.contextmanager
def replacing(target: Path, mark: Mark) -> Iterator[Path]:
    """A fresh folder that takes `target`'s place when the block ends well, else disappears.

    What a killed run left of it disappears with it. Raises WorkbenchError as `require_free`, and
    where it cannot be written: a full disk, a folder that is read-only.
    """
    recover(target)
    require_free(target, mark)
    with _told(target, mark):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=_mark(target), dir=target.parent))
        try:
            yield fresh
            os.chmod(fresh, 0o777 & ~_umask())
            _exchange(fresh, target, mark)
            _sweep(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


WAS = "was"  # what a replaced folder is called while it stands aside


def _exchange(fresh: Path, target: Path, mark: Mark) -> None:
    """Put `fresh` in `target`'s place. What was there stands aside until that is done, from where
    `recover` takes it back should this process end between."""
    aside: list[Path] = []
    while not _renamed(fresh, target):
        # Somebody's, or another writer of the same came first.
        require_free(target, mark)
        aside.append(Path(tempfile.mkdtemp(prefix=_mark(target), dir=target.parent)))
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, aside[-1] / WAS)
    for old in aside:
        shutil.rmtree(old)


def _renamed(fresh: Path, target: Path) -> bool:
    """Whether the name was free."""
    try:
        os.rename(fresh, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise
        return False
    return True


def recover(target: Path) -> None:
    """Take back what a process that ended between two renames had put aside."""
    if os.path.lexists(target):
        return
    kept = [left / WAS for left in _left(target) if (left / WAS).is_dir()]
    if kept:
        newest = max(kept, key=lambda path: path.parent.stat().st_mtime)
        with contextlib.suppress(OSError):
            os.rename(newest, target)


@contextlib.contextmanager
def writing(target: Path, mark: Mark) -> Iterator[Path]:
    """A temporary file beside `target` that is renamed to it when the block ends well.

    Raises WorkbenchError as `replacing`; also where `target` is a folder, if empty.
    """
    require_free(target, mark)
    if target.is_dir():
        raise WorkbenchError(f"{target} is a folder; give the path of a file for {mark.what}.")
    with _told(target, mark):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=_mark(target), suffix=target.suffix, dir=target.parent
        )
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
            _sweep(target)
        finally:
            Path(name).unlink(missing_ok=True)


def _mark(target: Path) -> str:
    """How the names of this process's unfinished copies of `target` begin."""
    return f"{_family(target)}{os.getpid()}."


def _family(target: Path) -> str:
    return f".{target.name[:100]}.{platform.node()}-"


def _left(target: Path) -> Iterator[Path]:
    """The unfinished copies of `target` whose processes, on this machine, are gone."""
    import psutil

    beginning = _family(target)
    for left in target.parent.glob(glob.escape(beginning) + "*"):
        owner = left.name.removeprefix(beginning).partition(".")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            yield left


def _sweep(target: Path) -> None:
    for left in _left(target):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)


@contextlib.contextmanager
def _told(target: Path, mark: Mark) -> Iterator[None]:
    """What the system says of a write that fails, as one sentence that names `target`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(
            f"{target} cannot be written ({error}); what was there is unchanged: free "
            f"some disk space, or {mark.elsewhere}."
        ) from error


def _umask() -> int:
    """The user's mask for new files; temporary ones are made private and must take it on."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
