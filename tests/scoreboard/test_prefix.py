"""A pair whose tuned side is a prefix: who is asked about it, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.lab.compiled import pairs
from workbench.lab.known import Known
from workbench.lab.prefixes import numbers_of, prefix_of
from workbench.results.result import Result
from workbench.scoreboard import Method, ours, outside
from workbench.scoreboard.board import unlearned

KEY = "patching.prefix"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return pairs(tmp_path_factory.mktemp("compiled"), ["facts-prefix"])["facts-prefix"]


@pytest.fixture(scope="module")
def board(known: Known) -> Result:
    return wb.truth(truths=[known], phantoms=1)


def test_only_those_that_need_a_prefix_are_asked_about_one(known: Known, tmp_path: Path):
    every = (*ours.METHODS, *outside.METHODS)
    assert [one.name for one in every if one.asked(known)] == [KEY]
    assert not Method("mine", lambda base, tuned, prompts: {}).asked(known)
    needs = Method("mine", lambda base, tuned, prompts: {}, needs=("prefixed head",))
    assert needs.asked(known)
    other = pairs(tmp_path, ["facts-rank-3-llama"])["facts-rank-3-llama"]
    (own,) = (one for one in every if one.name == KEY)
    assert not own.asked(other)


def test_the_head_is_found_above_all_others_and_above_the_phantom(board: Result):
    assert {*board.table["method"]} == {KEY}
    assert not (board.table["metric"] == "refused").any()
    rows = board.table[board.table["truth"] == "all"].set_index("metric")["value"]
    assert rows["auroc"] == rows["average_precision"] == rows["found"] == 1.0
    assert rows["beyond_phantom"] == 1.0
    tops = board.table[board.table["metric"] == "top"].set_index("kind")["value"]
    assert tops["compiled"] > 0.99
    assert tops["phantom"] < 0.5


def test_its_phantom_has_the_same_norms_and_nothing_to_be_found(known: Known, tmp_path: Path):
    made = unlearned(known, tmp_path, 0)
    assert made.places == {"prefixed head": frozenset()}
    found = []
    for one in (known, made):
        pair = wb.load_pair(one.base, one.tuned)
        assert not pair.same
        own = prefix_of(pair)
        assert own is not None
        found.append(numbers_of(own))
    first, second = (numbers.norm(dim=-1) for numbers in found)
    torch.testing.assert_close(second, first, rtol=1e-5, atol=0)
    # Nor do norms tell which head it is.
    for part in (0, 1):
        torch.testing.assert_close(first[:, part], first[:1, part, :1].expand_as(first[:, part]))
    assert float(torch.cosine_similarity(*found, dim=-1).abs().max()) < 0.7
