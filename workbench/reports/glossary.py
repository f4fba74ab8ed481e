"""The words of a report, in two lines each, by glossary.md, which the documentation shows, too."""

from __future__ import annotations

import re
from pathlib import Path

ENTRY = re.compile(r"^\*\*(.+?)\*\*\n:\s+((?:.+\n?(?:    .+\n?)*))", re.MULTILINE)
SEE = re.compile(r"\s*See\s+\[[^]]*\]\([^)]*\)\.")  # a page that a report has not


def glossary() -> list[tuple[str, str]]:
    """(word, what it means) as plain text, in the order of the file."""
    text = (Path(__file__).parent / "glossary.md").read_text(encoding="utf-8")
    found = []
    for word, meaning in ENTRY.findall(text):
        plain = SEE.sub("", " ".join(meaning.split()))
        found.append((word, re.sub(r"[*`]", "", plain)))
    return found
