"""A planted skill is found; what moved most but does nothing is dropped; the mask's gradient by
hand and the best mask by brute force."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

import workbench as wb
from tests.conftest import contents
from tests.patching.conftest import model
from tests.skills.conftest import (
    APPLE,
    BOOK,
    DEAD,
    NAME,
    PLACES,
    WRONG,
    asked,
    mute,
    no_gradients,  # noqa: F401
    paired,
    planted,
    value,
)
from workbench.lab import shipped
from workbench.models import edit, entries
from workbench.models.edits import overlay
from workbench.skills import Graft, localize
from workbench.skills.gradients import FLIP, START, Teacher, learn, rounded, slope, soft
from workbench.skills.graft import count, graft_of, inside

PROMPTS = asked(PLACES, "apple", 32)
USEFUL = (APPLE, PLACES)


def entry(name: str, place: tuple[int, int], width: int = 48) -> int:
    """Flat position of an entry of down_proj, (32, 48)."""
    assert name == NAME
    return place[0] * width + place[1]


def only_entries(pair, *places: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A boolean mask of these entries of NAME."""
    masks = {s.name: torch.zeros_like(pair.delta(s).base, dtype=torch.bool) for s in inside(pair)}
    for place in places:
        masks[NAME][place] = True
    return masks


def test_a_planted_sparse_change_is_found_in_dense_noise(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0}, noise=0.002)
    least = 1 / count(pair)
    found = localize(pair, PROMPTS, sparsity=least, arms=["movement", "learned", "random"])
    assert value(found, "score", arm="base") == 0
    for arm in ("tuned", "blocks", "movement", "learned"):
        assert value(found, "score", arm=arm) == 1, arm
        assert value(found, "gain", arm=arm) == 1
    for arm in ("random", "without"):
        assert value(found, "score", arm=arm) == 0, arm
    arms = {"base", "tuned", "blocks", "movement", "learned", "random", "without"}
    assert {*found.table["arm"].dropna()} == arms
    graft = Graft.of(found, "tuned", arm="movement")
    assert {n: a.tolist() for n, a in graft.places.items()} == {NAME: [entry(NAME, USEFUL)]}
    cells = found.metric("entries")
    here = cells[(cells["layer"] == 1) & (cells["component"] == "mlp.down_proj")]
    assert (here["value"] * here["n"]).round().eq(1).all()
    assert cells["value"].gt(0).sum() == len(here)


def test_a_decoy_that_moved_most_stays_in_movement_and_leaves_the_learned_mask(tmp_path: Path):
    decoys = {(APPLE, DEAD): 100.0, (BOOK, DEAD): 100.0}
    pair = planted(tmp_path, {USEFUL: 3.0} | decoys)
    found = localize(pair, PROMPTS, sparsity=2 / count(pair), arms=["movement", "learned"], rate=2)
    assert value(found, "score", arm="movement") == 0
    assert value(found, "score", arm="learned") == 1
    graft = Graft.of(found, "tuned")
    assert {n: a.tolist() for n, a in graft.places.items()} == {NAME: [entry(NAME, USEFUL)]}
    assert found.metric("flipped")["value"].tolist() == [3]
    assert found.metric("epoch")["value"].gt(0).all()
    assert not any("best epoch is 0" in note for note in found.provenance.notes)


def test_the_ends_are_exact(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 1.0}, noise=0.05)
    found = localize(pair, PROMPTS, sparsity=1.0, arms=["movement", "random", "layer"], random=2)
    for metric in ("log_probability", "score", "ece", "brier"):
        whole = value(found, metric, arm="tuned")
        for arm in ("blocks", "movement", "random"):
            assert value(found, metric, arm=arm) == pytest.approx(whole, abs=1e-12), (arm, metric)
    shares = found.metric("score")[found.metric("score")["arm"] == "layer"]["x"]
    assert shares.sum() == pytest.approx(1)


def test_a_base_against_itself_gives_no_gain_and_says_so(tmp_path: Path):
    pair = planted(tmp_path, {})
    found = localize(pair, PROMPTS, sparsity=0.01, arms=["movement", "learned"])
    assert found.metric("gain")["value"].isna().all()
    assert any("no gain at all" in note for note in found.provenance.notes)
    assert any("best epoch is 0" in note for note in found.provenance.notes)
    ends = {value(found, "log_probability", arm=arm) for arm in ("base", "tuned", "learned")}
    assert len(ends) == 1


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    pair = planted(tmp_path, {USEFUL: 0.5}, noise=0.05).held()
    model = pair.base.load("cpu", torch.float32).eval()
    return Teacher(pair, model, asked(PLACES, "apple", 12), batch_size=5)


