"""Circuits as a file: one's own, a paper's, or those that `circuit` found, to be judged elsewhere.

    {"format": "workbench circuits 1",
     "circuits": {"IOI": {"name mover": ["9.6@end", "9.9@end"], "previous token": ["2.2"]}}}

Under each circuit's name its groups, and in each group its heads as LAYER.HEAD, with @PLACE where a
head is kept at that place alone: a count (-1), or the name of a span of the prompts. Without a
place a head is kept where its group acts, if the group is one that `circuit` looks for, and else at
every token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import read_json
from workbench.files.writing import Mark, says, writing
from workbench.models.sites import position_of
from workbench.patching.patches import Position
from workbench.patching.path_ends import Head

FORMAT = "workbench circuits 1"
SAVED = Mark("a file of circuits", says(f'"format": "{FORMAT}"'.encode()))
HEAD = re.compile(r"(\d+)\.(\d+)(?:@(.+))?")
# Groups of heads, each (layer, head) or "LAYER.HEAD@PLACE".
Given = Mapping[str, Sequence[Head | str]]


def save_circuits(circuits: Mapping[str, Given], path: str | Path) -> Path:
    """Write circuits, name -> group -> heads, for example those of `circuits_of(result)`; replaces
    nothing but such a file. Raises WorkbenchError for heads that are none."""
    told = {
        name: {group: [_text(head) for head in heads] for group, heads in groups.items()}
        for name, groups in circuits.items()
    }
    with writing(Path(path), SAVED) as temporary:
        text = json.dumps({"format": FORMAT, "circuits": told}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def load_circuits(path: str | Path) -> dict[str, dict[str, list[Head | str]]]:
    """The circuits of a file, as `circuit(circuits=)` takes them. Raises WorkbenchError for a file
    of anything else."""
    found = read_json(Path(path))
    circuits = found.get("circuits")
    if found.get("format") != FORMAT or not isinstance(circuits, Mapping):
        raise WorkbenchError(
            f'Expected circuits in {path}, {{"format": "{FORMAT}", "circuits": {{NAME: {{GROUP: '
            '["LAYER.HEAD", ...]}}}}; found none.'
        )
    made: dict[str, dict[str, list[Head | str]]] = {}
    for name, groups in circuits.items():
        if not isinstance(groups, Mapping) or not all(isinstance(h, list) for h in groups.values()):
            raise WorkbenchError(
                f"Expected circuit {name!r} of {path} to map groups to lists of heads, found "
                f"{str(groups)[:60]}."
            )
        made[name] = {group: [_short(_text(h)) for h in heads] for group, heads in groups.items()}
    return made


def placed(given: Given) -> tuple[dict[str, list[Head]], dict[str, Position]]:
    """Groups of heads, and the places of those that are given some; a group whose heads have
    several places becomes one for each, "GROUP @PLACE"."""
    groups: dict[str, list[Head]] = {}
    places: dict[str, Position] = {}
    for group, heads in given.items():
        parts = [_parsed(_text(head)) for head in heads]
        several = len({place for _, place in parts}) > 1
        groups.setdefault(group, [])
        for head, place in parts:
            name = f"{group} @{place}" if several and place is not None else group
            groups.setdefault(name, []).append(head)
            if place is not None:
                places[name] = place
    return groups, places


def _text(head: Any) -> str:
    """A head as "LAYER.HEAD", with its place where it has one."""
    if isinstance(head, str) and HEAD.fullmatch(head):
        return head
    if isinstance(head, list | tuple) and len(head) == 2 and all(type(n) is int for n in head):
        return f"{head[0]}.{head[1]}"
    raise WorkbenchError(
        f"Expected a head as LAYER.HEAD or LAYER.HEAD@PLACE, such as 9.6@-1, found {head!r}."
    )


def _parsed(text: str) -> tuple[Head, Position]:
    found = HEAD.fullmatch(text)
    assert found is not None  # of `_text`
    layer, head, place = found.groups()
    return (int(layer), int(head)), position_of(place)


def _short(text: str) -> Head | str:
    """A head without a place as (layer, head)."""
    head, place = _parsed(text)
    return head if place is None else text
