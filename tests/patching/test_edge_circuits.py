"""Circuits of edges: runs with some edges alone, planted circuits, and what fine-tuning changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.patching.conftest import (
    MOVER,
    READER,
    boxes,
    copier,
    edges_of,
    model,
    paired,
    said,
)
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.lab.compiled import pairs
from workbench.models import Layout
from workbench.models.rerun import Rerun
from workbench.patching import edge_ends as ends
from workbench.patching import edges as graph
from workbench.patching.edge_circuits import _joined, area, changed
from workbench.patching.edge_runs import EdgeRun
from workbench.patching.edges import EMBEDDING
from workbench.tasks.batching import batch, rows

WORDS = shipped.tokenizer()


def runs(made: Any, prompts: Any, dirty: Any) -> tuple[EdgeRun, Rerun, Rerun]:
    """The edges of a batch, and its clean and its corrupt run."""
    here, there = (
        batch(rows(WORDS, one, answers=True), range(len(one)), "cpu", 0) for one in (prompts, dirty)
    )
    wanted = graph.needed(Layout(made))
    clean, corrupt = (Rerun(made, one, wanted) for one in (here, there))
    return EdgeRun(made, here, clean.kept[EMBEDDING], corrupt.kept), clean, corrupt


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma"])
def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(kind):
    """Also with fused projections, parallel blocks and a key-value head for several queries; and
    one edge to the logits is that edge made in earnest."""
    made, prompts = model(kind), boxes(3, order="object first")
    edges, clean, corrupt = runs(made, prompts, wb.tasks.corrupt(prompts, 0, tokenizer=WORDS))
    links = graph.links(Layout(made))
    every = torch.ones(len(links), dtype=torch.bool)
    torch.testing.assert_close(edges.logits(every), clean.logits[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(edges.logits(~every), corrupt.logits[0], atol=2e-5, rtol=1e-5)
    assert (clean.logits - corrupt.logits).abs().max() > 1e-3
    last = [i for i, link in enumerate(links) if link.receiver.kind == "resid_post"]
    chosen = [last[0], last[2], last[-1]]
    exact = graph.exact_logits(clean, corrupt, [links[i] for i in chosen])
    for place, wanted in zip(chosen, exact, strict=True):
        alone = torch.zeros_like(every)
        alone[place] = True
        # In such a circuit the sender reads the corrupt run, so only the embedding has anything.
        expected = wanted if place == last[0] else corrupt.logits[0]
        torch.testing.assert_close(edges.logits(alone), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 4], ids=["grouped-query", "a value head each"])
def test_the_edges_of_a_circuit_built_by_hand_are_enough_and_each_is_needed(heads):
    made, shared = copier(heads), 4 // heads
    planted = [
        ("embedding", f"{READER[0]}.v.h{READER[1] // shared}"),
        (f"{READER[0]}.z.h{READER[1]}", f"{MOVER[0]}.v.h{MOVER[1] // shared}"),
        (f"{MOVER[0]}.z.h{MOVER[1]}", "logits"),
    ]
    edges, clean, corrupt = runs(made, said(), said(turn=1))
    torch.testing.assert_close(edges.logits(edges_of(made, *planted)), clean.logits[0])
    for left in planted:
        kept = [edge for edge in planted if edge != left]
        torch.testing.assert_close(edges.logits(edges_of(made, *kept)), corrupt.logits[0])
        # Nor does all the rest of the model stand in for it.
        torch.testing.assert_close(edges.logits(~edges_of(made, left)), corrupt.logits[0])


def test_a_chain_by_plain_torch():
    """embedding -> MLP of layer 0 -> logits, everything else as on the corrupt prompt."""
    made, prompts = model(), boxes(2, order="object first")
    edges, clean, corrupt = runs(made, prompts, wb.tasks.corrupt(prompts, 0, tokenizer=WORDS))
    block, at = made.model.layers[0], edges.clean.last
    with torch.no_grad():
        change = clean.kept[EMBEDDING] - corrupt.kept[EMBEDDING]
        mid, last = (
            corrupt.kept[site] for site in (ends.stream_of(edges.layout, wb.models.Site("mlp_out",
            0)),
                                            wb.models.Site("resid_post", 2))
        )  # fmt: skip
        mlp = lambda stream: block.mlp(block.post_attention_layernorm(stream))  # noqa: E731
        sent = mlp(mid + change) - mlp(mid)
        expected = made.lm_head(made.model.norm(last + sent))[torch.arange(2), at]
    found = edges.logits(edges_of(made, ("embedding", "0.mlp"), ("0.mlp_out", "logits")))[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


MOVED = (READER[0], 3)  # the head that reads in the tuned model


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The copier, tuned so that another head does what READER did; the first against itself."""
    with torch.no_grad():
        base, tuned = copier(4), copier(4)
        attention = tuned.model.layers[MOVED[0]].self_attn
        for weight in (attention.v_proj.weight, attention.o_proj.weight.T):
            own, other = (slice(8 * h, 8 * h + 8) for h in (READER[1], MOVED[1]))
            weight[other], weight[own] = weight[own].clone(), 0
        pair = paired(base, tuned, tmp_path_factory.mktemp("pair"))
        same = paired(base, base, tmp_path_factory.mktemp("same"))
    three = 3 / len(graph.links(Layout(base)))
    more = {"corrupted": said(16, turn=1), "fractions": (three, 1.0), "random": 1}
    return [wb.patching.edge_circuits(one, said(16), **more) for one in (pair, same)]


