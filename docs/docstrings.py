"""Docstrings as Markdown. They are plain paragraphs in which "name: words." says what an argument
is: each of these becomes an item of a list, and nothing but `code` is read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Set

import griffe

ARXIV = re.compile(r"\b\d{4}\.\d{5}(?:v\d+)?\b")
CODE = re.compile(r"(`[^`\n]+(?:\n[^`\n]+)?`)")
NUMBERED = re.compile(r"\d+\. ")
# The end of a list: what is indented after it would be part of its last item.
END = "\n\n<!-- -->"
RETURNS = re.compile(r"(?<=[.;)])\s+(?=(?:Returns|Raises) )")


def readable(doc: str, names: Set[str] = frozenset()) -> str:
    """A docstring as Markdown. names: of the function's arguments."""
    blocks = re.split(r"\n\n+(?=\S)", doc.strip())
    return "\n\n".join(_block(block, names) for block in blocks)


def linked(text: str) -> str:
    """With every number of arXiv as a link."""
    return ARXIV.sub(lambda found: f"[{found[0]}](https://arxiv.org/abs/{found[0]})", text)


def _block(block: str, names: Set[str]) -> str:
    """A paragraph or a numbered list, and what is indented below it, which stays as it is typed."""
    if NUMBERED.match(block):  # the lines of an item go on with an indent
        text, _, code = block.partition("\n\n")
        text = _plain(text)
    else:
        found = re.search(r"^(?: {4}|\s*$)", block, re.M)
        at = found.start() if found else len(block)
        code = block[at:].strip("\n")
        text = "\n\n".join(_listed(part, names) for part in RETURNS.split(block[:at].strip()))
    return f"{text}{END}\n\n{code}" if code else text


def _listed(text: str, names: Set[str]) -> str:
    """A paragraph, with an item for every "name: words" or "name, other: words" in it."""
    marks = [
        mark
        for mark in re.finditer(r"(?:^|(?<=[.;)]\s))(\w+(?:, \w+)*):\s", text)
        if set(mark[1].split(", ")) <= names
    ]
    if not marks:
        return _plain(text)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    head = _plain(text[: marks[0].start()].strip())
    items = [
        f"- {', '.join(f'`{name}`' for name in mark[1].split(', '))}: "
        + _plain(" ".join(text[mark.end() : end].split()))
        for mark, end in zip(marks, ends, strict=True)
    ]
    return "\n".join([*([head, ""] if head else []), *items])


def _plain(text: str) -> str:
    """Text in which nothing but `code` is markup, with arXiv's numbers as links."""
    return "".join(
        part if at % 2 else linked(re.sub(r"([\\*_\[\]#])", r"\\\1", part).replace("<", "&lt;"))
        for at, part in enumerate(CODE.split(text))
    )


class PlainDocstrings(griffe.Extension):
    """Every docstring of the workbench as `readable` gives it, before a page is made of it."""

    def on_function(self, *, func: griffe.Function, **kwargs: object) -> None:
        self._read(func, {one.name for one in func.parameters})

    def on_class(self, *, cls: griffe.Class, **kwargs: object) -> None:
        self._read(cls, {name for name, one in cls.members.items() if not one.is_alias})

    def on_module(self, *, mod: griffe.Module, **kwargs: object) -> None:
        self._read(mod, frozenset())

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: object) -> None:
        self._read(attr, frozenset())

    def _read(self, one: griffe.Object, names: Set[str]) -> None:
        if one.docstring:
            one.docstring.value = readable(one.docstring.value, names)
