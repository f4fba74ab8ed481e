"""Clean and corrupt patching: the scale's ends, both directions, TransformerLens and nnsight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens import patching as their_patching

import workbench as wb
from tests.patching.conftest import boxes, model, paired, value
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site, nnsight, transformer_lens
from workbench.patching import sweep as shared
from workbench.patching.activation import Direction, tokens_of
from workbench.patching.strongest import halves
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, rows


@pytest.fixture
def pair(tmp_path):
    return paired(model(seed=0), model(seed=1), tmp_path)


def test_the_scale_ends_at_the_two_runs(pair):
    """All tokens at the embedding make the other run, nothing beyond the answer makes none."""
    ends: dict[Direction, float] = {"denoising": 1.0, "noising": 0.0}
    for direction, end in ends.items():
        found = wb.patching.activation(
            pair, boxes(), sites=["resid_pre"], positions="all", direction=direction
        )
        first = found.metric("recovered:logit_difference")
        first = first[(first["arm"] == "patch") & (first["layer"] == 0)]
        assert first["value"].to_numpy() == pytest.approx([end, end], abs=1e-5)
        assert set(first["side"]) == {"base", "tuned"}
    # In the last layer a token that is not the last cannot matter any more.
    early = wb.patching.activation(pair, boxes(), sites=["2.resid_post@query box"])
    assert (value(early, "recovered:logit_difference") == 0).all()


def test_both_sides_are_their_own_models(pair, tmp_path):
    """The tuned side of a pair is the base side of the pair turned round."""
    turned = wb.load_pair(pair.tuned.folder, pair.base.folder)
    one = wb.patching.activation(pair, boxes(), sites=["z"], positions=[-1])
    other = wb.patching.activation(turned, boxes(), sites=["z"], positions=[-1])
    ours, theirs = (value(one, "log_probability", side=s) for s in ("base", "tuned"))
    assert torch.equal(ours, value(other, "log_probability", side="tuned"))
    assert torch.equal(theirs, value(other, "log_probability", side="base"))
    assert not torch.allclose(ours, theirs)


def test_a_silent_component_carries_nothing(tmp_path):
    base = model()
    layout = Layout(base)
    output: Any = layout.module(Site("z", 1))
    output.weight.zero_()
    pair = paired(base, model(seed=1), tmp_path)
    options = {"sites": ["z", "attn_out"], "positions": "all", "sides": ("base",)}
    found = wb.patching.activation(pair, boxes(), **options)
    effect = found.metric("recovered:log_probability")
    effect = effect[effect["arm"] == "patch"].set_index("layer")["value"]
    assert (effect[1] == 0).all()
    assert (effect[0].abs() > 1e-4).all()


def test_sweeps_agree_with_transformerlens_and_nnsight(pair):
    """The same logit difference, patch by patch, as both libraries' own whole runs."""
    prompts = boxes(4, order="object first")
    words = pair.base.tokenizer()
    dirty = wb.tasks.corrupt(prompts, 0, tokenizer=words)
    found = wb.patching.activation(
        pair, prompts, sites=["resid_pre"], positions="each", sides=("base",)
    )
    ours = value(found, "logit_difference").view(3, -1)
    clean, corrupt = (
        batch(rows(words, p, answers=True), range(4), "cpu", 0) for p in (prompts, dirty)
    )
    plain = pair.base.load()
    lens = transformer_lens.bridge(plain, words)
    _, cache = lens.run_with_cache(clean.ids, prepend_bos=False)

    def difference(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1].float()
        right = torch.stack([last[i, row.answer[0]] for i, row in enumerate(clean.rows)])
        wrong = torch.stack([last[i, list(row.foils)].max() for i, row in enumerate(clean.rows)])
        return (right - wrong).mean()

    theirs = their_patching.get_act_patch_resid_pre(lens, corrupt.ids, cache, difference)
    torch.testing.assert_close(ours.float(), theirs.cpu(), atol=1e-4, rtol=1e-4)
    sight, layout = nnsight.wrap(plain), Layout(plain)
    site = Site("resid_pre", 1, position=5)
    kept = nnsight.run(sight, clean.inputs, layout=layout, read=[site]).captured
    traced = nnsight.run(sight, corrupt.inputs, layout=layout, write=kept, at=corrupt.index)
    assert difference(traced.logits).item() == pytest.approx(ours[1, 5].item(), abs=1e-4)


def test_batches_and_padding_do_not_matter(pair):
    prompts = boxes(9, count=None)
    found = [
        wb.patching.activation(pair, prompts, sites=["resid_mid"], batch_size=size, controls=0)
        for size in (1, 4, 64)
    ]
    first = value(found[0], "log_probability")
    for other in found[1:]:
        torch.testing.assert_close(value(other, "log_probability"), first, atol=1e-4, rtol=1e-4)


