"""What a verb prints below its headline."""

from __future__ import annotations

import pandas as pd

from workbench.cli.printing import print_groups
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
