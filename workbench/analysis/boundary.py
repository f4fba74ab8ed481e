"""What every analysis is asked, made sure of before it begins.

A family where a pair is expected, a device that is not there, a text where a set of prompts is
expected: each ends in one sentence, and a path to prompts is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.loaders.devices import entry
from workbench.loaders.pair import CheckpointPair, Family
from workbench.tasks.prompts import FILES, PromptSet, are_prompts

# Arguments of these types, or of several, may be given by the path of a file.
SETS = ("PromptSet", "Prompts")
SEVERAL = "Sequence[PromptSet]"  # of which one alone may be given as it is


def checked(analysis: str, name: str, kind: str, value: Any) -> Any:
    """An argument as the analysis takes it. kind: its annotation, as text."""
    if name == "device":
        entry(value)
    elif kind == "CheckpointPair":
        require_pair(value, analysis)
    elif kind == "Family":
        require_family(value, analysis)
    elif isinstance(value, str) and "| str |" in kind and not are_prompts(value):
        return value  # a name that stands for a set
    elif any(one in kind for one in SETS):
        found = _prompts(value, name, texts="Sequence[str]" in kind or "Prompts" in kind)
        return [found] if kind == SEVERAL and isinstance(found, PromptSet) else found
    return value


def require_family(value: Any, analysis: str) -> None:
    """Raise WorkbenchError for what is no base with named members."""
    if not isinstance(value, Family):
        raise WorkbenchError(
            f"Expected a family of fine-tuned models for {analysis}, found "
            f"{_told(value)}; load one with wb.load_family(base, {{'name': reference}})."
        )


def require_pair(value: Any, analysis: str) -> None:
    """Raise WorkbenchError for what is no base with one member."""
    if isinstance(value, CheckpointPair):
        return
    if isinstance(value, Family):
        name = next(iter(value.members), "name")
        raise WorkbenchError(
            f"Expected a base with one fine-tuned model for {analysis}, found a family "
            f"of {len(value)}; give family[{name!r}], or wb.over(family, ...) for every model."
        )
    raise WorkbenchError(
        f"Expected a base with one fine-tuned model for {analysis}, found "
        f"{_told(value)}; load one with wb.load_pair(base, tuned)."
    )


def _prompts(value: Any, name: str, *, texts: bool) -> Any:
    """Prompts, or several sets of them, of which any may be a path. texts: plain texts may stand
    for prompts."""
    if isinstance(value, str | Path):
        if are_prompts(value):
            return PromptSet.load(value)
        raise WorkbenchError(
            f"Expected {name} to be a set of prompts{' or a list of texts' if texts else ''}, "
            f"found the text {str(value)[:60]!r}; give wb.tasks.PromptSet.load(path), the path of "
            f"a file ({', '.join(FILES)}) or a folder of datasets"
            f"{', or wrap one text in a list' if texts else ''}."
        )
    if isinstance(value, Mapping):
        return {key: _path(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not texts:
        return [_path(one) for one in value]
    return value


def _path(value: Any) -> Any:
    """A set that may be given by its file; plain texts stay texts."""
    known = isinstance(value, Path) or (
        isinstance(value, str) and are_prompts(value) and Path(value).exists()
    )
    return PromptSet.load(value) if known else value


def _told(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
