"""A report explains its words, as the documentation does."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.reports import glossary


def test_every_entry_of_the_file_is_read_as_plain_text():
    text = (Path(glossary.__file__).parent / "glossary.md").read_text(encoding="utf-8")
    found = glossary.glossary()
    assert [word for word, _ in found] == re.findall(r"^\*\*(.+)\*\*$", text, re.M)
    for _, meaning in found:
        assert meaning.endswith(".")
        assert not re.search(r"[*`\]]|\.md|  ", meaning)


def test_what_the_first_screen_speaks_of_is_explained():
    words = {word for word, _ in glossary.glossary()}
    assert {"Intruder dimension", "TuCo", "Graft", "Null", "Arm", "Effective rank"} <= words