def test_neurons_and_their_layer(pair):
    """Every neuron of the MLP, each alone: none is the whole, one of them is what it is alone."""
    options = {"positions": [-1], "sides": ("base",), "controls": 0}
    each = wb.patching.activation(pair, boxes(), sites=["neuron"], **options)
    assert len(value(each, "score")) == 3 * 48
    one = wb.patching.activation(pair, boxes(), sites=["1.mlp_hidden.n7@-1"], **options)
    rows_of = each.metric("log_probability")
    same = rows_of[(rows_of["layer"] == 1) & (rows_of["neuron"] == 7)]["value"].item()
    assert value(one, "log_probability").item() == pytest.approx(same, abs=1e-5)


def test_shuffled_and_random_stand_beside(pair):
    found = wb.patching.activation(pair, boxes(), sites=["z"], positions=[-1], controls=2)
    arms = found.metric("recovered:logit_difference").groupby(["side", "arm"]).size()
    assert arms["base", "shuffled"] == 2
    assert arms["base", "random"] == 1
    random = found.metric("recovered:logit_difference")
    random = random[(random["side"] == "base") & (random["arm"] == "random")]["value"].item()
    own = value(found, "recovered:logit_difference", side="base")
    assert random == pytest.approx(float(own.mean()))


def test_the_strongest_are_picked_on_one_half_and_reported_on_the_other(pair):
    """Which they are, and their numbers, are those of the two halves alone."""
    prompts = boxes(9, count=None)
    dirty = wb.tasks.corrupt(prompts, 0)
    pick, report = halves(9, 0)
    assert sorted([*pick, *report]) == list(range(9))
    for call, more in (
        (wb.patching.activation, {"sides": ("base",)}),
        (wb.patching.cross_model, {}),
    ):
        options = more | {"sites": ["z", "q"], "positions": [-1]}

        def on(half: list[int], controls: int, call: Any = call, options: Any = options) -> Any:
            own, other = (
                PromptSet("half", tuple(one.prompts[i] for i in half)) for one in (prompts, dirty)
            )
            within = {"corrupted": other} if call is wb.patching.activation else {}
            return call(pair, own, controls=controls, **within, **options)

        whole = on(list(range(9)), 2)
        assert any("picked on 4 prompts; their rows report the other 5" in note
                   for note in whole.provenance.notes)  # fmt: skip
        by = ["component", "layer", "head"]
        metric = "recovered:logit_difference"
        picked = whole.metric(metric)
        picked = picked[picked["arm"] == "picked"]
        picking, reporting = (on(half, 0).metric(metric) for half in (pick, report))
        picking = picking[picking["arm"] == "patch"]
        strong = picking.assign(size=picking["value"].abs()).sort_values("size")
        strong = strong.groupby("component").tail(2).set_index(by).index
        assert set(picked.set_index(by).index) == set(strong)
        expected = reporting[reporting["arm"] == "patch"].set_index(by)["value"]
        expected = expected[picked.set_index(by).index]
        assert picked["value"].to_numpy() == pytest.approx(expected.to_numpy(float), abs=1e-5)
        assert (picked["n"] == 5).all()
        assert "chosen on others and measured on 5 prompts" in wb.figures.headline(whole)


def test_another_prompt_has_another_answer():
    """The next of its length, at any place in the order; none where all say the same."""
    given = [
        Row(str(i), [1, 2, 3][:length], answer=answer)
        for i, (length, answer) in enumerate(
            [(3, (7,)), (3, (7,)), (3, (8,)), (2, (7,)), (2, (7,)), (3, (7, 9)), (1, (5,))]
        )
    ]
    turn = shared.shuffle(given)
    assert turn[:3] == [2, 2, 0]
    assert turn[3:5] == [-1, -1]
    assert turn[6] == -1
    for own, other in enumerate(turn):
        if other >= 0:
            assert given[own].answer != given[other].answer
            assert len(given[own].fed) == len(given[other].fed)


def test_runs_that_hardly_differ_are_said_to(pair):
    prompts = PromptSet(
        "same", tuple(Prompt(str(i), f"the a{i} the", " the", (" a1",)) for i in range(4))
    )
    found = wb.patching.activation(pair, prompts, corrupted=prompts, positions=[-1])
    assert np.isnan(value(found, "recovered:log_probability")).all()
    assert any("not meaningful" in note for note in found.provenance.notes)


def test_both_runs_are_scored_against_one_set_of_foils(pair):
    """Partners with foils of their own: all of the source still recovers all of the gap."""
    prompts = boxes()
    own = wb.tasks.corrupt(prompts, 0)
    fewer = PromptSet("fewer", tuple(replace(p, foils=p.foils[:1]) for p in own))
    found = wb.patching.activation(
        pair, prompts, corrupted=fewer, sites=["2.resid_post@-1"], sides=("base",)
    )
    assert value(found, "recovered:logit_difference").item() == pytest.approx(1, abs=1e-5)


