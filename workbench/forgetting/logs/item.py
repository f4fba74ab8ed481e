"""One item as a log tells it, and the log it is from; the same for every harness."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.files.reading import is_number

MOST_TAGS = 40  # of an item
LONGEST_TAG = 100  # characters; what is longer is a text and no group's name
SHOWN = 500  # characters that are kept of a text
WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class Score:
    """What one metric says of one item. value: NaN where it was not scored. chance: what guessing
    gives, NaN where there are no choices. said: the answer that was judged, "" where it is not
    known."""

    value: float
    chance: float = math.nan
    said: str = ""


@dataclass(frozen=True)
class Item:
    """content: digests of the question and its right answer, each of which tells it alone. prompt:
    a digest of how it was put, examples and chat template included, "" where it is not known.
    scores: by metric, in the log's order. tags: its fields of one short value. asked: the end of
    the prompt. expected: the right answer."""

    content: frozenset[str]
    prompt: str
    scores: Mapping[str, Score]
    tags: Mapping[str, str] = field(default_factory=dict)
    asked: str = ""
    expected: str = ""


@dataclass(frozen=True)
class Task:
    """name: "" where the log does not say. filter: how answers were taken from what was written,
    where a log may hold several. items: by id. settings: what it was measured with, as text, for
    what limits a comparison."""

    name: str
    items: Mapping[str, Item]
    filter: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """What one side's files say. harness: "lm-eval" or "inspect-ai". model: what the log calls it,
    "" where it does not. fingerprint: sha256 of the files' content. notes: what it says of itself
    that limits reading."""

    path: Path
    harness: str
    model: str
    fingerprint: str
    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()


def number_of(value: Any) -> float | None:
    """A metric's value as a number; None for what is none, as a list to be put together later."""
    if isinstance(value, str):
        if value.strip().lower() in WORDS:
            return WORDS[value.strip().lower()]
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and math.isnan(value):
        return math.nan
    return float(value) if is_number(value) else None


def is_id(value: Any) -> bool:
    """Whether a value from JSON can tell an item from others: a whole number or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def tags_of(fields: Any) -> dict[str, str]:
    """The fields of an object that name a group: short texts, whole numbers, true and false."""
    found: dict[str, str] = {}
    for name, value in fields.items() if isinstance(fields, Mapping) else ():
        plain = isinstance(value, str | bool) or (isinstance(value, int) and is_number(value))
        text = str(value).strip() if plain else ""
        if text and len(text) <= LONGEST_TAG >= len(name) and len(found) < MOST_TAGS:
            found[name] = text
    return found


def digest(value: Any) -> str:
    """sha256 of a value from JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def ending(text: str) -> str:
    """The end of a text, where it is long."""
    return text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"


def beginning(text: str) -> str:
    """The beginning of a text, where it is long."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def told(value: Any) -> str:
    """A setting as text; "" where it is not there."""
    if value in (None, "", {}, []):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LONGEST_TAG else f"{text[:LONGEST_TAG]}..."
