"""`workbench compare --config run.yaml`: every option of a comparison, and of its analyses, said in
a file; what was run is written beside its results in the same form.

A path in the file is taken from where the file lies. What is typed beside --config wins.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from workbench.cli.options import named
from workbench.cli.reading import mapped
from workbench.files.reading import is_number

REMEDY = "see `workbench compare --help`"
GIVEN = ("device", "dtype", "seed", "large")  # of every analysis at once, or of none


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_names(value: Any) -> bool:
    """Texts by name, as an option can say them."""
    return isinstance(value, dict) and all(
        _is_text(name) and not {"=", ","} & {*name} and _is_text(text)
        for name, text in value.items()
    )


TEXT = ("a text", _is_text)
NAMES = ("texts by name, a number or yes and no in quotes", _is_names)
# Key -> what it is, and whether a value is that. Each is an option of `compare` of this name.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "base": TEXT, "member": NAMES, "prompts": TEXT, "text": TEXT, "out": TEXT,
    "steps": TEXT,
    "only": ("a list of texts", lambda v: isinstance(v, list) and all(map(_is_text, v))),
    "device": TEXT, "dtype": TEXT, "seed": ("a whole number", lambda v: type(v) is int),
    "phantoms": ("a whole number from 0", lambda v: type(v) is int and v >= 0),
    "on": TEXT, "map": NAMES, "scorer": TEXT, "template": TEXT,
    "letters": ("true or false", lambda v: isinstance(v, bool)),
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """What a file says, its paths as seen from the folder this runs in. Raises WorkbenchError for
    a key, an analysis or an argument that is not known, or that is of another kind."""
    from workbench.errors import WorkbenchError
    from workbench.files.reading import read_yaml

    found = read_yaml(path, remedy=REMEDY)
    if not isinstance(found, dict):
        raise WorkbenchError(f"Expected options with values in {path}, found {found!r}; {REMEDY}.")
    # Without quotes the word `on` is true in YAML 1.1.
    found = {"on" if name is True else name: value for name, value in found.items()}
    options = found.pop("options", {})
    for name, value in found.items():
        _require_known(str(name), KEYS, f"options of {path}", ("options",))
        what, fits = KEYS[name]
        if not fits(value):
            raise WorkbenchError(f"Expected {name} in {path} to be {what}, found {value!r}.")
    folder = path.parent
    for name in found.keys() & {"prompts", "text", "steps", "out"}:
        found[name] = _seen(folder / os.path.expanduser(found[name]))
    if "base" in found:
        found["base"] = _beside(found["base"], folder)
    if "member" in found:
        found["member"] = {name: _beside(one, folder) for name, one in found["member"].items()}
    return found | {"options": _options(options, path)}


def _require_known(
    name: str, known: Collection[str], what: str, more: Collection[str] = ()
) -> None:
    from workbench.errors import WorkbenchError

    if name not in known:
        near = difflib.get_close_matches(name, [*known, *more], n=1)
        told = f"did you mean {near[0]}?" if near else f"known are {', '.join([*known, *more])}."
        raise WorkbenchError(f"Unknown {name!r} among the {what}; {told}")


def _seen(path: Path) -> str:
    """A path without what only the place of the file says: from here, where it is below here."""
    whole, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole) if Path(whole).is_relative_to(here) else whole


def _beside(reference: str, folder: Path) -> str:
    """A checkpoint as seen from here: what lies beside the file, else the id of a hub. Raises
    WorkbenchError where it lies in the folder this runs in alone, which the file does not name."""
    from workbench.errors import WorkbenchError

    def placed(part: str) -> str:
        own = folder / os.path.expanduser(part)
        if os.path.exists(own) or part.startswith((".", "/", "~")) or part.count("/") > 1:
            return _seen(own)
        if os.path.exists(part):
            raise WorkbenchError(
                f"{own} does not exist, and paths are relative to the file's folder; write "
                f"{os.path.relpath(part, folder)} for {_seen(Path(part))}."
            )
        return part

    return _parts(reference, placed, folder)


def _parts(reference: str, change: Callable[[str], str], folder: Path) -> str:
    """BASE+ADAPTER part by part; a path that holds a + as one."""
    if os.path.exists(folder / os.path.expanduser(reference)):
        return change(reference)
    return "+".join(map(change, reference.split("+")))


def _options(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Analysis -> arguments, each held against the analysis's signature."""
    from workbench.errors import WorkbenchError

    if not isinstance(found, dict):
        raise WorkbenchError(
            f"Expected options in {path} to be arguments by analysis, found {found!r}; {REMEDY}."
        )
    for key, arguments in found.items():
        known = _arguments(key)
        if not isinstance(arguments, dict):
            raise WorkbenchError(
                f"Expected arguments of {key} by name in {path}, found {arguments!r}."
            )
        for name, value in arguments.items():
            _require_known(str(name), known, f"arguments of {key} in {path}")
            if not fits(value, known[name]):
                raise WorkbenchError(
                    f"Expected {name} of {key} in {path} to be {_called(known[name])}, "
                    f"found {value!r}."
                )
    return found


def _arguments(key: Any) -> dict[str, Any]:
    """The arguments of an analysis that a study leaves to its options, with their types. Raises
    WorkbenchError for an unknown key."""
    from workbench.study.catalogue import ANALYSES

    by_key = {one.key: one for one in ANALYSES}
    _require_known(str(key), by_key, "analyses")
    function, takes = by_key[key].function, by_key[key].takes or {}
    hints, names = get_type_hints(function), [*inspect.signature(function).parameters][1:]
    own = {name: hints[name] for name in names if name not in (*takes, *GIVEN)}
    return {
        name: hint for name, hint in own.items() if _called(hint) and Path not in get_args(hint)
    }


PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type: plain values, their lists, Literals."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(hint))
    if _is_list(hint):
        return isinstance(value, list) and all(fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return is_number(value)
    return type(value) is hint  # true is an int to isinstance


def _called(hint: Any) -> str:
    """A type in words; none for one that YAML has no value of."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(filter(None, map(_called, get_args(hint))))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if _is_list(hint):
        parts = _called(get_args(hint)[0])
        return f"a list, each {parts}" if parts else ""
    return "null" if hint is NoneType else PLAIN.get(hint, "")


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (Sequence, Iterable)


def chosen(ctx: typer.Context, path: Path | None) -> Path | None:
    """The callback of --config: what the file says stands where nothing is typed."""
    if path is not None:
        found = read(path)
        del found["options"]
        for name in found.keys() & {"member", "map"}:
            found[name] = [f"{own}={text}" for own, text in found[name].items()]
        ctx.default_map = found
    return path


def resolved(given: Mapping[str, Any], options: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What a command was given, typed or by file, as `read` takes it from a file in `out`."""

    def placed(part: str) -> str:
        here = os.path.exists(part) and not os.path.isabs(part)
        return os.path.relpath(part, out) if here else part

    found = {name: given[name] for name in KEYS if given.get(name) not in (None, [], ())}
    for name in found.keys() & {"prompts", "text", "steps"}:
        own = str(found[name])
        found[name] = own if os.path.isabs(own) else os.path.relpath(own, out)
    found["out"] = "."
    found["base"] = _parts(found["base"], placed, Path())
    if "member" in found:
        members = named(found["member"]).items()
        found["member"] = {name: _parts(one, placed, Path()) for name, one in members}
    if "map" in found:
        found["map"] = mapped(found["map"])
    if "only" in found:
        found["only"] = list(found["only"])
    return found | ({"options": dict(options)} if options else {})
