"""Prompts of known circuits: the answer follows from the text, by a reading of our own."""

from __future__ import annotations

import re

import pytest

import workbench as wb
from workbench.tasks.known_circuits import NAMES


@pytest.mark.parametrize("order", [None, "ABBA", "BABA"])
def test_the_answer_is_the_name_that_is_said_once(order):
    made = wb.tasks.indirect_object(80, seed=1, order=order)
    assert len({prompt.text for prompt in made}) == 80
    for prompt in made:
        said = [word for word in re.findall(r"[A-Z][a-z]+", prompt.prompt) if word in NAMES]
        assert len(said) == 3
        (once,) = [name for name in said if said.count(name) == 1]
        assert prompt.target == f" {once}"
        assert prompt.foils == (f" {next(n for n in said if said.count(n) == 2)}",)
        places = {name: prompt.prompt[slice(*span)] for name, span in prompt.spans.items()}
        giver = prompt.foils[0].strip()
        assert places == {"IO": once, "S1": giver, "S2": giver, "end": "to"}
        assert prompt.spans["S1"] < prompt.spans["S2"]
        first = prompt.spans["IO"] < prompt.spans["S1"]
        assert prompt.tags["order"] == ("ABBA" if first else "BABA")
        assert order in (None, prompt.tags["order"])


def test_every_target_is_later_and_every_foil_earlier():
    made = wb.tasks.greater_than(120, seed=2)
    for prompt in made:
        century, year, again = re.fullmatch(
            r"The \w+ lasted from the year (\d\d)(\d\d) to the year (\d\d)", prompt.prompt
        ).groups()  # pyright: ignore[reportOptionalMemberAccess]
        assert century == again
        assert int(prompt.target) > int(year)
        assert prompt.foils
        assert all(int(foil) < int(year) for foil in prompt.foils)
        assert all(len(one) == 2 for one in (prompt.target, *prompt.foils))
        places = {name: prompt.prompt[slice(*span)] for name, span in prompt.spans.items()}
        assert places == {"event": prompt.tags["event"], "start": year, "end": century}


@pytest.mark.parametrize("make", [wb.tasks.indirect_object, wb.tasks.greater_than])
def test_a_seed_gives_the_same_prompts_and_splits_share_none(make):
    assert make(20, seed=3).prompts == make(20, seed=3).prompts
    assert make(20, seed=3).prompts != make(20, seed=4).prompts
    splits = [{p.text for p in make(40, seed=s, split=name)} for s, name in
              enumerate(("train", "test"))]  # fmt: skip
    assert not splits[0] & splits[1]


def test_another_order_is_refused():
    with pytest.raises(wb.WorkbenchError, match='"ABBA" or "BABA"'):
        wb.tasks.indirect_object(4, order="AABB")
