"""A record of what is true of a pair refuses what no method could be held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.errors import WorkbenchError
from workbench.lab.known import Known
from workbench.tasks import Prompt, PromptSet

PROMPTS = PromptSet("two", (Prompt("a", "x", " y"), Prompt("b", "x x", " y")))


def known(**about: Any) -> Known:
    given: dict[str, Any] = {"name": "one", "kind": "compiled", "prompts": PROMPTS} | about
    return Known(base=Path("base"), tuned=Path("tuned"), **given)


def test_a_place_is_true_false_or_not_known():
    one = known(
        places={"head": {(1, 0)}, "layer": set()}, universe={"head": {(0, 0), (0, 1), (1, 0)}}
    )
    assert one.truth("head", (1, 0)) is True
    assert one.truth("head", (0, 1)) is False
    assert one.truth("head", (5, 5)) is None  # outside the universe
    assert one.truth("layer", (3,)) is False  # there are none, and any place may be asked
    assert one.truth("matrix", (0, "mlp.down_proj")) is None


def test_only_compiled_and_trained_pairs_learned_something():
    kinds = ("compiled", "trained", "phantom", "null")
    assert [known(kind=kind).learned for kind in kinds] == [True, True, False, False]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "guessed"}, "use one of compiled"),
        ({"verdict": "gone"}, "use one of kept"),
        ({"corrupted": PROMPTS[:1]}, "2 prompts and 1 corrupted"),
        ({"places": {"neuron": {(1, 2)}}}, "Unknown kind of place 'neuron'"),
        ({"places": {"head": {(1,)}}}, r"Expected \(layer, head\)"),
        ({"places": {"layer": {(1,)}}, "universe": {"layer": {(0,)}}}, "does not hold"),
    ],
)
def test_bad_records_are_refused_in_a_sentence(about: dict[str, Any], message: str):
    with pytest.raises(WorkbenchError, match=message):
        known(**about)


def test_a_few_prompts_keep_their_partners_and_what_is_true_of_them():
    prompts = PromptSet("ten", tuple(Prompt(str(i), f"x {i}", " y") for i in range(10)))
    other = PromptSet("others", tuple(Prompt(str(i), f"z {i}", " y") for i in range(10)))
    items = {(str(i),) for i in range(5)}
    one = known(
        prompts=prompts, corrupted=other, places={"item": items, "layer": {(1,)}},
        universe={"item": {(str(i),) for i in range(10)}},
    )  # fmt: skip
    few = one.few(4)
    assert [p.id for p in few.prompts] == ["0", "3", "6", "9"]
    assert few.corrupted is not None
    assert [p.prompt for p in few.corrupted] == ["z 0", "z 3", "z 6", "z 9"]
    assert few.places == {"item": {("0",), ("3",)}, "layer": {(1,)}}
    assert few.universe["item"] == {("0",), ("3",), ("6",), ("9",)}
    assert one.few(10) is one