def test_the_gradient_of_the_mask_is_that_of_the_functional_edit(teacher: Teacher):
    """d loss / dS by autograd through theta_0 + gamma(S) delta, against the closed form."""
    pair, sites = teacher.pair, inside(teacher.pair)
    draw = torch.Generator().manual_seed(0)
    start = {s.name: torch.rand(pair.delta(s).base.shape, generator=draw) < 0.5 for s in sites}
    state = {s.name: torch.randn(pair.delta(s).base.shape, generator=draw) for s in sites}
    words = shipped.tokenizer()
    with torch.enable_grad():
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        theta = {}
        for site in sites:
            b, delta = start[site.name].float(), pair.delta(site)
            gamma = b + (1 - 2 * b) * torch.sigmoid(leaves[site.name])
            theta[site.name] = delta.base + gamma * delta.change
        loss = torch.zeros(())
        for prompt in teacher.prompts:
            ids = torch.tensor([words(prompt.text)["input_ids"]])
            logits = functional_call(teacher.model, theta, (ids,)).logits[0, -2]
            loss = loss - logits.log_softmax(-1)[ids[0, -1]] / len(teacher.prompts)
        loss.backward()
    kept = {n: torch.where(start[n], -own, own) for n, own in state.items()}
    with edit(pair, mask=soft(kept)).on(teacher.model):
        nats, found = teacher.gradients(range(len(teacher.rows)))
    assert nats == pytest.approx(loss.item(), rel=1e-5)
    for site in sites:
        name = site.name
        ours = slope(found[name].clone(), pair.delta(site).change, kept[name])
        ours = torch.where(start[name], -ours, ours)
        expected = leaves[name].grad
        assert expected is not None
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
    assert {p.requires_grad for p in teacher.model.parameters()} == {True}


def test_a_step_of_the_mask_by_hand(teacher: Teacher):
    """T begins at +-START, goes down its slope so that the k steepest flips move by the rate on
    average, no further than 2 START, and is rounded; the start is judged first."""
    pair, sites, rate = teacher.pair, inside(teacher.pair), 40.0
    start = only_entries(pair, USEFUL, (WRONG, PLACES), (BOOK, PLACES), (APPLE, DEAD))
    begin = {n: torch.where(m, -START, START) for n, m in start.items()}
    words = shipped.tokenizer()
    with torch.enable_grad():
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in begin.items()}
        theta = {}
        for site in sites:
            delta = pair.delta(site)
            theta[site.name] = delta.base + torch.sigmoid(leaves[site.name]) * delta.change
        loss = torch.zeros(())
        for prompt in teacher.prompts:
            ids = torch.tensor([words(prompt.text)["input_ids"]])
            logits = functional_call(teacher.model, theta, (ids,)).logits[0, -2]
            loss = loss - logits.log_softmax(-1)[ids[0, -1]] / len(teacher.prompts)
        slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    descents = torch.cat([(-slope).clamp(min=0).flatten() for slope in slopes.values()])
    step = rate / descents.topk(4).values.mean()
    moved = {n: (begin[n] - step * slopes[n]).clamp(2 * START, -2 * START) for n in begin}
    expected = {n: (own > 0) & (own != -START) for n, own in moved.items()}
    judged: list = []

    def judge(masks) -> float:
        judged.append(masks)
        return len(judged)

    made = learn(teacher, start, judge, rate=rate, epochs=1, patience=5, seed=0)
    assert len(judged) == 2
    assert all(torch.equal(judged[0][name], mask) for name, mask in start.items())
    # One of the start is kept, others are dropped, and some that were not in it are taken.
    flips = {n: expected[n] ^ start[n] for n in expected}
    taken = sum(int((expected[n] & ~start[n]).sum()) for n in expected)
    dropped = sum(int((start[n] & ~expected[n]).sum()) for n in expected)
    assert expected[NAME][USEFUL]
    assert 0 < dropped < 4
    assert taken > 0
    assert all(torch.equal(judged[1][name], mask) for name, mask in expected.items())
    assert (made.best, made.epochs) == (1, 1)
    assert made.flipped == sum(int(own.sum()) for own in flips.values()) == taken + dropped


