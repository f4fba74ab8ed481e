"""Edges where a norm stands behind attention and MLP, or behind q and k of all heads: a head sends
its part of what the norm gives, and all edges together are still the whole of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb

import workbench as wb
from tests.conftest import nudged
from tests.models import zoo
from tests.patching.conftest import boxes, edges_of, model, paired
from tests.patching.test_attribution import MEASURE, partners
from workbench.errors import WorkbenchError
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.patching import edge_ends as ends
from workbench.patching import edges, patches
from workbench.patching.edge_runs import EdgeRun
from workbench.patching.edges import EMBEDDING
from workbench.patching.first_order import first_order, observe
from workbench.patching.frozen_norm import parts_behind
from workbench.patching.metrics import measured
from workbench.tasks.batching import Row, batch

POST = ["olmo2", "gemma2", "gemma3_text"]


def bumpy(kind: str, **more: Any) -> Any:
    """A random model whose norms have gains other than one, and whose biases are not zero."""
    made = model(kind, **more)
    draw = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return made


def runs(made: Any) -> tuple[EdgeRun, Rerun, Rerun]:
    clean, dirty = (batch(own, range(3), "cpu", 0) for own in partners(3, order="object first"))
    wanted = edges.needed(Layout(made))
    there, here = (Rerun(made, own, wanted) for own in (clean, dirty))
    return EdgeRun(made, clean, there.kept[EMBEDDING], here.kept), there, here


@pytest.mark.parametrize("kind", [*POST, "olmoe", "glm4", "cohere", "gptj"])
def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(kind):
    """Also where only q and k of all heads have a norm (OLMoE), and in parallel blocks."""
    made = zoo.small(kind)
    ids = torch.randint(3, 60, (2, 2, 7), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [[Row(str(i), row, {}, (5,), (7,)) for i, row in enumerate(own)] for own in ids]
    clean, dirty = (batch(own, range(2), "cpu", 0) for own in texts)
    layout = Layout(made)
    there, here = (Rerun(made, own, edges.needed(layout)) for own in (clean, dirty))
    every = torch.ones(len(edges.links(layout)), dtype=torch.bool)
    run = EdgeRun(made, clean, there.kept[EMBEDDING], here.kept)
    torch.testing.assert_close(run.logits(every), there.logits[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(run.logits(~every), here.logits[0], atol=2e-5, rtol=1e-5)
    assert (there.logits - here.logits).abs().max() > 0.1
    every[0] = False
    assert (run.logits(every) - there.logits[0]).abs().max() > 1e-4


def test_a_chain_through_the_norms_by_plain_torch():
    """embedding -> queries of head 1 and values of heads 0 and 1, head 1 -> logits, and the rest
    as on the corrupt prompt. OLMo 2's q is normed over all heads, and so is what attention adds."""
    made = bumpy("olmo2")
    run, there, here = runs(made)
    block, attention = made.model.layers[0], made.model.layers[0].self_attn
    size, tokens = here.kept[EMBEDDING].shape[:2]
    inside = made.model.rotary_emb(here.kept[EMBEDDING], torch.arange(tokens)[None])

    def seen(query: torch.Tensor, stream: torch.Tensor, heads: slice) -> torch.Tensor:
        """z with all keys and some values of the corrupt run."""
        corrupt = here.kept[EMBEDDING]
        key = attention.k_norm(attention.k_proj(corrupt)).view(size, tokens, 2, 8)
        value = attention.v_proj(corrupt).view(size, tokens, 2, 8).clone()
        value[:, :, heads] = attention.v_proj(stream).view(size, tokens, 2, 8)[:, :, heads]
        q, k = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *inside)
        k, v = (x.repeat_interleave(2, 1) for x in (k, value.transpose(1, 2)))
        scores = (q @ k.mT) / 8**0.5 + torch.full((tokens, tokens), -1e9).triu(1)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    def sent(z: torch.Tensor, head: int) -> torch.Tensor:
        """A head's part of what the norm gives."""
        total = attention.o_proj(z.flatten(2))
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        norm = block.post_attention_layernorm
        root = (total.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        return norm.weight * attention.o_proj(alone.flatten(2)) / root

    queries = [
        attention.q_norm(attention.q_proj(one.kept[EMBEDDING])).view(size, tokens, 4, 8)
        for one in (here, there)
    ]
    mixed = queries[0].clone()
    mixed[:, :, 1] = queries[1][:, :, 1]
    before, after = (
        sent(seen(query, stream, slice(0, 1)), 1)
        for query, stream in ((queries[0], here.kept[EMBEDDING]), (mixed, there.kept[EMBEDDING]))
    )
    last = here.kept[Site("resid_post", 2)] + after - before
    expected = made.lm_head(made.model.norm(last))[torch.arange(size), run.clean.last]
    circuit = edges_of(made, ("embedding", "0.q.h1"), ("embedding", "0.v.h0"), ("0.z.h1", "logits"))
    found = run.logits(circuit)[:, 0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (expected - here.logits[0][:, 0]).abs().max() > 1e-3
    # The other heads' parts change too, through the scale that all of them share.
    for head in (0, 3):
        circuit = edges_of(made, ("embedding", "0.v.h0"), (f"0.z.h{head}", "logits"))
        assert (run.logits(circuit) - here.logits[0]).abs().max() > 1e-5


@pytest.mark.parametrize("kind", POST)
def test_edges_add_up_over_the_heads_of_a_layer(kind):
    """To the attribution of what attention adds; an MLP's to its own."""
    made = bumpy(kind).double()
    layout = Layout(made)
    clean, dirty = (batch(own, range(2), "cpu", 0) for own in partners(2))
    links = edges.links(layout)
    adds = [Site(what, layer) for layer in range(3) for what in ("attn_out", "mlp_out")]
    kinds = edges.needed(layout) | set(adds)
    goal, start = (observe(made, own, kinds, MEASURE) for own in (clean, dirty))
    scores = edges.scores(made, goal.values, start.values, start.values, start.slopes)
    node = first_order(
        [patches.Patch((site,)) for site in adds],
        (clean, goal.values), (dirty, start.values), start.slopes,
    )  # fmt: skip
    sends = {"attn_out": "z", "mlp_out": "mlp_out"}
    for site, whole in zip(adds, node, strict=True):
        own = [
            i for i, link in enumerate(links)
            if (link.sender.kind, link.sender.layer) == (sends[site.kind], site.layer)
        ]  # fmt: skip
        torch.testing.assert_close(
            scores[own].sum(0).double(), whole.double(), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", POST)
def test_an_edge_is_the_derivative_of_that_edge_alone(kind):
    made = bumpy(kind).double()
    layout = Layout(made)
    links, kinds = edges.links(layout), edges.needed(layout)
    clean, dirty = (batch(own, range(2), "cpu", 0) for own in partners(2, count=2))
    there, here = (Rerun(made, own, kinds) for own in (clean, dirty))
    start = observe(made, dirty, kinds, MEASURE)
    for site, value in there.kept.items():  # a small step, where exact and first order agree
        there.kept[site] = here.kept[site] + 1e-3 * (value - here.kept[site])
    found = edges.scores(made, there.kept, here.kept, start.values, start.slopes) / 1e-3
    some = torch.randperm(len(links), generator=torch.Generator().manual_seed(0))[:40].tolist()
    logits = torch.cat([here.logits, edges.exact_logits(there, here, [links[i] for i in some])])
    metric = measured(logits, dirty)[MEASURE].double()
    change = (metric[1:] - metric[:1]) / 1e-3
    assert change.abs().max() > 0.05
    torch.testing.assert_close(found[some].double(), change, atol=0.02, rtol=0.02)


def test_parts_of_a_norm_by_hand():
    """(3, 4) and (0, 0) and (1, -1) of the sum (4, 3): a layer norm takes the mean out of each, and
    a root mean square norm divides by the root of 12.5; nothing at all has no part."""
    parts = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]])[:, None, None]
    square = torch.nn.RMSNorm(2, eps=1e-12)
    square.weight.copy_(torch.tensor([2.0, 1.0]))
    found = parts_behind(square, parts)[:, 0, 0]
    torch.testing.assert_close(found, parts[:, 0, 0] * torch.tensor([2.0, 1.0]) / 12.5**0.5)
    layer = torch.nn.LayerNorm(2, eps=1e-12)
    layer.bias.fill_(7.0)
    found = parts_behind(layer, parts)[:, 0, 0]
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [0.0, 0.0], [2.0, -2.0]]))
    assert torch.equal(parts_behind(square, torch.zeros(3, 1, 1, 2)), torch.zeros(3, 1, 1, 2))


