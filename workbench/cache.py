"""Where computed things that can be computed again are kept between runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.outputs import Mark, writing

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
    """What `keep_digest` left there."""
    if memo.exists() and DIGEST.fullmatch(known := memo.read_text(errors="replace")):
        return known
    return None


def keep_digest(memo: Path, found: str) -> None:
    with writing(memo, CACHED) as fresh:
        fresh.write_text(found)
