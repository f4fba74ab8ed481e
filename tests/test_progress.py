"""How far has it come: a line every half minute where no terminal is, and --quiet is quiet."""

from __future__ import annotations

import logging
import re
import time
from types import SimpleNamespace

import pytest

from tests.terminal import workbench
from workbench import progress as module
from workbench.log import PROGRESS, log, quiet, say
from workbench.progress import heartbeat, progress


@pytest.fixture(autouse=True)
def as_before():
    yield
    say(logging.INFO)


def test_short_work_says_nothing(capsys):
    assert list(progress(range(5), desc="short")) == [0, 1, 2, 3, 4]
    with progress(total=3, desc="short") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_bar_is_drawn_where_a_kernel_runs_and_not_where_a_library_imports_one(monkeypatch):
    import ipykernel  # noqa: F401 - as lm-eval's and other libraries do
    import IPython

    assert not module._interactive()
    kernel = SimpleNamespace(config={"IPKernelApp": {"connection_file": "kernel.json"}})
    monkeypatch.setattr(IPython, "get_ipython", lambda: kernel)
    assert module._interactive()
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(config={}))
    assert not module._interactive()  # a shell in a terminal that is none here


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


def said(capsys, at_least: int) -> list[str]:
    """The lines of the log, as soon as there are so many."""
    lines: list[str] = []
    until = time.monotonic() + 30
    while len(lines) < at_least and time.monotonic() < until:
        time.sleep(0.01)
        lines += capsys.readouterr().err.splitlines()
    return lines


def test_a_step_that_takes_long_is_told_of_while_it_runs(capsys, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.0)
    with heartbeat("outer"), heartbeat("inner"):
        assert all(re.fullmatch(r"outer: [\d:]+ so far", line) for line in said(capsys, 2))
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_bar_is_told_of_as_far_as_it_is(capsys, monkeypatch):
    """The one that was begun first, though nobody has drawn it since its last step."""
    monkeypatch.setattr(module, "EVERY", 0.0)
    with heartbeat("all"), progress(total=7, desc="outer") as bar, progress(total=3, desc="inner"):
        bar.update(2)
        capsys.readouterr()
        assert {line.partition(",")[0] for line in said(capsys, 2)} == {"outer: 2 of 7"}


def test_a_bar_counts_every_step_also_between_two_lines():
    bar = progress(range(5), desc="texts")
    seen = [bar.n for _ in bar]
    assert seen == [0, 1, 2, 3, 4]
    assert bar.n == 5


def test_quiet_says_nothing_of_what_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.0)
    say(logging.WARNING)
    with heartbeat("all"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("option", "level"), [("--quiet", 30), ("--verbose", 10)])
def test_an_option_says_how_much_is_said(option: str, level: int):
    workbench(option, "check", "no", "such")
    assert log.level == level
    assert PROGRESS.level == max(level, 20)