def test_circuits_of_edges_in_a_model_with_norms_behind(tmp_path):
    """All edges are the whole answer in either side, and the methods run from end to end."""
    made = model("olmo2", num_hidden_layers=2)
    pair = paired(made, nudged(model("olmo2", num_hidden_layers=2), seed=1), tmp_path)
    found = wb.patching.edge_circuits(
        pair, boxes(8, order="object first", count=2), fractions=(1.0,), steps=1, random=0
    )
    share = found.metric("faithfulness").query("arm == 'patch'")["value"].to_numpy()
    assert share == pytest.approx([1.0] * 4, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("codegen", "not just the stream"), ("bloom", "not just the stream"),
        ("deepseek_v3", "not just the stream"), ("gemma4_text", "no heads that add"),
        ("mamba", "no heads that add"),
    ],
)  # fmt: skip
def test_what_has_no_edges_says_so(family, says):
    with pytest.raises(WorkbenchError, match=f"{says}.*leave edges out"):
        edges.links(Layout(zoo.small(family)))


def test_what_a_projection_adds_by_itself_is_shared_by_the_heads():
    """Behind a norm its part changes with the scale, so that it belongs to some of them."""
    made = bumpy("olmo2", attention_bias=True)
    run, there, _ = runs(made)
    every = torch.ones(len(edges.links(run.layout)), dtype=torch.bool)
    torch.testing.assert_close(run.logits(every), there.logits[0], atol=2e-5, rtol=1e-5)
    z, block = there.kept[Site("z", 1)], made.model.layers[1]
    whole = block.post_attention_layernorm(block.self_attn.o_proj(z.flatten(2)))
    found = ends.heads_add(run.layout, 1, z).sum(0)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