def test_a_gap_that_may_be_none_has_no_interval(pair):
    found = wb.patching.activation(pair, boxes(1), sites=["resid_mid"], sides=("base",))
    rows = found.metric("recovered:log_probability")
    rows = rows[rows["arm"] == "patch"]
    assert rows["value"].notna().all()
    assert rows[["low", "high"]].isna().all(axis=None)
    assert any("picked on the one prompt that reports" in note for note in found.provenance.notes)
    assert "not meaningful" in wb.figures.headline(found)


def test_bad_partners_are_named(pair):
    prompts = boxes(4)
    fewer = PromptSet("few", prompts.prompts[:2])
    with pytest.raises(WorkbenchError, match="partner for each of 4"):
        wb.patching.activation(pair, prompts, corrupted=fewer)
    turned = PromptSet("turned", prompts.prompts[::-1])
    with pytest.raises(WorkbenchError, match="different targets"):
        wb.patching.activation(pair, prompts, corrupted=turned)
    with pytest.raises(WorkbenchError, match="denoising or noising"):
        wb.patching.activation(pair, prompts, direction="sideways")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="sides"):
        wb.patching.activation(pair, prompts, sides=("left",))
    other = PromptSet("plain", (Prompt("a", "the apple", " ball"),))
    with pytest.raises(WorkbenchError, match="question about one of several boxes"):
        wb.patching.activation(pair, other)


def named(*things: str, before: str = "the") -> PromptSet:
    """Prompts of one answer, with each thing a named place in front of two more words."""
    made = []
    for number, thing in enumerate(things):
        span = {"thing": (len(before) + 1, len(before) + 1 + len(thing))}
        text = f"{before} {thing} . the"
        made.append(Prompt(str(number), text, " cup", (" hat",), spans=span))
    return PromptSet("named", tuple(made))


ONE, TWO = named("apple", "ball", "card"), named("apple ball", "ball card", "card dice")
MIXED = named("apple", "ball card", "dice")


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize(
    ("clean", "dirty"), [(ONE, TWO), (TWO, ONE), (MIXED, ONE), (ONE, MIXED), (MIXED, MIXED)]
)
def test_a_named_place_has_one_number_of_tokens(pair, clean, dirty, batch_size):
    """Whatever the batches: in all prompts and in their partners."""
    options = {"positions": ["thing"], "batch_size": batch_size}
    for call, more in ((wb.patching.activation, {}), (wb.patching.attribution, {"exact": 1})):
        with pytest.raises(WorkbenchError, match="Span 'thing' has 1 tokens"):
            call(pair, clean, corrupted=dirty, **options, **more)
    with pytest.raises(WorkbenchError, match="Span 'thing' has 1 tokens"):
        wb.patching.path(
            pair, clean, corrupted=dirty, position="thing", batch_size=batch_size
        )  # fmt: skip
    if MIXED in (clean, dirty):
        with pytest.raises(WorkbenchError, match="Span 'thing' has 1 tokens"):
            wb.patching.cross_model(
                pair, MIXED, positions=["thing"], answer="base", batch_size=batch_size
            )


@pytest.mark.parametrize("positions", ["each", [2]])
def test_a_count_from_the_first_token_needs_partners_of_one_length(pair, positions):
    longer = named("ball", "card", "dice", before="so the")
    with pytest.raises(WorkbenchError, match="have 5 and 6 tokens"):
        wb.patching.activation(pair, ONE, corrupted=longer, positions=positions)
    # The same places counted from the end, or by name, are the same places.
    by_count, by_name = (
        value(
            wb.patching.activation(pair, ONE, corrupted=longer, positions=[p], controls=0),
            "log_probability",
        )
        for p in (-3, "thing")
    )
    torch.testing.assert_close(by_count, by_name, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_places_outside_the_shortest_prompt_are_told(pair, batch_size):
    for position in (5, -6):
        with pytest.raises(WorkbenchError, match="outside a prompt of 5 tokens"):
            wb.patching.activation(
                pair, named("apple ball", "ball"), corrupted=named("card dice", "card"),
                positions=[position], batch_size=batch_size,
            )  # fmt: skip


def test_positions_are_labelled_by_the_first_prompt_where_all_are_as_long():
    words = shipped.tokenizer()
    first, other, longer = (
        Row(text, words(text, add_special_tokens=False)["input_ids"])
        for text in ("apple in Box", "book in Box", "the book in Box")
    )
    assert [said.strip() for said in tokens_of([first, other], words)] == ["apple", "in", "Box"]
    assert tokens_of([first, longer], words) == []
