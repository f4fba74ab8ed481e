"""What beside its weights decides what a checkpoint says: configs, tokenizers, chat templates.

All of a folder's files that any reader of checkpoints opens are told apart by content, so that
nobody has to know which of them transformers takes. Not among them are the weights, which have
digests of their own, and what nothing opens: documents, pictures, code, states of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.results import cache

# How the names of such files end, by the slow and fast tokenizers of transformers.
READ = (".json", ".jinja", ".model", ".txt", ".vocab", ".codes", ".spm", ".tiktoken", ".tokenizer")
TEMPLATES = "additional_chat_templates"


def beside_digest(folder: Path) -> str:
    """sha256 over the names and content of the files beside a folder's weights."""
    told = (f"{file.relative_to(folder)}:{cache.file_digest(file)}\n" for file in _read(folder))
    return cache.digest(line.encode("utf-8", "surrogateescape") for line in told)


def require_files(folder: Path) -> None:
    """Raise WorkbenchError where one of them is a pipe or a device, which would be waited for."""
    for file in _named(folder):
        if file.exists() and not file.is_file() and not file.is_dir():
            raise WorkbenchError(
                f"Expected a file at {file}, found none, only a pipe or a device; "
                "download it again."
            )


def _read(folder: Path) -> Iterator[Path]:
    return (file for file in _named(folder) if file.is_file())


def _named(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / TEMPLATES):
        if place.is_dir():
            yield from sorted(file for file in place.iterdir() if file.suffix in READ)
