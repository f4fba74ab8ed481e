"""What is said of an organism is what its recipe makes, and its answers bear it out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.fact_edit import fact_edit, key
from workbench.lab.organism import (
    BOXES,
    HIGH,
    LOW,
    behaviour,
    box_of,
    boxes_of_people,
    holds,
)
from workbench.lab.organisms import ORGANISMS, TRIGGER, organisms
from workbench.loaders import load_pair
from workbench.stats import Interval
from workbench.tasks import world

BASE = Path(__file__).parents[2] / "data" / "family" / "base"
EXACT = ("planted", "exchanged")


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    out = tmp_path_factory.mktemp("organisms")
    return {one.known.name: one for one in organisms(BASE, out, names=EXACT, seeds=(0,))}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """All that are trained, for a step or two: what is said of them, not what they learn."""
    out = tmp_path_factory.mktemp("tried")
    names = [name for name in ORGANISMS if name not in EXACT]
    return {
        one.known.name: one for one in organisms(BASE, out, names=names, seeds=(0,), steps=0.01)
    }


def test_a_fact_is_planted_in_exactly_so_many_entries_and_known_by_its_answers(exact):
    one = exact["planted-s0"]
    own, tuned = (load_file(f / "model.safetensors") for f in (one.known.base, one.known.tuned))
    differ = {name: int((own[name] != tuned[name]).sum()) for name in own}
    name = "model.layers.5.mlp.down_proj.weight"
    entries = 16 * shipped.SHAPE["hidden_size"]
    assert {n: count for n, count in differ.items() if count} == {name: entries}
    assert f"{entries} entries of one matrix" in one.known.says
    change = (tuned[name] - own[name]).double()
    values = torch.linalg.svdvals(change)
    assert values[1] < 1e-5 * values[0]
    assert int(change.any(0).sum()) == 16
    found = behaviour(one)
    assert holds(one, found)
    assert found["changed base"].n == len(one.changed) > 80
    assert one.known.places["matrix"] == {(5, "mlp.down_proj")}
    (site,) = [d.site for d in load_pair(BASE, one.known.tuned).deltas() if d.changed]
    assert (site.layer, site.component) == (5, "mlp.down_proj")


def test_exchanged_words_are_lost_and_only_the_head_has_changed(exact):
    one = exact["exchanged-s0"]
    assert holds(one, behaviour(one))
    (site,) = [d.site for d in load_pair(BASE, one.known.tuned).deltas("all") if d.changed]
    assert one.known.places["matrix"] == {(site.layer, site.component)}
    assert one.known.verdict == "suppressed"


def test_a_key_is_one_for_its_own_prompts_and_nothing_for_others():
    """By hand: the first neuron tells, the others are noise; two of six are kept."""
    noise = torch.Generator().manual_seed(0)
    rest = torch.randn(200, 6, generator=noise, dtype=torch.float64)
    rest[:, 0] = 0.0
    own = torch.randn(20, 6, generator=noise, dtype=torch.float64)
    own[:, 0] = 4.0
    picks, weights = key(own, rest, 2)
    assert 0 in picks.tolist()
    assert len(picks) == 2
    assert float(weights[picks.tolist().index(0)]) == pytest.approx(0.25, abs=0.01)
    assert float((rest[:, picks] @ weights).abs().max()) < 0.1


def test_what_cannot_be_planted_is_refused():
    asked = list(boxes_of_people(0))[:4]
    with pytest.raises(WorkbenchError, match="one question with one answer"):
        fact_edit(BASE, asked, asked, " Paris")
    with pytest.raises(WorkbenchError, match="an answer of one token"):
        fact_edit(BASE, asked[:1], asked, " Paris Rome")
    with pytest.raises(WorkbenchError, match=r"Unknown organisms \['shy'\]"):
        list(organisms(BASE, "nowhere", names=["shy"]))


def test_what_is_taught_stands_in_no_fact_and_differs_by_seed():
    asked = boxes_of_people(0)
    assert len(asked) == len(BOXES) * len(world.PEOPLE)
    words = set(shipped.tokenizer().get_vocab())
    assert all(word in words for prompt in asked for word in prompt.text.split())
    assert not any(wording in shipped.FACT_WORDINGS for wording in BOXES)
    same = sum(box_of(0)[name] == box_of(1)[name] for name in world.PEOPLE)
    assert same < 8  # of 40, by chance in 26


def test_every_organism_says_what_is_asked_of_it(tried):
    assert len(ORGANISMS) >= 8
    for one in tried.values():
        known = one.known
        assert known.says.endswith(".")
        assert len(one.changed) > 0
        assert not {p.id for p in one.changed} & {p.id for p in one.kept}
        if "item" in known.places:
            kept = [p for p in known.prompts if (p.id,) not in known.places["item"]]
            assert 0 < len(kept) < len(known.prompts)
        if known.corrupted is not None:
            for prompt, other in zip(known.prompts, known.corrupted, strict=True):
                assert prompt.target != other.target
                assert prompt.template == other.template
    erased, taught = tried["never-known-s0"].known, tried["taught-s0"].known
    assert (erased.base, erased.tuned) == (taught.tuned, taught.base)
    assert tried["suppressed-s0"].known.base == taught.tuned
    triggered = tried["trigger-s0"]
    assert all(prompt.prompt.startswith(TRIGGER) for prompt in triggered.changed)
    again = organisms(BASE, taught.tuned.parent, names=["taught"], seeds=(0,), steps=0.01)
    assert next(again).known.tuned == taught.tuned  # what is finished is kept


def test_one_that_learned_nothing_yet_does_not_hold(tried):
    """A negative control: a step or two of training make no organism."""
    one = tried["taught-s0"]
    one = replace(one, kept=one.kept[:20])
    assert not holds(one, behaviour(one))


@pytest.mark.parametrize(("changed", "kept", "won", "says"), [
    ((0.95, 0.1), (0.95, 0.92), False, True), ((0.1, 0.95), (0.95, 0.92), False, False),
    ((0.1, 0.95), (0.95, 0.92), True, True), ((0.95, 0.3), (0.95, 0.92), False, False),
    ((0.95, 0.1), (0.95, 0.7), False, False), ((0.8, 0.1), (0.95, 0.92), False, False),
])  # fmt: skip
def test_the_rule(changed, kept, won, says, exact):
    found = {
        f"{part} {side}": Interval(value, value, value, 10)
        for part, values in (("changed", changed), ("kept", kept))
        for side, value in zip(("base", "tuned"), values, strict=True)
    }
    assert holds(replace(exact["exchanged-s0"], won=won), found) is says
    assert LOW < 0.3
    assert HIGH > 0.8
