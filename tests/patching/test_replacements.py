"""What stands for an activation: one vocabulary, the same numbers in every method that has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import MOVER, READER, boxes, copier, model, paired, said
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Site, capture
from workbench.models.rerun import Rerun
from workbench.patching.replacements import Replacement, Running, from_the_end, means_of
from workbench.tasks.batching import Row, batch, rows

WORDS = shipped.tokenizer()
HERE = Running(0, 3, "cpu")
Z = Site("z", 1)


@pytest.fixture(scope="module")
def made():
    with torch.no_grad():
        return model(), nudged(model(), seed=1)


@pytest.fixture(scope="module")
def pair(made, tmp_path_factory):
    with torch.no_grad():
        return paired(*made, tmp_path_factory.mktemp("pair"))


def z_of(made, row: Row) -> torch.Tensor:
    with torch.no_grad(), capture(made, [Z]) as seen:
        made(input_ids=torch.tensor([row.fed]))
    return seen[Z][0]


def test_every_value_by_a_plain_run(made):
    """Of each kind what a prompt's head is given, by runs of single prompts without padding."""
    base, tuned = made
    given = rows(WORDS, boxes(4, count=None), answers=True)
    dirty = [given[1], given[0], given[3], given[2]]
    alone, theirs = [z_of(base, row) for row in given], [z_of(tuned, row) for row in given]
    own = Rerun(base, batch(given, [0, 1, 2, 3], "cpu", 0), [Z])
    turn = wb.stats.others(4, 5)
    wanted = {
        "zero": [torch.zeros_like(z) for z in alone],
        "mean": [torch.cat(alone).mean(0).expand_as(z) for z in alone],
        "other": theirs,
    }
    for how, partners in (("resample", turn), ("corrupted", [1, 0, 3, 2])):
        wanted[how] = []
        for i, partner in enumerate(partners):
            shift = len(given[partner].ids) - len(given[i].ids)
            at = (torch.arange(len(alone[i])) + shift).clamp(0, len(alone[partner]) - 1)
            wanted[how].append(alone[partner][at])
    givers = {"other": (tuned, given), "corrupted": (base, dirty)}
    site = Site("z", 1, head=2, position=-1)
    for how, expected in wanted.items():
        stand = Replacement.of(how, base, given, [Z], HERE, giver=givers.get(how), seed=5)
        there = stand.beside(own, [0, 1, 2, 3])
        whole, last = there.read(Z), there.read(site)
        for i, one in enumerate(expected):
            torch.testing.assert_close(whole[i, : len(one)], one, atol=1e-5, rtol=1e-5, msg=how)
            end = len(given[i].ids) - 1
            torch.testing.assert_close(last[i, 0], one[end, 2], atol=1e-5, rtol=1e-5)
    with pytest.raises(WorkbenchError, match=r"needs prompts of one length, found \d+ to \d+"):
        Replacement.of("mean_position", base, given, [Z], HERE)


def test_the_mean_at_each_token_is_over_prompts(made):
    given = rows(WORDS, boxes(4, order="object first"), answers=True)
    expected = torch.stack([z_of(made[0], row) for row in given]).mean(0)
    found = means_of(made[0], given, [Z], HERE, True)[Z]
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    over = means_of(made[0], given, [Z], HERE, False)[Z]
    torch.testing.assert_close(over[0, 0], expected.mean(0), atol=1e-5, rtol=1e-5)


def test_tokens_are_counted_from_the_prompts_end():
    short, long = Row("short", [1, 2]), Row("long", [1, 2, 3, 4], answer=(5, 6))
    own, other = (batch([one], [0], "cpu", 0) for one in (short, long))
    assert from_the_end(own, other).tolist() == [[2, 3]]
    assert from_the_end(other, own).tolist() == [[0, 0, 0, 1, 1]]


def test_a_sweep_and_a_knockout_take_out_the_same(pair):
    """Every head's whole z in `activation`, `cross_model` and `knockout`: one change."""
    prompts, arms = boxes(5, order="object first"), ("zero", "mean", "mean_position", "other")
    how = {"sites": ["z"], "positions": "all", "controls": 0}
    knocked = wb.patching.knockout(pair, prompts, arms=arms, components=("head",))
    for arm in arms:
        wanted = wb.patching.per_prompt(knocked, "log_probability", side="base", arm=arm).values
        ran = [(wb.patching.activation, "base", {"sides": ("base",)})]
        if arm in ("zero", "other"):
            ran.append((wb.patching.cross_model, "tuned->base", {}))
        for function, side, more in ran:
            found = function(pair, prompts, with_=arm, **how, **more)
            patched, plain = (
                wb.patching.per_prompt(found, "log_probability", side=side, arm=one)
                for one in ("patch", "destination")
            )
            assert patched.less(plain).values == pytest.approx(wanted, abs=2e-5), (arm, side)
    assert np.abs(wanted).max() > 1e-3


def test_with_the_others_activations_ablated_the_circuit_is_still_the_circuit(tmp_path):
    """Of a hand-built circuit, in which no other head does anything, whatever stands for them."""
    pair = paired(copier(), copier(), tmp_path)
    known = {"own": {"mover": [MOVER], "reader": [READER]}}
    for how in ("zero", "resample", "corrupted"):
        found = wb.patching.circuit(
            pair, said(16), corrupted=said(16, turn=1), circuits=known, depth=1, with_=how,
            keep="everywhere", random=0, minimal=False, sides=("base",),
        )  # fmt: skip
        share = found.metric("faithfulness:logit_difference")
        assert share.loc[share["circuit"] == "own", "value"].tolist() == pytest.approx([1])
        none = wb.patching.per_prompt(found, "score", side="base", arm="own, all ablated")
        assert none.values.mean() < 0.3


def test_senders_are_replaced_as_asked(pair):
    """From the last layer a head acts on the logits directly: its path is its whole effect."""
    prompts = boxes(5, order="object first")
    senders = [(2, head) for head in range(4)]
    for how in ("zero", "other"):
        sent = wb.patching.path(pair, prompts, senders=senders, with_=how, sides=("base",))
        own = wb.patching.activation(
            pair, prompts, sites=[f"2.z.h{head}@-1" for head in range(4)], with_=how,
            sides=("base",), controls=0,
        )  # fmt: skip
        change = wb.patching.per_prompt(sent, "logit_change", side="base").values
        patched, plain = (
            wb.patching.per_prompt(own, "logit_difference", side="base", arm=arm).values
            for arm in ("patch", "destination")
        )
        assert change == pytest.approx(patched - plain, abs=2e-5)


def test_what_has_no_meaning_is_refused(pair):
    with pytest.raises(WorkbenchError, match="Expected with_ of other, zero, mean"):
        wb.patching.cross_model(pair, boxes(4), with_="corrupted")
    with pytest.raises(WorkbenchError, match="Attention patterns of different prompts"):
        wb.patching.activation(pair, boxes(4), sites=["pattern"], positions="all", with_="mean")
