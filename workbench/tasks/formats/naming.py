"""Which key of a row is which field? A map that the user gives, and what is proposed where a key is
missing or nearly one that is known."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.errors import WorkbenchError, some
from workbench.files.reading import is_number, parsed
from workbench.tasks.formats.shapes import NAMES, SHAPES, Shape, shown, text

NEAR = 0.82  # of difflib's ratio: "foil" is near "foils", "prompt_id" not near "prompt"
_ANSWERS = (
    "target", "response", "output", "answer", "completion", "label", "expected", "reference",
    "solution", "gold", "chosen", "correct_answer", "correct", "reply", "answers",
)  # fmt: skip
_ASKED = ("prompt", "instruction", "input", "question", "query", "text", "problem", "goal", "ctx")
# Field -> what others call it.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": _ASKED,
    "question": _ASKED,
    "target": _ANSWERS,
    "answer": _ANSWERS,
    "completion": _ANSWERS,
    "choices": ("options", "candidates", "alternatives", "endings", "choice"),
    "endings": ("choices", "options", "candidates"),
    "foils": ("distractors", "wrong", "incorrect_answers", "rejected", "negatives"),
    "label": ("answer", "gold", "target"),
    "ctx": ("context", "query", "prompt"),
    "rejected": ("foil", "loser", "negative"),
    "chosen": ("winner", "positive", "response"),
}


def checked(given: Mapping[str, str] | None) -> dict[str, str]:
    """A map from our fields to paths; raises WorkbenchError for a field there is none of."""
    found = dict(given or {})
    for name, path in found.items():
        if not isinstance(name, str) or not isinstance(path, str) or not path:
            raise WorkbenchError(
                f"Expected map to name a path for each field, found {name!r}: {path!r}."
            )
        field, dot, tag = name.partition(".")
        if name not in NAMES and not (field == "tags" and dot and tag):
            near = difflib.get_close_matches(name, NAMES, n=1)
            known = (
                f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}, tags.NAME."
            )
            raise WorkbenchError(
                f"Expected map to name fields of a prompt, found {name!r}; {known}"
            )
    return found


def renamed(row: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """A row with the fields of a map; keys that were taken from stand for nothing else."""
    if not paths:
        return dict(row)
    found = {name: _at(row, path, name) for name, path in paths.items()}
    made = {name: value for name, value in row.items() if name not in paths.values()}
    for name, value in found.items():
        field, dot, tag = name.partition(".")
        if dot:
            own = made.get(field, {})
            own = {**own} if isinstance(own, Mapping) else {}
            made[field] = own | {tag: text(value, name)}
        else:
            if name in ("prompt", "target") and is_number(value):
                value = str(value)
            made[name] = [value] if name == "foils" and isinstance(value, str) else value
    return made


def _at(row: Any, path: str, field: str) -> Any:
    """What lies at a dotted path: keys, and numbers into lists; a key may hold a dot itself."""
    found, rest = row, path
    while True:
        if isinstance(found, str) and found[:1] in ("[", "{"):  # a cell of a table
            with contextlib.suppress(ValueError):
                found = parsed(found)
        if isinstance(found, Mapping) and rest in found:
            return found[rest]
        step, _, more = rest.partition(".")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            ends = "" if found is row else f": before {step} there is {_kind(found)}"
            raise WorkbenchError(
                f"there is no {path} for {field}{ends}; the keys of the row are {keys(row)}."
            )
        if not more:
            return found
        rest = more


def _kind(found: Any) -> str:
    """What a path ends at, for a person."""
    if isinstance(found, Mapping):
        return f"an object of the keys {keys(found)}"
    return f"a list of {len(found)}" if isinstance(found, list) else shown(found)


def keys(row: Mapping[str, Any]) -> str:
    """The first keys of a row, for a person."""
    return some([name if len(name) <= 40 else f"{name[:40]}..." for name in map(str, row)], 8)


def unknown(row: Mapping[str, Any], *, table: bool) -> WorkbenchError:
    """Of a row that has no shape: what it lacks, and which of its keys that may be. table: its keys
    are the first line of a file."""
    shares = [1 - len(s.missing(row)) / len(s.needs) for s in SHAPES]
    shape = SHAPES[shares.index(max(shares)) if max(shares) >= 0.5 else 0]
    lacking = shape.missing(row)
    taken: set[str] = {name for name in shape.known if name in row}
    found: dict[str, str] = {}
    for name in lacking:
        one = next((k for k in _candidates(row, name) if k not in taken), None)
        if one is not None:
            found[name] = one
            taken.add(one)
    wanted = " and ".join(lacking)
    if max(shares) < 0.5:
        wanted += " (or messages, question and answer, or text)"
    said = f"missing {wanted}, found the keys {keys(row) or 'none'}"
    if table and not found and not taken:
        return WorkbenchError(f"{said}; the first line of a table must name its columns.")
    if len(found) < len(lacking):
        more = proposal(found | {name: "KEY" for name in lacking if name not in found})
        return WorkbenchError(f"{said}; name the keys that hold them by {more}.")
    return WorkbenchError(f"{said}; give {proposal(found)} if that is the right one.")


def proposal(found: Mapping[str, str]) -> str:
    """A map as it is given in Python and on the command line."""
    typed = ",".join(f"{name}={key}" for name, key in found.items())
    return f"map={dict(found)!r} (--map {typed})"


def _candidates(row: Mapping[str, Any], name: str) -> Iterator[str]:
    """Keys of a row that may be the field, the likeliest first."""
    plain = {str(key).lower(): str(key) for key in row}
    for other in (name, *SYNONYMS.get(name, ())):
        if other in plain:
            yield plain[other]
    yield from (plain[one] for one in difflib.get_close_matches(name, plain, 3, NEAR))


def require_plain(row: Mapping[str, Any], shape: Shape) -> None:
    """Raise WorkbenchError where a further key is nearly one that the shape knows and the row has
    not, or holds a list of what the shape should have: it would be left out, or be a tag."""
    wanted = [n for n in shape.known if n not in row and n != "id"]
    if not shape.own:
        wanted = [name for name in wanted if name not in ("split", "template", "tags")]
    for key in row:
        if key in shape.known:
            continue
        low = str(key).lower()
        near = [low] if low in wanted else difflib.get_close_matches(low, wanted, 1, NEAR)
        near = [one for one in near if abs(len(one) - len(low)) <= 2]
        if not near and isinstance(row[key], list):
            listed = "foils" if shape.own else "choices" if "answer" in shape.known else ""
            near = [listed] if listed not in row and low in SYNONYMS.get(listed, ()) else []
        if near:
            raise WorkbenchError(
                f"{key} is not a known key, but close to {near[0]}; rename it, or give "
                f"{proposal({near[0]: str(key)})}."
            )
