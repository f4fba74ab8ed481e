"""How far has it come: a line every half minute where no terminal is, and --quiet is quiet."""

from __future__ import annotations

import logging
import re

import pytest

from tests.terminal import workbench
from workbench import progress as module
from workbench.log import PROGRESS, log, quiet, say
from workbench.progress import progress


@pytest.fixture(autouse=True)
def as_before():
    yield
    say(logging.INFO)


def test_short_work_says_nothing(capsys):
    assert list(progress(range(5), desc="short")) == [0, 1, 2, 3, 4]
    with progress(total=3, desc="short") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_long_work_says_a_line_each_time(capsys, monkeypatch):
    """Here every step takes longer than what half a minute stands for; also inside `quiet`."""
    monkeypatch.setattr(module, "EVERY", 0.0)
    with quiet():
        for _ in progress(range(4), desc="pair: texts"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("pair: texts: ") for line in lines)
    assert any(re.fullmatch(r"pair: texts: 2 of 4, about [\d:]+ left", line) for line in lines)
    say(logging.WARNING)
    list(progress(range(4), desc="pair: texts"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("option", "level"), [("--quiet", 30), ("--verbose", 10)])
def test_an_option_says_how_much_is_said(option: str, level: int):
    workbench(option, "check", "no", "such")
    assert log.level == level
    assert PROGRESS.level == max(level, 20)
