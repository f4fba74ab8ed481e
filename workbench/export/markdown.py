"""Anyone's text in Markdown, as text: nothing of it is markup, wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.errors import visible

# Of Markdown and HTML; of an address, which would become a link; of a list, a line or a heading.
MARKUP = re.compile(
    r"[\\`*_{}\[\]<>#|~$&]|(?<=:)/(?=/)|(?<=www)\.|^[-+=](?=\W|$)|(?<=\d)[.)](?=\s|$)"
)


def line(text: Any) -> str:
    """Any text on one line, without characters that a terminal or a page would obey."""
    return " ".join(visible(str(text)).split())


def plain(text: Any) -> str:
    """Any text as one line in which nothing is markup: what could be stands as its number, which
    Markdown and HTML show and never obey."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", line(text))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines)


def listed(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return "\n".join(f"- {plain(one)}" for one in lines)


def block(lines: Sequence[str]) -> str:
    """Lines of a terminal, fenced by more backticks than any of them holds."""
    text = "\n".join(map(line, lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
