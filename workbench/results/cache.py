"""Where computed things that can be computed again are kept between runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files.writing import Mark, writing

CHUNK = 1 << 24
SMALL = 1 << 22  # bytes of a file that is read again sooner than it is asked whether it changed
CACHED = Mark(
    "a file of the cache",
    lambda target: True,
    "set WORKBENCH_CACHE to a folder that can be written",
)
DIGEST = re.compile(r"[0-9a-f]{64}")


def folder(*parts: str) -> Path:
    """A place under $WORKBENCH_CACHE, or under workbench/ of the user's cache folder."""
    root = os.environ.get("WORKBENCH_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"
    return Path(root or home, *parts)


def digest(chunks: Iterable[bytes | memoryview]) -> str:
    """sha256 of the chunks as 64 hexadecimal characters."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content; that of a large one is remembered, see `digest_memo`."""
    if path.stat().st_size <= SMALL:
        return digest([path.read_bytes()])
    memo = digest_memo(path)
    if known := kept_digest(memo):
        return known
    with path.open("rb") as file:
        found = digest(iter(lambda: file.read(CHUNK), b""))
    # A cache that cannot be written costs the next one who asks a second reading, no more.
    with contextlib.suppress(OSError, WorkbenchError):
        keep_digest(memo, found)
    return found


def digest_memo(path: Path) -> Path:
    """Where the sha256 of a file is remembered: another place once the file is written anew. Who
    sets its time of writing back changes its status, whose time nobody can set."""
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return folder("hashes", digest([json.dumps(state).encode()])[:32])


def kept_digest(memo: Path) -> str | None:
    """What `keep_digest` left there; None for anything else, such as a file cut short."""
    try:
        known, _, seal = memo.read_text(errors="replace").partition(" ")
    except OSError:
        return None
    return known if DIGEST.fullmatch(known) and seal == _sealed(memo, known) else None


def keep_digest(memo: Path, found: str) -> None:
    with writing(memo, CACHED) as fresh:
        fresh.write_text(f"{found} {_sealed(memo, found)}")


def _sealed(memo: Path, found: str) -> str:
    return digest([memo.name.encode(), found.encode()])[:16]


def seal(made: Path) -> None:
    """Keep the digest of a folder beside it, once all of it is there."""
    keep_digest(_seal(made), _content(made))


def intact(made: Path) -> bool | None:
    """Whether a folder is what it was when it was sealed; None where it never was."""
    known = kept_digest(_seal(made))
    return None if known is None else made.is_dir() and _content(made) == known


def made_in(place: Path, make: Callable[[], object]) -> Path:
    """`place`, where `make` makes a folder unless it is there; a damaged one goes first."""
    if intact(place) is False:
        shutil.rmtree(place, ignore_errors=True)
    make()
    if not intact(place):
        seal(place)
    return place


def _seal(made: Path) -> Path:
    return made.with_name(f"{made.name}.sha256")


def _content(made: Path) -> str:
    files = sorted(file for file in made.rglob("*") if file.is_file())
    return digest(f"{f.relative_to(made)}:{file_digest(f)}\n".encode() for f in files)
