"""Paths whose receiver looks from another token than the one its sender stands at, and paths from
and to MLPs and the embedding, on models whose paths are known by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.patching.conftest import MOVER, READER, boxes, copier, model, paired, said, value
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.pairs import pairs
from workbench.models import Layout, Site
from workbench.patching.circuit_discovery import Group, discover
from workbench.patching.edges import EMBEDDING
from workbench.patching.path_effects import effects
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
DENIED = (
    "a = [[value|yes]] , b = no , not [[ask|a]]", "a = [[value|no]] , b = yes , not [[ask|a]]",
    " no", " yes",
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


# The label that is asked for is found by its head, and the MLP behind turns round what was found.
ENDS = [
    ("embedding", "value", [of.FOUND.place], "v", -20.0),
    ("embedding", "value", [of.FOUND.place], "k", 0.0),
    ("embedding", "value", ["2.mlp"], "v", 0.0),
    ("embedding", -1, "logits", "v", 0.0),
    (of.FOUND.place, -1, ["2.mlp"], "v", -20.0),
    (of.FOUND.place, -1, ["1.mlp", "2.mlp"], "v", -20.0),
    (of.FOUND.place, -1, "logits", "v", -20.0),
    (of.PAST.place, -1, ["2.mlp"], "v", 0.0),
    ("2.mlp", -1, "logits", "v", -20.0),
    ("1.mlp", -1, "logits", "v", 0.0),
    ("1.mlp", -1, ["2.mlp"], "v", 0.0),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    known = pairs(tmp_path_factory.mktemp("compiled"), [*PATHS, "negation-learned"])
    return {name: wb.load_pair(one.base, one.tuned) for name, one in known.items()}


def single(clean: str, dirty: str, answer: str, foil: str) -> list[PromptSet]:
    texts = (clean, dirty)
    return [PromptSet("asked", (Prompt("0", text, answer, (foil,)),)) for text in texts]


@pytest.mark.parametrize(("sender", "at", "receivers", "part", "expected"), ENDS)
def test_paths_from_and_to_mlps_and_the_embedding(compiled, sender, at, receivers, part, expected):
    """A block's end that is no part of the program sends nothing; no path leads past the head."""
    asked, turned = single(*DENIED)
    found = wb.patching.path(
        compiled["negation-learned"], asked, corrupted=turned, sides=("tuned",), senders=[sender],
        receivers=receivers, part=part, position=at,
    )  # fmt: skip
    row = found.table[(found.table["metric"] == "logit_change") & (found.table["arm"] == "patch")]
    assert row["value"].item() == pytest.approx(expected, abs=5e-3 if expected else 1e-5)
    named = row["component"].item(), row["layer"].item(), row["head"].item()
    if sender == "embedding":
        assert (named[0], pd.isna(named[1]), pd.isna(named[2])) == ("embedding", True, True)
    elif isinstance(sender, str):
        assert (*named[:2], pd.isna(named[2])) == ("mlp", int(sender[0]), True)
    else:
        assert named == ("head", *sender)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma2", "olmo2"])
def test_paths_to_an_mlp_in_every_kind_of_block(kind):
    """By whole runs, at all tokens: attention and MLP side by side, and norms behind them too."""
    made, words, turn = model(kind), shipped.tokenizer(), boxes(4, order="object first")
    clean, dirty = (
        rows(words, own, answers=True) for own in (turn, wb.tasks.corrupt(turn, 0, tokenizer=words))
    )
    layout, into = Layout(made), Site("mlp_out", 1)
    senders = {"0.1": Site("z", 0, 1), "0.mlp": Site("mlp_out", 0), "embedding": EMBEDDING}
    senders |= {} if layout.parallel else {"1.3": Site("z", 1, 3)}
    known = {"receivers": ["1.mlp"], "position": None, "shuffled": False}
    sides = Side(made, clean), Side(made, dirty)
    found = effects(*sides, words, senders=[*senders], **known).values["patch", "logit_change"]
    whole = [Site("z", layer) for layer in range(layout.layers)]

    def run(row, write=(), read=()):
        ids = {"input_ids": torch.tensor([row.fed])}
        made_of = wb.models.run(made, ids, read=read, write=dict(write))
        last = made_of.logits[0, -1]
        return float(last[row.answer[0]] - last[list(row.foils)].max()), made_of.captured

    for sender, expected in zip(senders.values(), found, strict=True):
        for i, (row, other) in enumerate(zip(clean, dirty, strict=True)):
            plain, seen = run(row, read=[*whole, into])
            _, away = run(other, read=[sender])
            first = sender.layer + (sender != EMBEDDING)
            held = {z: seen[z] for z in whole[first:]} | {sender: away[sender]}
            _, received = run(row, held, [into])
            after, _ = run(row, {into: received[into]})
            assert after - plain == pytest.approx(float(expected[i]), abs=2e-4), (sender, i)
        assert np.abs(expected).max() > 1e-3
    if layout.parallel:  # such a head and that MLP read the same stream
        with pytest.raises(WorkbenchError, match=r"'1\.3' is not before these receivers"):
            effects(*sides, words, senders=["1.3"], **known)