def test_a_mask_that_gets_no_better_is_left_after_some_epochs(teacher: Teacher):
    start = only_entries(teacher.pair, USEFUL)
    marks = iter([0.5, 0.4, 0.9, 0.9, 0.1, 0.2, 1.0])
    made = learn(teacher, start, lambda _: next(marks), rate=1, epochs=20, patience=3, seed=0)
    assert (made.best, made.epochs) == (2, 5)
    marks = iter([0.5, 0.5, 0.4, 0.3, 1.0])
    made = learn(teacher, start, lambda _: next(marks), rate=1, epochs=20, patience=3, seed=0)
    assert (made.best, made.epochs, made.flipped) == (0, 3, 0)
    assert all(torch.equal(made.masks[name], mask) for name, mask in start.items())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_gradients_are_turned_as_the_weights_are(kind: str, tmp_path: Path):
    pair = paired(model(kind), model(kind, seed=1), tmp_path).held()
    own = pair.base.load("cpu", torch.float32).eval()
    teacher = Teacher(pair, own, asked(PLACES, "apple", 12), batch_size=4)
    _, found = teacher.gradients(range(12))
    for site in inside(pair):
        assert found[site.name].shape == pair.delta(site).base.shape
    # A small step along one matrix changes the loss by gradient . step.
    site = next(s for s in inside(pair) if "down" in s.component or "c_proj" in s.component or
                "dense_4h" in s.component)  # fmt: skip
    step = 1e-3 * found[site.name] / found[site.name].norm()
    near = {site.name: pair.delta(site).base + step}
    before, _ = teacher.gradients(range(12))
    with overlay(own, near, pair):
        after, _ = teacher.gradients(range(12))
    assert after - before == pytest.approx(float((found[site.name] * step).sum()), rel=0.1)


def test_the_learned_mask_is_the_best_of_all(tmp_path: Path):
    """Of eight entries that moved, those towards the answer and no other; 256 masks tried."""
    moves = {
        (APPLE, PLACES): 0.6, (WRONG, PLACES): -0.5, (BOOK, PLACES): 0.9, (BOOK, 3): 0.3,
        (8, PLACES): 0.02, (9, DEAD): 2.0, (APPLE, DEAD): 1.5, (20, 5): 0.7,
    }  # fmt: skip
    pair = planted(tmp_path, moves).held()
    own = pair.base.load("cpu", torch.float32).eval()
    teacher = Teacher(pair, own, asked(PLACES, "apple", 12), batch_size=12)

    def judged(masks) -> float:
        with edit(pair, mask=entries(masks)).on(own):
            return -teacher.gradients(range(12))[0]

    tried = {}
    for chosen in product([False, True], repeat=len(moves)):
        places = tuple(p for p, take in zip(moves, chosen, strict=True) if take)
        tried[places] = judged(only_entries(pair, *places))
    best = max(tried.values())
    start = only_entries(pair, (9, DEAD), (APPLE, DEAD), (BOOK, PLACES))
    assert judged(start) < best - 0.5
    made = learn(teacher, start, judged, rate=1.0, epochs=60, patience=60, seed=0)
    assert judged(made.masks) == pytest.approx(best, abs=1e-2)
    found = graft_of("learned", made.masks)
    assert entry(NAME, (APPLE, PLACES)) in found.places[NAME]
    assert entry(NAME, (BOOK, PLACES)) not in found.places[NAME]
    assert entry(NAME, (9, DEAD)) not in found.places[NAME]


def test_the_start_is_the_papers():
    assert torch.sigmoid(torch.tensor(START)).item() == pytest.approx(FLIP, rel=1e-4)
    # Of the start: never moved, kept, dropped; of the others: never moved, taken.
    state = torch.tensor([-START, -START + 1, -1.0, START, 1.0])
    assert rounded(state).tolist() == [False, True, False, False, True]


def test_batch_size_does_not_change_the_gradient(teacher: Teacher):
    _, some = teacher.gradients(range(12))
    teacher.batch_size = 12
    _, whole = teacher.gradients(range(12))
    for name, gradient in whole.items():
        torch.testing.assert_close(some[name], gradient, atol=1e-6, rtol=1e-4)


def test_best_rank_stores_no_more_than_asked(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0}, noise=0.002)
    found = localize(pair, PROMPTS, sparsity=[0.01, 1.0], arms=["rank"])
    rows = found.metric("score")
    rows = rows[(rows["arm"] == "rank") & rows["own"]]
    assert (rows["x"] <= rows["sparsity"]).all()
    assert (rows["x"] > 0).all()
    # One triplet of down_proj is the planted entry and what noise adds to it.
    assert rows["value"].tolist() == [1, 1]


