"""Text and JSON that anyone may have written, read strictly: whole, bounded, unambiguous."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

MIB = 1 << 20
DEEPEST = 64  # levels of nesting; configs and tokenizers have about six
AGAIN = "download or save it again"


def read_text(path: Path, *, most: int = 16 * MIB, remedy: str = AGAIN) -> str:
    """A UTF-8 file of at most `most` bytes, a byte order mark dropped.

    Raises WorkbenchError where it is missing, no regular file (a pipe or device would be waited
    for), larger, or not UTF-8.
    """
    if not path.is_file():
        raise WorkbenchError(f"Expected a file at {path}, found none; check the path.")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise WorkbenchError(
                f"{path} is larger than the {most / MIB:g} MiB that may be read of "
                f"such a file; {remedy}."
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{path} is not UTF-8 text ({error}); {remedy}.") from error
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error


def read_json(path: Path, *, most: int = 16 * MIB, remedy: str = AGAIN) -> dict[str, Any]:
    """The object in a JSON file, as `parsed`; raises WorkbenchError for anything else."""
    try:
        found = parsed(read_text(path, most=most, remedy=remedy))
    except WorkbenchError:
        raise
    except ValueError as error:
        raise WorkbenchError(f"{path} is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(found, dict):
        raise WorkbenchError(
            f"Expected a JSON object in {path}, found {type(found).__name__}; {remedy}."
        )
    return found


def parsed(text: str) -> Any:
    """JSON of which there is one reading.

    Raises ValueError where it is none, where an object has a key twice (readers differ in which
    they take), where it nests deeper than DEEPEST, or holds half of a surrogate pair.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    _require_shallow(found)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _require_shallow(found: Any) -> None:
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(DEEPEST):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value from JSON is a whole number of at least `least`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_yaml(
    path: Path, *, most: int = MIB, remedy: str = "see `workbench figures --help`"
) -> Any:
    """What a YAML file of plain values holds; raises WorkbenchError as `read_json`.

    Anchors, tags and keys that stand twice are refused: a few lines of them can claim any amount
    of memory, run code in other readers, or be read in two ways.
    """
    import yaml

    text, depth = read_text(path, most=most, remedy=remedy), 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise ValueError(f"an anchor or a tag{event.start_mark}")
            # The time that yaml takes grows with the square of the depth: no further than this.
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST} levels")
        _require_unique(yaml.compose(text, Loader=yaml.SafeLoader))
        found = yaml.safe_load(text)
        _require_shallow(found)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise WorkbenchError(f"{path} is not plain YAML ({told}); {remedy}.") from error
    return found


def _require_unique(node: Any) -> None:
    """Raises ValueError where a mapping below a YAML node has a key twice."""
    if node is None or not isinstance(node.value, list):
        return
    parts = node.value
    pairs = [pair for pair in parts if isinstance(pair, tuple)]
    names = [name.value for name, _ in pairs if isinstance(name.value, str)]
    if len(set(names)) < len(names):
        raise ValueError(f"a key occurs twice in one mapping{node.start_mark}")
    for part in parts:
        for inner in part if isinstance(part, tuple) else (part,):
            _require_unique(inner)
