"""What a verb prints fits the terminal; what stands below its headline."""

from __future__ import annotations

import io
import re
import sys

import pandas as pd
import pytest
from rich.console import Console

from workbench.cli.printing import print_groups, say, table_of
from workbench.results.result import Provenance, Result


def test_every_group_has_a_line_of_each_task(capsys):
    rows = [
        ("mmlu", "score", None, 0.5, 0.4, 0.6, 40),
        ("mmlu", "group_score_change", "law", -0.25, -0.5, 0.0, 20),
        ("mmlu", "group_score_change", "chemistry", 0.125, 0.0, 0.3, 20),
        ("chats", "group_score_change", "law", 0.0, float("nan"), float("nan"), 1),
    ]
    names = ["task", "metric", "group", "value", "low", "high", "n"]
    table = pd.DataFrame(rows, columns=pd.Index(names)).assign(member="one")
    made = Result("forgetting.retention", table, Provenance({}, {}, {"by": "subject"}))
    print_groups(made)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "mmlu: change of the score by subject",
        "  law        -0.25 [-0.50, +0.00], n = 20",
        "  chemistry  +0.12 [+0.00, +0.30], n = 20",
        "",
        "chats: change of the score by subject",
        "  law  +0.00, n = 1",
    ]


def test_a_result_without_groups_says_nothing_of_them(capsys):
    table = pd.DataFrame({"member": ["one"], "metric": ["rank"], "value": [1.0]})
    print_groups(Result("spectral.delta_spectrum", table, Provenance({}, {})))
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LINE = (
    "score 0.9583 to 0.5833 [0.3333, 0.8333] (lost 16.7%, n = 12), pre-training loss +1.016 "
    "[+0.874, +1.163] nats, 20,961 MiB at most; 36 of 420 vectors."
)
PARTS = ("[0.3333, 0.8333]", "[+0.874, +1.163]", "n = 12", "20,961 MiB", "36 of 420")


@pytest.mark.parametrize("width", [30, 60, 80, 140])
def test_a_line_breaks_between_words_and_in_no_interval(width: int, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    say(LINE, "    ")
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert (len(lines) == 1) == (len(LINE) <= width - 4)
    assert " ".join(line.strip() for line in lines) == LINE
    for part in PARTS:
        assert any(part in line for line in lines), part


def test_where_no_terminal_is_a_line_stays_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    say(LINE, "    ")
    assert capsys.readouterr().out == f"{LINE}\n"


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_number_and_no_name_of_a_table_is_cut(width: int):
    table = pd.DataFrame(
        {
            "member": ["lora-r4", "full"], "analysis": ["spectral.delta_spectrum"] * 2,
            "matrices": [42, 42], "peak_MiB": [20961, 18], "minutes": [123.4, 0.1],
        }
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width).print(table_of(table, width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [*map(str, table.to_numpy().ravel()), *table.columns]
    found = re.split(r"\s+", out.getvalue())
    assert all(word in found for word in words)
