"""Paths whose receiver looks from another token than the one its sender stands at, on models whose
paths are known by construction."""

from __future__ import annotations

from dataclasses import replace

import pytest

import workbench as wb
from tests.patching.conftest import MOVER, READER, copier, paired, said, value
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.pairs import pairs
from workbench.patching.circuit_discovery import Group, discover
from workbench.patching.sweep import Side
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import rows

# The labels are exchanged in the partner; the answer is worth 10 logits, and its foil as many.
COPY = (
    "a = red , b = [[value|blue]] , [[ask|ask]] b", "b = red , a = [[value|blue]] , [[ask|ask]] b",
    " blue", " red",
)  # fmt: skip
STEPS = (
    "a = [[middle|D]] , c = E , d = [[value|red]] , e = blue , [[ask|ask]] a",
    "c = [[middle|D]] , a = E , e = [[value|red]] , d = blue , [[ask|ask]] a", " red", " blue",
)  # fmt: skip
HELD = (
    "A holds red , B holds [[value|blue]] , [[ask|box]] b",
    "B holds red , A holds [[value|blue]] , [[ask|box]] b", " blue", " red",
)  # fmt: skip
BEFORE, FETCH, FIRST, SECOND, TRANSMIT, VALUE = (
    head.place for head in (of.BEFORE, of.FETCH, of.FIRST, of.SECOND, of.TRANSMIT, of.VALUE)
)
# What is asked, sender, its place, receiver, part -> where it looks from, and the change there.
PATHS = {
    "copy-learned": [
        (COPY, BEFORE, "value", FETCH, "k", -10.0),
        (COPY, BEFORE, "value", FETCH, "v", 0.0),
        (COPY, BEFORE, "ask", FETCH, "k", 0.0),
    ],
    "two-steps-learned": [
        (STEPS, BEFORE, "middle", FIRST, "k", -10.0),
        (STEPS, BEFORE, "value", SECOND, "k", -10.0),
        (STEPS, BEFORE, "middle", SECOND, "k", 0.0),
        (STEPS, BEFORE, "value", FIRST, "k", 0.0),
        (STEPS, FIRST, -1, SECOND, "q", -20.0),
        (STEPS, FIRST, "middle", SECOND, "q", 0.0),
    ],
    "entities-learned": [
        (HELD, TRANSMIT, -1, VALUE, "q", -20.0),
        (HELD, TRANSMIT, "value", VALUE, "q", 0.0),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    known = pairs(tmp_path_factory.mktemp("compiled"), [*PATHS])
    return {name: wb.load_pair(one.base, one.tuned) for name, one in known.items()}


@pytest.mark.parametrize("name", PATHS)
def test_paths_of_a_program_lead_where_it_says_and_nowhere_else(compiled, name):
    """From the last token alone, as the program does; from another one there is no path at all."""
    for (clean, dirty, answer, foil), sender, at, receiver, part, expected in PATHS[name]:
        asked, turned = (
            PromptSet("asked", (Prompt("0", text, answer, (foil,)),)) for text in (clean, dirty)
        )
        places = {None: expected, -1: expected, "ask": 0.0, "value": 0.0} if expected else {None: 0}
        for looks, wanted in places.items():
            found = wb.patching.path(
                compiled[name], asked, corrupted=turned, sides=("tuned",), senders=[sender],
                receivers=[receiver], part=part, position=at, receiver_position=looks,
            )  # fmt: skip
            about = (name, sender, at, receiver, part, looks)
            made = value(found, "logit_change").item()
            assert made == pytest.approx(wanted, abs=5e-3 if wanted else 1e-6), about


def test_a_circuit_is_looked_for_from_where_its_receivers_look():
    """The mover answers from the last token: its reader is found from there, and from no other."""
    made, words = copier(4), shipped.tokenizer()
    sides = [Side(made, rows(words, one, answers=True)) for one in (said(), said(turn=1))]
    for looks, found in ((-1, [READER]), (0, [])):
        groups = (Group("mover", "logits"), Group("reader", "mover", "v", None, looks))
        assert discover(*sides, words, groups=groups)[0] == {"mover": [MOVER], "reader": found}
    gone = (groups[0], replace(groups[1], receiver_position="nowhere"))
    assert discover(*sides, words, groups=gone)[0] == {"mover": [MOVER], "reader": []}


def test_where_a_receiver_looks_from_is_a_place_of_the_prompt(tmp_path):
    pair = paired(copier(), copier(), tmp_path)
    known = {"corrupted": said(turn=1), "sides": ("base",)}
    for looks in ("2..3<-1..2", "2..3:mean"):
        with pytest.raises(WorkbenchError, match="receiver_position to be tokens of the prompt"):
            wb.patching.path(pair, said(), receivers=[MOVER], receiver_position=looks, **known)
    with pytest.raises(WorkbenchError, match="Give receivers, or leave it out"):
        wb.patching.path(pair, said(), receiver_position=-1, **known)
    with pytest.raises(WorkbenchError, match="no span 'subject'"):
        wb.patching.path(pair, said(), receivers=[MOVER], receiver_position="subject:last", **known)
    with pytest.raises(WorkbenchError, match="lies outside a prompt"):
        wb.patching.path(pair, said(), receivers=[MOVER], receiver_position=99, **known)
