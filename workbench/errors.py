"""The one exception a user should ever meet: bad input, said in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

LONGEST = 1500  # characters of a message; more of it would be somebody's data

# What moves a cursor, ends a line, turns the direction of writing or is no character at all.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class WorkbenchError(ValueError):
    """Bad input. The message is one sentence: what was expected, what was found, what to do.

    Names from files stand in it; whatever they hold, it is one line of at most LONGEST characters.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(visible(message).split("\n"))
        if len(line) > LONGEST:
            half = LONGEST // 2
            line = f"{line[:half]} ... {line[-half:]}"
        super().__init__(line)


def reason(error: Exception, most: int = 300) -> str:
    """What a library said, on one line of at most `most` characters; its kind where it is mute."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most].rstrip(" .:;")


@contextlib.contextmanager
def unpanicked() -> Iterator[None]:
    """A block in which what a library written in Rust panics with, which is no Exception and would
    pass by whatever keeps one failure from taking others along, is raised as a WorkbenchError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise WorkbenchError(
            f"A library gave up in the middle ({' '.join(str(error).split())[:300]}); one of the "
            "files or texts it read, a tokenizer's most likely, is not what it expects."
        ) from error


def visible(text: str) -> str:
    """`text` with every character that a terminal or a page would obey written as its code.

    Newlines and tabs stay; letters of every script and emoji are untouched.
    """
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def some(names: list[str], most: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