def test_only_what_moved_is_taken_and_the_size_is_chosen_on_other_prompts(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0, (BOOK, DEAD): 9.0})
    found = localize(pair, PROMPTS, sparsity=[1 / count(pair), 0.5], arms=["movement", "random"])
    sizes = found.metric("size").set_index("sparsity")["value"]
    assert sizes.tolist() == [1, 2]
    assert found.metric("moved")["value"].tolist() == pytest.approx([2 / count(pair)])
    inside_blocks = [p.numel() for n, p in mute().named_parameters() if "layers." in n]
    assert found.metric("N")["value"].tolist() == [sum(inside_blocks)]
    chosen = found.metric("choosing_gain")
    assert chosen.loc[chosen["arm"] == "movement", "value"].tolist() == [0, 1]
    assert chosen["n"].unique().tolist() == [8]
    assert len(Graft.of(found, "tuned", arm="movement")) == 2
    # Half of all entries, and so all that moved.
    random = found.metric("score")[lambda t: (t["arm"] == "random") & t["own"]]
    assert random["value"].iloc[-1] == 1


def test_other_prompts_are_scored_beside(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0})
    beside = asked(PLACES, "coin", 12)
    found = localize(pair, PROMPTS, sparsity=0.1, arms=["movement"], others=[beside])
    known = value(found, "score", arm="movement", task="coin", own=False)
    assert known == value(found, "score", arm="tuned", task="coin", own=False) == 0
    assert value(found, "score", arm="base", task="coin", own=False) == 1


def test_results_keep_their_grafts(tmp_path: Path):
    pair = planted(tmp_path / "p", {USEFUL: 3.0}, noise=0.002)
    before = contents(tmp_path / "p")
    found = localize(pair, PROMPTS, sparsity=[1e-4, 1e-2], 
                     arms=["movement", "learned", "rank", "magnitude"])  # fmt: skip
    assert contents(tmp_path / "p") == before
    again = wb.Result.load(found.save(tmp_path / "kept"))
    for sparsity in (1e-4, 1e-2):
        graft = Graft.of(again, "tuned", arm="movement", sparsity=sparsity)
        assert len(graft) == round(sparsity * count(pair))
        assert graft.fingerprint == Graft.of(
            found, "tuned", arm="movement", sparsity=sparsity
        ).fingerprint  # fmt: skip
    assert np.isclose(Graft.of(again, "tuned", arm="movement").share, 1e-4, rtol=0.3)
    for member, arm, sparsity in (("tuned", "movement", 0.5), ("typo", "movement", 1e-4),
                                  ("tuned", "magnitude", 1e-4)):  # fmt: skip
        with pytest.raises(wb.WorkbenchError, match=f"No graft of {member}"):
            Graft.of(again, member, arm=arm, sparsity=sparsity)


def test_bad_input_is_told_before_any_work(tmp_path: Path):
    pair = planted(tmp_path, {USEFUL: 3.0})
    for options, told in (
        ({"sparsity": 0}, "in \\(0, 1\\]"),
        ({"sparsity": []}, "in \\(0, 1\\]"),
        ({"sparsity": [0.1, 1.5]}, "in \\(0, 1\\]"),
        ({"arms": ["nothing"]}, "Unknown arm 'nothing'"),
        ({"random": 0}, "random and epochs of at least 1"),
        ({"rate": -1.0}, "a rate above 0"),
        ({"others": [PROMPTS]}, "different names"),
    ):
        with pytest.raises(wb.WorkbenchError, match=told):
            localize(pair, PROMPTS, **options)
    with pytest.raises(wb.WorkbenchError, match="at least 12"):
        localize(pair, asked(PLACES, "apple", 4))


def test_biases_are_grafted_where_there_are_any(tmp_path: Path):
    pair = paired(model("gpt2"), model("gpt2", seed=1), tmp_path)
    found = localize(pair, PROMPTS, sparsity=0.1, arms=["bias", "component"])
    rows = found.metric("score")
    bias = rows[(rows["arm"] == "bias") & rows["own"]]
    info = pair.base.weights().info
    biases = sum(np.prod(info[s.name].shape) for s in inside(pair) if s.component.endswith(".bias"))
    assert bias["x"].tolist() == pytest.approx([biases / count(pair)])
    parts = rows[(rows["arm"] == "component") & rows["own"]]
    assert parts["x"].sum() == pytest.approx(1)
    none = localize(planted(tmp_path / "none", {USEFUL: 3.0}), PROMPTS, sparsity=0.1, arms=["bias"])
    assert not (none.table["arm"] == "bias").any()
    assert any("no bias changed" in note for note in none.provenance.notes)
