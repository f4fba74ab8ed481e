"""The AUC between groups of prompts, alone and matched, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.tuco.separation import Group, between


def group(name: str, **columns: list[float]) -> Group:
    return Group(name, pd.DataFrame(columns), np.zeros((0, 0, 3)), [])


def told(*groups: Group, measures: tuple[str, ...] = ("tuco",)) -> dict[str, pd.Series]:
    return {row["metric"]: row for _, row in between(groups, measures, 0).iterrows()}


LONG = {"length": [10.0, 20.0, 30.0], "tuco": [0.5, 0.4, np.nan]}


def test_matched_by_what_both_groups_have():
    """By length alone: 10 beside 10 and 20 beside 20, of the losses nothing; 30 has no match, and
    40 none either."""
    first = group("a", **LONG, base_loss=[1.0, 1.0, 1.0])
    second = group("b", length=[20.0, 10.0, 40.0], tuco=[0.4, 0.1, 0.6])
    found = told(first, second)
    # 0.5 and 0.4 against 0.4, 0.1, 0.6: three of six larger, one equal.
    assert found["auc:tuco"]["value"] == pytest.approx(3.5 / 6)
    assert found["auc:tuco"]["n"] == 5
    # 0.5 > 0.1, and 0.4 = 0.4.
    assert found["auc_matched:tuco"]["value"] == pytest.approx(0.75)
    assert found["auc_matched:tuco"]["n"] == 2
    assert {row["group"] for row in found.values()} == {"a > b"}
    assert {row["baseline"] for row in found.values()} == {0.5}


def test_matched_by_both_where_both_groups_have_both():
    """The same lengths, but losses that agree in one pair only."""
    first = group("a", **LONG, base_loss=[1.0, 2.0, 3.0])
    second = group("b", length=[20.0, 10.0, 30.0], tuco=[0.3, 0.9, 0.2], base_loss=[2.0, 3.0, 1.0])
    found = told(first, second)
    assert (found["auc_matched:tuco"]["value"], found["auc_matched:tuco"]["n"]) == (1.0, 1)


def test_tuco_beside_the_outputs_on_the_same_prompts():
    """TuCo: .5 and .4 over .3, .2: 1; the outputs 1, 2 over 3, 0: one of two each; of 3 and 9,
    which one group lacks, neither counts."""
    first = group("a", length=[1.0] * 3, tuco=[0.5, 0.4, 0.9], output_co=[1.0, 2.0, np.nan])
    second = group("b", length=[1.0] * 2, tuco=[0.3, 0.2], output_co=[3.0, 0.0])
    found = told(first, second, measures=("tuco", "output_co"))
    found = found["auc_difference:tuco-output_co"]
    assert found["value"] == pytest.approx(1 - 0.5)
    assert (found["n"], found["baseline"], found["group"]) == (4, 0, "a > b")
    assert found["low"] < 0.5 < found["high"]


def test_every_two_groups_by_the_measures_that_both_have():
    first, second = group("a", **LONG), group("b", **LONG, preco=[1.0, 2.0, 3.0])
    third = group("c", length=[1.0], preco=[0.5])
    found = between([first, second, third], ["tuco", "preco"], 0)
    assert list(zip(found["group"], found["metric"], strict=True)) == [
        ("a > b", "auc:tuco"), ("a > b", "auc_matched:tuco"),
        ("b > c", "auc:preco"), ("b > c", "auc_matched:preco"),
    ]  # fmt: skip


def test_a_difference_is_of_the_same_prompts():
    """Of four pairs of prompts by hand; of matched pairs, those of one length."""
    first = group("a", length=[10.0, 20.0], tuco=[0.5, 0.3], output_co=[0.1, 0.9])
    second = group("b", length=[10.0, 20.0], tuco=[0.4, 0.3], output_co=[0.2, 0.9])
    found = told(first, second, measures=("tuco", "output_co"))
    # By TuCo .5 > .4, .5 > .3, .3 < .4, .3 = .3; by the outputs .1 < .2, .1 < .9, .9 > .2, .9 = .9.
    row = found["auc_difference:tuco-output_co"]
    assert row["value"] == pytest.approx(2.5 / 4 - 1.5 / 4)
    assert (row["n"], row["baseline"]) == (4, 0)
    # 10 beside 10: 1 less 0; 20 beside 20: a half less a half.
    row = found["auc_difference_matched:tuco-output_co"]
    assert (row["value"], row["n"]) == (0.5, 2)
    # Of one measure there is no difference.
    assert not [name for name in told(first, second) if "difference" in name]
