"""The one useful block is found among decoys; all blocks on or off are the ends bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import workbench as wb
from tests.conftest import adapter
from tests.skills.conftest import (
    APPLE,
    BOOK,
    JOBS,
    PLACES,
    asked,
    mute,
    no_gradients,  # noqa: F401
    paired,
    value,
    write,
)
from tests.skills.conftest import member as changed
from workbench.loaders.names import locate
from workbench.skills.blocks import blocks, greedy, off, on
from workbench.skills.gradients import Teacher
from workbench.skills.scoring import split
from workbench.tasks import Prompt, PromptSet

PROMPTS = asked(PLACES, "apple", 24)
USEFUL = {"layer": 1, "component": "mlp.down_proj"}
# Layer 0 and attention write nothing, so these do nothing, however far they move.
DECOYS = ("model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight")


def decoyed(folder: Path, *, useful: bool = True):
    tuned = changed({(APPLE, PLACES): 3.0} if useful else {})
    for name in DECOYS:
        tuned.get_parameter(name).add_(10.0)
    return paired(mute(), tuned, folder)


def lora(folder: Path):
    base = write(mute(), folder / "base")
    return wb.load_pair(base, adapter(mute(), folder / "lora")).held()


def test_the_useful_block_is_taken_first_and_no_decoy(tmp_path: Path):
    found = blocks(decoyed(tmp_path), PROMPTS, random=2)
    path = found.metric("loss")
    assert path[["x", "layer", "component"]].values.tolist() == [[1, 1, "mlp.down_proj"]]
    assert value(found, "score", arm="greedy", x=1) == 1
    assert value(found, "log_probability", arm="greedy") == value(
        found, "log_probability", arm="tuned"
    )
    assert value(found, "score_change", arm="alone", **USEFUL) == 1
    assert value(found, "score_change", arm="off", **USEFUL) == -1
    for metric in ("score_change", "log_probability_change"):
        rows = found.metric(metric)
        decoys = rows[rows["component"] != USEFUL["component"]]
        assert len(decoys) == 4
        assert decoys["value"].eq(0).all()
    assert any("ends after 1 blocks" in note for note in found.provenance.notes)
    total = found.metric("N")["value"].iloc[0]
    scores = found.metric("score")
    assert scores[scores["arm"] == "greedy"]["sparsity"].tolist() == [32 * 48 / total]
    assert set(scores["arm"]) == {
        "base", "all", "tuned", "off", "alone", "greedy", "random", "rank",
    }  # fmt: skip


def test_an_edit_by_efficacy_generality_and_locality(tmp_path: Path):
    """The useful block also says apple to the rewordings, and book to half of the unrelated
    prompts (those that end in "a"), where the base says coin."""
    tuned = changed({(APPLE, PLACES): 3.0, (BOOK, JOBS): 3.0})
    tuned.get_parameter(DECOYS[0]).add_(10.0)
    reworded = PromptSet("reworded", PROMPTS.prompts[:8])
    unrelated = asked(JOBS, "book", 12)
    half = [*unrelated.prompts[:6], *(Prompt(f"c{i}", "the", " coin") for i in range(6))]
    found = blocks(
        paired(mute(), tuned, tmp_path), PROMPTS, most=1, random=1,
        others=[PromptSet("unrelated", tuple(half))], rewordings=reworded,
    )  # fmt: skip
    for arm, place in (("all", {}), ("alone", USEFUL)):
        assert value(found, "efficacy", arm=arm, **place) == 1
        assert value(found, "generality", arm=arm, own=False, **place) == 1
        assert value(found, "locality", arm=arm, own=False, **place) == 0.5
    decoy = {"arm": "alone", "layer": 0, "component": "mlp.up_proj"}
    assert value(found, "efficacy", **decoy) == 0
    assert value(found, "generality", own=False, **decoy) == 0
    assert value(found, "locality", own=False, **decoy) == 1
    rows = found.metric("locality")
    assert (rows["baseline"] == 0.5).all()  # of every block on
    assert (found.metric("generality")["n"] == 8).all()


def test_decoys_alone_give_an_empty_path(tmp_path: Path):
    found = blocks(decoyed(tmp_path, useful=False), PROMPTS)
    assert not found.has("loss")
    assert found.metric("score")["value"].eq(0).all()
    assert not {"greedy", "random"} & set(found.table["arm"].dropna())


def test_prompts_that_choose_are_not_reported(tmp_path: Path):
    found = blocks(decoyed(tmp_path), PROMPTS, others=[asked(PLACES, "book", 13)], ranks=[1])
    rows = found.metric("score").groupby("own")["n"].unique()
    assert rows[True].tolist() == [12]
    assert rows[False].tolist() == [13]


def test_every_arm_is_the_model_with_these_blocks(tmp_path: Path):
    """By plain state dicts: log-probabilities of the reported half, N and shares by hand."""
    base, tuned = mute(), changed({(APPLE, PLACES): 0.3})
    useful, other = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate"))
    tuned.get_parameter(other).mul_(1.5)
    states = [{n: p.clone() for n, p in one.named_parameters()} for one in (base, tuned)]
    pair = paired(base, tuned, tmp_path)
    found = blocks(pair, PROMPTS, most=2, random=2, ranks=[1])
    choose, report = split(PROMPTS, (1, 1), 0)
    made = mute()

    def log_p(*names: str, asked: wb.tasks.PromptSet = report) -> np.ndarray:
        made.load_state_dict(states[0] | {n: states[1][n] for n in names}, strict=False)
        frame = wb.tasks.answers(made, pair.base.tokenizer(), asked)
        return frame["log_probability"].to_numpy()

    none, down, gate, both = log_p(), log_p(useful), log_p(other), log_p(useful, other)
    where = {"layer": 1, "component": "mlp.down_proj"}
    inside = sum(p.numel() for n, p in base.named_parameters() if "layers." in n)
    size = 32 * 48
    for arm, own, x in (("base", none, 0), ("all", both, 2), ("tuned", both, 2)):
        rows = found.metric("log_probability").query(f"arm == '{arm}'")
        assert rows["value"].item() == pytest.approx(own.mean(), abs=1e-5)
        assert (rows["x"].item(), rows["sparsity"].item()) == (x, x * size / inside)
    for arm, own, end in (("alone", down, none), ("off", gate, both)):
        change = value(found, "log_probability_change", arm=arm, **where)
        assert change == pytest.approx((own - end).mean(), abs=1e-5)
        assert value(found, "log_probability", arm=arm, **where) == pytest.approx(
            own.mean(), abs=1e-5
        )
    # Down alone helps most, then gate beside it helps more.
    losses = found.metric("loss")
    assert losses["component"].tolist() == ["mlp.down_proj", "mlp.gate_proj"]
    chosen_by = [-log_p(*taken, asked=choose).mean() for taken in ((useful,), (useful, other))]
    assert losses["value"].tolist() == pytest.approx(chosen_by, abs=1e-5)
    steps = found.metric("log_probability").query("arm == 'greedy'")["value"]
    assert steps.tolist() == pytest.approx([down.mean(), both.mean()], abs=1e-5)
    random = found.metric("log_probability").query("arm == 'random'")
    firsts = [np.random.default_rng([0, s]).permutation(2)[0] for s in range(2)]
    alone = [(down, gate)[first] for first in firsts]
    assert random["value"].tolist() == pytest.approx([np.mean(alone), both.mean()], abs=1e-5)
    assert random["sparsity"].tolist() == pytest.approx([size / inside, 2 * size / inside])
    rank = found.metric("score").query("arm == 'rank'")
    assert rank["sparsity"].item() == pytest.approx(2 * (32 + 48) / inside)
    assert value(found, "N") == inside


def test_all_blocks_on_or_off_are_the_ends(tmp_path: Path):
    pair = lora(tmp_path)
    sites = [s for s in pair.sites() if pair.delta(s).changed]
    whole, kept = on(pair, sites).tensors(), off(pair, []).tensors()
    assert on(pair, []).tensors() == off(pair, sites).tensors() == {}
    for site in sites:
        assert torch.equal(whole[site.name], pair.delta(site).tuned)
        assert torch.equal(kept[site.name], pair.delta(site).tuned)
    one = off(pair, sites[:1]).tensors()
    assert one.keys() == {s.name for s in sites[1:]} == on(pair, sites[1:]).tensors().keys()


def test_ranks_go_up_to_the_adapters_own(tmp_path: Path):
    found = blocks(lora(tmp_path), PROMPTS, most=1, random=1)
    rows = found.metric("log_probability").set_index(["arm", "x"])["value"]
    assert rows["rank"].index.tolist() == [1, 2, 3]
    assert rows["rank"][3] == pytest.approx(rows["tuned"].iloc[0], abs=1e-5)
    assert rows["all"].iloc[0] == rows["tuned"].iloc[0]
    assert not any("no block" in note for note in found.provenance.notes)


def test_only_the_strongest_are_blocks(tmp_path: Path):
    """The decoys moved by 10 in every entry, the useful matrix by 3 in few."""
    pair = decoyed(tmp_path)
    found = blocks(pair, PROMPTS, strongest=2, random=1)
    alone = found.table[found.table["arm"] == "alone"]
    assert {*zip(alone["layer"], alone["component"], strict=True)} == {
        (0, "mlp.up_proj"), (2, "self_attn.q_proj"),
    }  # fmt: skip
    assert "loss" not in set(found.table["metric"])
    assert value(found, "score", arm="all") == value(found, "score", arm="base") == 0
    assert any("1 parameters that are not blocks changed too" in n for n in found.provenance.notes)
    three = blocks(pair, PROMPTS, strongest=3, random=1)
    assert_frame_equal(three.table, blocks(pair, PROMPTS, random=1).table)


def test_what_is_no_block_is_noted(tmp_path: Path):
    tuned = changed({(APPLE, PLACES): 3.0, (BOOK, PLACES): 1.0})
    tuned.model.layers[0].input_layernorm.weight.mul_(2)
    found = blocks(paired(mute(), tuned, tmp_path), PROMPTS, ranks=[1, 2])
    assert any("1 parameters that are not blocks changed too" in n for n in found.provenance.notes)


def test_the_teachers_loss_is_the_mean_answer_loss(tmp_path: Path):
    pair = decoyed(tmp_path).held()
    model = pair.base.load("cpu", torch.float32).eval()
    teacher = Teacher(pair, model, PROMPTS, 7)
    scored = wb.tasks.answers(model, pair.base.tokenizer(), PROMPTS)
    assert teacher.loss() == pytest.approx(-scored["log_probability"].mean(), rel=1e-5)
    everything, _ = teacher.gradients(range(len(PROMPTS)))
    assert teacher.loss() == pytest.approx(everything, rel=1e-5)


NAMES = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(6)]
SITES = [locate(NAMES)[name] for name in NAMES]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=6, max_size=6), st.integers(1, 6))
def test_greedy_takes_additive_gains_in_order(gains: list[int], most: int):
    worth = dict(zip(NAMES, gains, strict=True))
    path = greedy(lambda sites: -sum(worth[s.name] for s in sites), SITES, most)
    wanted = sorted((g for g in gains if g > 0), reverse=True)[:most]
    assert [worth[site.name] for site, _ in path] == wanted
    losses = [loss for _, loss in path]
    assert losses == sorted(losses, reverse=True)
    assert len({site.name for site, _ in path}) == len(path)


def test_greedy_counts_its_readings():
    calls = []

    def loss(sites) -> float:
        calls.append(len(sites))
        return -len(sites)

    greedy(loss, SITES, 3)
    assert calls == [0] + [1] * 6 + [2] * 5 + [3] * 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"most": 0}, "most and random"),
        ({"random": 0}, "most and random"),
        ({"ranks": [0]}, "ranks"),
        ({"strongest": 0}, "strongest"),
    ],
)
def test_errors(wrong: dict, told: str, tmp_path: Path):
    with pytest.raises(wb.WorkbenchError, match=told):
        blocks(decoyed(tmp_path), PROMPTS, **wrong)


def test_a_pair_without_changed_matrices_and_too_few_prompts(tmp_path: Path):
    with pytest.raises(wb.WorkbenchError, match="no changed matrix"):
        blocks(paired(mute(), mute(), tmp_path / "same"), PROMPTS)
    with pytest.raises(wb.WorkbenchError, match="at least 12"):
        blocks(decoyed(tmp_path), asked(PLACES, "apple", 8))
