"""What is said of the shipped members is borne out by their answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workbench.lab.organism import behaviour, holds
from workbench.lab.shipped_organisms import shipped_organisms

FAMILY = Path(__file__).parents[2] / "data" / "family"


@pytest.fixture(scope="module")
def found():
    """Thirty prompts of each, whose answers are read."""
    few = {}
    for one in shipped_organisms(FAMILY):
        own = replace(one, known=one.known.few(30), kept=one.kept[:30])
        few[one.known.name] = (own, behaviour(own))
    return few


def test_both_answer_as_is_said(found):
    assert {*found} == {"shipped-suppressed", "shipped-unlearned"}
    assert all(holds(one, answers) for one, answers in found.values())


def test_they_are_about_what_is_lost_and_say_what_is_not_known(found):
    suppressed, unlearned = found["shipped-suppressed"][0], found["shipped-unlearned"][0]
    assert suppressed.known.verdict == "suppressed"
    assert len(suppressed.changed) == len(suppressed.known.prompts)
    assert suppressed.known.corrupted is not None
    assert unlearned.known.verdict == ""  # how deep it goes is not known
    assert 0 < len(unlearned.changed) < len(unlearned.known.prompts)


def test_the_other_way_round_it_does_not_hold(found):
    """A negative control: the base is no member that lost anything."""
    one, _ = found["shipped-suppressed"]
    back = replace(one, known=replace(one.known, tuned=one.known.base))
    assert not holds(back, behaviour(back))