def test_heads_that_share_a_key_look_from_where_the_named_one_does(tmp_path):
    pair = paired(model(), model(seed=1), tmp_path)  # four heads, two of keys and values
    known = {"senders": ["0.1", "0.2", "embedding"], "sides": ("base",), "position": "query box"}

    def change(receivers, **more):
        return value(
            wb.patching.path(pair, boxes(4), receivers=receivers, **known, **more), "logit_change"
        )

    own = change(["1.2@-1"])
    assert torch.equal(own, change([(1, 2)], receiver_position=-1))
    assert torch.equal(own, change(["1.2@-1", "1.3@-1"]))
    everywhere = change([(1, 2)])
    assert not torch.allclose(own, everywhere, atol=1e-5)
    # Of two with places of their own each keeps it, and one without any looks from everywhere.
    assert not torch.allclose(change(["1.2@-1", "1.3@query box"]), own, atol=1e-5)
    assert not torch.allclose(change(["1.2@-1", "1.3"]), own, atol=1e-5)


def test_each_receiver_may_look_from_a_place_of_its_own(compiled):
    """Two heads at once: what reaches each from its own place, and what reaches none elsewhere."""
    pair, (asked, turned) = compiled["two-steps-learned"], single(*STEPS)
    (one, two), known = (FIRST, SECOND), {"corrupted": turned, "sides": ("tuned",), "part": "k"}

    def change(at, first: str, second: str, **more) -> float:
        receivers = [f"{one[0]}.{one[1]}{first}", f"{two[0]}.{two[1]}{second}"]
        told = {"senders": [BEFORE], "position": at, "receivers": receivers}
        return value(wb.patching.path(pair, asked, **told, **known, **more), "logit_change").item()

    # The first head finds the middle's label, the second with it the value's, both from the last
    # token. What a receiver does anywhere else is held, so that nothing leads through it either.
    for at, places, expected in (
        ("middle", ("@-1", "@-1"), -10.0), ("middle", ("@-1", ""), -10.0),
        ("middle", ("@ask", "@-1"), 0.0), ("middle", ("@-1", "@ask"), 0.0),
        ("value", ("@-1", "@-1"), -10.0), ("value", ("@ask", "@-1"), -10.0),
        ("value", ("@-1", "@ask"), 0.0), ("value", ("", ""), -10.0),
    ):  # fmt: skip
        near = pytest.approx(expected, abs=5e-3 if expected else 1e-5)
        assert change(at, *places) == near, (at, places)
        if "" not in places:  # a place of its own stands before that of all
            assert change(at, *places, receiver_position="ask") == near
    assert change("value", "", "", receiver_position="ask") == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_paths_of_a_program_lead_where_it_says_and_nowhere_else(compiled, name):
    """From the last token alone, as the program does; from another one there is no path at all."""
    for (clean, dirty, answer, foil), sender, at, receiver, part, expected in PATHS[name]:
        asked, turned = single(clean, dirty, answer, foil)
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
        with pytest.raises(WorkbenchError, match="receiver_position to be tokens of the prompt"):
            wb.patching.path(pair, said(), receivers=[f"1.0@{looks}"], **known)
    for receivers in ("logits", ["1.mlp"]):
        with pytest.raises(WorkbenchError, match="Give receiving heads, or leave it out"):
            wb.patching.path(pair, said(), receivers=receivers, receiver_position=-1, **known)
    with pytest.raises(WorkbenchError, match="no span 'subject'"):
        wb.patching.path(pair, said(), receivers=[MOVER], receiver_position="subject:last", **known)
    with pytest.raises(WorkbenchError, match="lies outside a prompt"):
        wb.patching.path(pair, said(), receivers=[MOVER], receiver_position=99, **known)
    for receivers, match in (
        (["1.0@-1", "1.0@0"], "Head 1.0 is given two places to look from, -1 and 0"),
        (["1.0@subject"], "no span 'subject'"), (["1.mlp@-1"], "found '1.mlp@-1'"),
        (["embedding"], "found 'embedding'"), ([(1, 0, 2)], r"LAYER.HEAD, .* found \(1, 0, 2\)"),
        (["9.mlp"], "layers 0 to 2"), ([3], "found 3"),
        ("1.mlp", r'a list of heads and MLPs, such as \["3.1", "4.mlp"\], found \'1.mlp\''),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match=match):
            wb.patching.path(pair, said(), receivers=receivers, **known)
    for senders, match in (
        (["1.mlp"], "'1.mlp' is not before these receivers"), (["0.1@-1"], "without a place"),
        ([], r"a list of senders, .* found \[\]"), (["head"], "found 'head'"),
        ("embedding", "a list of senders, .* found 'embedding'"),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match=match):
            wb.patching.path(pair, said(), receivers=["1.mlp"], senders=senders, **known)