def test_a_planted_circuit_is_found_and_is_faithful_where_it_is(learned):
    """The three strongest edges of each side are the planted ones; in its own side that circuit is
    the whole answer, in the other it is nothing, as a random one; without it, and so without the
    mover that both need, there is no answer."""
    found = learned[0]
    for side, (layer, head) in (("base", READER), ("tuned", MOVED)):
        top = found.metric("edge_attribution")
        top = top[top["side"] == side].sort_values("value", ascending=False)[:3]
        assert set(zip(top["sender"], top["receiver"], strict=True)) == {
            ("embedding", f"{layer}.v.h{head}"),
            (f"{layer}.z.h{head}", f"{MOVER[0]}.v.h{MOVER[1]}"),
            (f"{MOVER[0]}.z.h{MOVER[1]}", "logits"),
        }
    rows_of = found.metric("faithfulness")
    small = rows_of[rows_of["x"] == rows_of["x"].min()]
    for row in small.itertuples():
        wanted = row.arm == "patch" and row.circuit == row.side
        assert row.value == pytest.approx(float(wanted), abs=1e-4), row
    whole = rows_of[(rows_of["x"] == 1) & (rows_of["arm"] == "patch")]["value"].to_numpy()
    assert whole == pytest.approx(np.ones(4), abs=1e-4)
    # From three edges to all, f is 1 throughout, or a line from 0 to 1.
    width = 1 - float(small["x"].iloc[0])
    for name, good in (("cpr", width), ("cmd", 0.0)):
        of_patch = found.metric(name).query("arm == 'patch'")
        for row in of_patch.itertuples():
            expected = good if row.circuit == row.side else width / 2
            assert row.value == pytest.approx(expected, abs=1e-4)


def test_a_moved_head_changes_more_edges_than_nodes(learned):
    """Two of three edges, and of six nodes the head and its values."""
    found = learned[0]
    for metric, value in (("edge_change", 2 / 3), ("node_change", 1 / 3)):
        rows_of = found.metric(metric).query("arm == 'patch'").sort_values("x")
        assert rows_of["value"].to_numpy() == pytest.approx([value, 0])
        assert rows_of["low"].to_numpy() == pytest.approx([value, 0])
        assert (rows_of["baseline"].to_numpy() <= [value, 0]).all()
    apart = found.metric("edge_attribution").query("side == 'tuned - base'")
    moved = apart[apart["low"].gt(0) | apart["high"].lt(0)]
    lost = {("embedding", "0.v.h1"), ("0.z.h1", "2.v.h3")}
    assert lost <= set(zip(moved["sender"], moved["receiver"], strict=True))


def test_a_model_against_itself_has_no_change(learned):
    found = learned[1]
    for name in ("edge_change", "node_change"):
        rows_of = found.metric(name)
        assert (rows_of[["value", "low", "high"]] == 0).all(axis=None)
    apart = found.metric("edge_attribution").query("side == 'tuned - base'")
    assert (apart["value"] == 0).all()
    share = found.metric("faithfulness").query("arm == 'patch'")
    both = [share[share["side"] == side]["value"].to_numpy() for side in ("base", "tuned")]
    assert (both[0] == both[1]).all()


def test_areas_and_changes_by_hand():
    x, f = np.array([0.1, 0.5, 1.0]), np.array([0.2, 0.6, 1.2])
    assert area(x, f) == pytest.approx(0.4 * 0.4 + 0.5 * 0.9)
    assert area(x, np.abs(1 - f)) == pytest.approx(0.4 * 0.6 + 0.5 * 0.3)
    assert changed(np.array([1, 2, 3, 4]), np.array([2, 3, 9, 8])) == 0.5
    assert changed(np.array([1]), np.array([1])) == 0
    links = graph.links(Layout(model()))
    joined = _joined(links)
    assert joined.shape == (len(links), 2)
    # A head that sends and whose query receives is one node; keys and values of two are another.
    heads, shared, mlps = 3 * 4, 3 * 2, 3
    assert joined.max() + 1 == 1 + heads + shared + mlps + 1


def test_what_cannot_be_is_refused(tmp_path):
    pair = paired(copier(), copier(), tmp_path)
    some = {"corrupted": said(16, turn=1)}
    with pytest.raises(WorkbenchError, match="Expected fractions of all edges above 0"):
        wb.patching.edge_circuits(pair, said(16), fractions=(0.0, 2.0), **some)
    with pytest.raises(WorkbenchError, match="at least 8 prompts"):
        wb.patching.edge_circuits(pair, said(4))
    with pytest.raises(WorkbenchError, match="EAP follows gradients"):
        wb.patching.edge_circuits(pair, said(16), metric="score", **some)


def test_a_compiled_models_edges_are_found_where_its_base_has_none(tmp_path):
    """The base's metric does not move, so that it has no shares; the tuned model's two edges are
    known by construction, and the two strongest."""
    known = pairs(tmp_path, ["two-steps-learned"])["two-steps-learned"]
    found = wb.patching.edge_circuits(
        wb.load_pair(known.base, known.tuned), known.prompts, corrupted=known.corrupted,
        fractions=(1.0,), steps=1, random=0,
    ).table  # fmt: skip
    edges = found[(found["metric"] == "edge_attribution") & (found["side"] == "tuned")]
    first = edges.sort_values("value", ascending=False).head(len(known.places["edge"]))
    assert {*zip(first["sender"], first["receiver"], strict=True)} == known.places["edge"]
    np.testing.assert_allclose(first["value"], 1, atol=1e-3)
