"""Every number that an analysis gives has a test of its value, which is there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.calls import CALLS, Asked, write_pair
from tests.truths import FORMULAS, TRUTHS, named
from workbench.results import Result
from workbench.study.catalogue import METHODS

ROOT = Path(__file__).parent
KEPT = sorted((ROOT.parent / "figures").glob("*/results/*/result.json"))


@cache
def names_in(file: str) -> set[str]:
    return {
        node.name
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("key", CALLS)
def test_every_metric_of_an_analysis_has_its_test(key: str, pair):
    found = CALLS[key](pair, Asked(12), batch_size=4)
    metrics = sorted(found.table["metric"].unique())
    assert [one for one in metrics if not [*named(found.analysis, one)]] == []


def test_every_metric_that_is_kept_has_its_test():
    """Of the results under figures/: of analyses that a cheap call does not reach, too."""
    gone = set()
    for file in KEPT:
        made = Result.load(file.parent)
        gone |= {
            (made.analysis, one)
            for one in made.table["metric"].unique()
            if not [*named(made.analysis, one)]
        }
    assert gone == set()


def test_every_named_test_is_there():
    tests = {test for own in TRUTHS.values() for test in own} | FORMULAS
    lost = [one for one in tests if one.split("::")[1] not in names_in(one.split("::")[0])]
    assert lost == []
    assert {*TRUTHS} == {method.key for method in METHODS} | {
        "compare.equivalence",
        "compare.pareto",
        "compare.robustness",
        "truth.scoreboard",
    }
