"""Attribution is the patch's derivative, in nodes and in edges, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import adapter
from tests.patching.conftest import (
    MOVER,
    READER,
    boxes,
    copier,
    model,
    paired,
    planted,
    said,
    write,
)
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site, hooks, merged
from workbench.models.rerun import Rerun
from workbench.patching import edges, patches
from workbench.patching.attribution import attribution, table_of
from workbench.patching.edge_ends import matrix
from workbench.patching.first_order import Job, first_order, observe
from workbench.patching.strongest import halves
from workbench.patching.sweep import Side, measured
from workbench.stats import spearman
from workbench.tasks import PromptSet, corrupt
from workbench.tasks.batching import batch, rows

WORDS = shipped.tokenizer()
MEASURE = "logit_difference"
STEP = 0.01  # of the way; norms are float32 whatever the model is
DECODERS = ["llama", "gpt2", "gpt_neox"]


def partners(n: int = 4, **more: Any) -> tuple[list, list]:
    """Rows of clean prompts, with one foil each, and of their corrupt partners."""
    prompts = boxes(n, **more)
    one_foil = tuple(replace(p, foils=p.foils[:1]) for p in prompts)
    prompts = PromptSet(prompts.name, one_foil, prompts.seed)
    return rows(WORDS, prompts, answers=True), rows(WORDS, corrupt(prompts), answers=True)


def job(made: Any, chosen: list, steps: int = 1, own: tuple | None = None, **more: Any) -> Job:
    clean, dirty = own or partners(**more)
    ends = Side(made, dirty), Side(made, clean)
    return Job(*ends, chosen, WORDS, MEASURE, None, steps, False, 16, "cpu")


def patch_values(table: Any, metric: str = "attribution", arm: str = "patch") -> torch.Tensor:
    own = table[(table["arm"] == arm) & (table["metric"] == metric)]
    return torch.tensor(own["value"].to_numpy(float))


@pytest.mark.parametrize("kind", [*DECODERS, "gemma2"])
def test_it_is_the_derivative_of_the_patch(kind):
    """Against a finite difference, at every kind of site: one head, one neuron, some tokens."""
    made = model(kind).double()
    clean, dirty = (batch(own, [0, 1], "cpu", 0) for own in partners(2))
    sites = [
        *(Site(k, 1, position="query box") for k in ("resid_pre", "attn_out", "mlp_out")),
        *(Site(k, 1, 1, -1) for k in ("q", "k", "v", "z", "pattern")),
        *([] if kind == "gpt_neox" else [Site("resid_mid", 1, position=-1)]),
        *(Site("resid_post", 0), Site("mlp_hidden", 0, position=-1, neuron=3)),
    ]
    kinds = {site.whole for site in sites}
    goal, start = (observe(made, own, kinds, MEASURE) for own in (clean, dirty))
    chosen = [patches.Patch((site,)) for site in sites]
    found = first_order(chosen, (clean, goal.values), (dirty, start.values), start.slopes)
    for site, effect in zip(sites, found, strict=True):
        index = None if site.position is None else dirty.index(site.position)
        here = hooks.pick(site, start.values[site.whole], index)
        away = hooks.pick(site, goal.values[site.whole], index) - here
        sides = []
        for sign in (-1, 1):
            write = {site: here + sign * STEP * away}
            logits = hooks.run(made, dirty.inputs, write=write, at=dirty.index).logits
            scores = logits[torch.arange(2), dirty.last]
            answer, foil = ([r.answer[0] for r in dirty.rows], [r.foils[0] for r in dirty.rows])
            sides.append(scores[range(2), answer] - scores[range(2), foil])
        slope = (sides[1] - sides[0]) / (2 * STEP)
        torch.testing.assert_close(effect.double(), slope, atol=5e-3, rtol=0.01, msg=str(site))


def test_it_is_exact_where_the_model_is_linear():
    """Behind the last layer, without a final norm, one foil: nothing is left to bend."""
    made = model()
    made.model.norm = torch.nn.Identity()
    chosen = patches.patches(Layout(made), ["2.mlp_out@-1", "2.resid_post@-1"])
    table, _ = table_of(own := job(made, chosen), own.attributed(), 2, 0)
    exact = patch_values(table, "exact")
    torch.testing.assert_close(patch_values(table, arm="picked"), exact, atol=1e-5, rtol=1e-5)
    assert patch_values(table)[1] == pytest.approx(1, abs=1e-5)
    # With the norm the same patches bend.
    bent, _ = table_of(own := job(model(), chosen), own.attributed(), 2, 0)
    assert (patch_values(bent, arm="picked") - patch_values(bent, "exact")).abs().max() > 1e-3


def test_prompts_without_foils_are_left_out_of_what_needs_them():
    """Among others that have some: unknown, and not nothing."""
    made, (clean, dirty) = model(), partners(3, order="object first")
    chosen = patches.patches(Layout(made), ["mlp_out"], [-1])
    bare = [[replace(one[0], foils=()), *one[1:]] for one in (clean, dirty)]
    whole, some = (job(made, chosen, own=tuple(own)).attributed() for own in ((clean, dirty), bare))
    for ours, theirs in ((some.effects, whole.effects), (some.shuffled, whole.shuffled)):
        assert np.isnan(ours[:, 0]).all()
        np.testing.assert_allclose(ours[:, 1:], theirs[:, 1:], atol=1e-6)
        assert np.isfinite(theirs).all()


def test_the_edges_of_a_copy_circuit_in_earnest(tmp_path):
    """What the reader sends to the mover's values, and the mover to the logits, is all that the
    answer hangs on; what it sends the other way round, or anything else, is nothing."""
    pair = paired(copier(4), copier(4), tmp_path)
    found = attribution(
        pair, said(8), corrupted=said(8, turn=1), sites=["z"], positions="all", sides=["base"],
        edges=True, exact=60,
    ).table  # fmt: skip
    rows_of = found[(found["metric"] == "edge_exact") & (found["group"] == "top")]
    made = rows_of.set_index(["sender", "receiver"])["value"]
    layer, head = MOVER
    first = ("{}.z.h{}".format(*READER), f"{layer}.v.h{head}")
    last = (f"{layer}.z.h{head}", "logits")
    assert made[first] == pytest.approx(1, abs=1e-3)
    assert made[last] == pytest.approx(1, abs=0.05)
    rest = made.drop([first, last, ("embedding", "{}.v.h{}".format(*READER))])
    assert len(rest) > 20
    assert rest.abs().max() < 0.05


def test_a_run_against_itself_has_exactly_nothing(tmp_path):
    made, (clean, _) = model(), partners()
    chosen = patches.patches(Layout(made), ["z", "mlp_out", "k"], ["query box", -1])
    found = job(made, chosen, own=(clean, clean)).attributed()
    assert (found.effects == 0).all()
    assert np.abs(found.shuffled).max() > 0
    pair, prompts = planted(tmp_path, 1, "down"), boxes()
    null = attribution(pair, prompts, corrupted=prompts, exact=2)
    assert np.isnan(patch_values(null.table)).all()
    assert any("not meaningful" in note for note in null.provenance.notes)


def test_across_sees_a_small_change_where_it_is(tmp_path):
    pair = planted(tmp_path, 1, "down", factor=1.01)
    found = attribution(pair, boxes(), sites=["mlp_out", "z"], positions="all", sides=(),
                        across=True, exact=4)  # fmt: skip
    assert set(found.table["side"]) == {"tuned->base"}
    own = found.table[found.table["arm"] == "patch"]
    mlp = own[(own["component"] == "mlp_out") & (own["metric"] == "attribution")]
    assert mlp["value"].tolist()[0] == 0
    assert mlp["value"].tolist()[1] == pytest.approx(1, abs=0.02)
    heads = own[(own["component"] == "z") & (own["layer"] < 2) & (own["metric"] == "attribution")]
    assert (heads["value"] == 0).all()
    exact = own[(own["metric"] == "exact") & (own["component"] == "mlp_out") & (own["layer"] == 1)]
    assert exact["value"].item() == pytest.approx(1, abs=1e-3)


def test_silent_heads_have_nothing(tmp_path):
    pair = planted(tmp_path, 1, "o", factor=0.0)
    found = attribution(pair, boxes(), sites=["z", "v"], exact=2, edges=True).table
    own = found[(found["metric"] == "attribution") & (found["arm"] == "patch")]
    for side in ("base", "tuned"):
        sizes = own[own["side"] == side].groupby("layer")["value"].apply(lambda v: v.abs().max())
        assert (sizes[1] == 0) == (side == "tuned")
        assert min(sizes[0], sizes[2]) > 1e-4
    sent = found[(found["metric"] == "edge_attribution") & (found["side"] == "tuned")]
    silent = sent["sender"].str.startswith("1.z") | sent["receiver"].str.match(r"1\.[qkv]")
    assert (sent.loc[silent, "value"] == 0).all()
    assert silent.sum() > 50
    assert (sent.loc[~silent, "value"] != 0).mean() > 0.5


def test_adapters_and_merged_weights_agree(tmp_path):
    folder = write(model(), tmp_path / "base")
    lora = wb.load_pair(folder, adapter(model(), tmp_path / "lora"))
    full = wb.load_pair(folder, write(merged(lora), tmp_path / "merged"))
    options: dict[str, Any] = {"across": True, "edges": True, "exact": 3, "sites": ["z", "q"]}
    one, other = (attribution(p, boxes(), **options).table for p in (lora, full))
    base = one[(one["side"] == "base") & (one["arm"] == "patch")]["value"]
    assert base.notna().any()
    for metric in ("attribution", "exact"):
        torch.testing.assert_close(
            patch_values(one, metric), patch_values(other, metric), atol=1e-4, rtol=1e-3
        )
    key = ["side", "sender", "receiver"]
    sent = [t[t["metric"] == "edge_attribution"].set_index(key)["value"] for t in (one, other)]
    joined = sent[0].to_frame("one").join(sent[1].to_frame("other"))
    assert (joined["one"] - joined["other"]).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_padding_and_batch_size_change_nothing(tmp_path, steps):
    pair, prompts = planted(tmp_path, 1, "o"), boxes(5, count=None)
    assert len({len(row.ids) for row in rows(WORDS, prompts)}) > 1
    options: dict[str, Any] = {"exact": 0, "edges": True, "steps": steps, "sides": ["tuned"]}
    one, other = (attribution(pair, prompts, batch_size=n, **options).table for n in (1, 5))
    for metric in ("attribution", "edge_attribution"):
        torch.testing.assert_close(
            patch_values(one, metric), patch_values(other, metric), atol=1e-4, rtol=1e-3
        )


def test_integrated_gradients_are_complete():
    """The embedding's integrated attributions add up to all of clean - corrupt."""
    made = model()
    embedding = patches.patches(Layout(made), ["0.resid_pre"])
    sums = [job(made, embedding, steps).attributed() for steps in (1, 64)]
    gaps = [np.abs(found.effects.sum(0) - (found.one - found.zero)).max() for found in sums]
    assert gaps[1] < 0.02 * np.abs(sums[1].one - sums[1].zero).max()
    assert gaps[1] < 0.1 * gaps[0]


def test_gradients_are_taken_at_the_middles_of_equal_steps():
    """By autograd through the model's own embeddings, a quarter and three quarters of the way."""
    made, (clean, dirty) = model(), partners(2)
    (embedding,) = patches.patches(Layout(made), ["0.resid_pre@-1"])
    found = job(made, [embedding], 2, own=(clean, dirty)).attributed()
    for i, (one, other) in enumerate(zip(clean, dirty, strict=True)):
        ends = [made.model.embed_tokens(torch.tensor([row.ids])) for row in (other, one)]
        effect = 0.0
        for way in (0.25, 0.75):
            with torch.enable_grad():
                stream = torch.lerp(*ends, way).requires_grad_()
                last = made(inputs_embeds=stream).logits[0, -1]
                gap = last[one.answer[0]] - last[one.foils[0]]
                (slope,) = torch.autograd.grad(gap, stream)
            effect += float((slope * (ends[1] - ends[0]))[0, -1].sum()) / 2
        assert found.effects[0, i] == pytest.approx(effect, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_edges_of_a_node_add_up_to_it(kind):
    """Also with grouped-query heads (llama) and attention beside the MLP (gpt_neox)."""
    made = model(kind).double()
    layout = Layout(made)
    links, kinds = edges.links(layout), edges.needed(layout)
    clean, dirty = (batch(own, [0, 1], "cpu", 0) for own in partners(2))
    goal, start = (observe(made, own, kinds, MEASURE) for own in (clean, dirty))
    scores = edges.scores(made, goal.values, start.values, start.values, start.slopes)
    assert len(scores) == len(links) == len(set(links))
    for sender in {link.sender for link in links}:
        own = [i for i, link in enumerate(links) if link.sender == sender]
        node = first_order(
            [patches.Patch((sender,))], (clean, goal.values), (dirty, start.values), start.slopes
        )[0]
        torch.testing.assert_close(scores[own].sum(0).double(), node.double(), atol=1e-5, rtol=1e-4)
    # Nothing runs backwards, nor beside: no edge from a layer into itself but head -> MLP.
    order = {"q": 0, "k": 0, "v": 0, "mlp_out": 1, "resid_post": 2}
    assert not any(
        link.sender != edges.EMBEDDING
        and (link.sender.layer, link.sender.kind != "z")
        >= (link.receiver.layer, order[link.receiver.kind])
        for link in links
    )


@pytest.mark.parametrize("kind", DECODERS)
def test_an_edge_is_the_derivative_of_that_edge_alone(kind):
    made = model(kind).double()
    layout = Layout(made)
    links, kinds = edges.links(layout), edges.needed(layout)
    clean, dirty = (batch(own, [0, 1], "cpu", 0) for own in partners(2))
    there, here = (Rerun(made, own, kinds) for own in (clean, dirty))
    start = observe(made, dirty, kinds, MEASURE)
    found = edges.scores(made, there.kept, here.kept, start.values, start.slopes)
    for site, value in there.kept.items():  # a small step, where exact and first order agree
        there.kept[site] = here.kept[site] + 1e-3 * (value - here.kept[site])
    some = torch.randperm(len(links), generator=torch.Generator().manual_seed(0))[:40].tolist()
    logits = torch.cat([here.logits, edges.exact_logits(there, here, [links[i] for i in some])])
    metric = measured(logits, dirty)[MEASURE].double()
    change = (metric[1:] - metric[:1]) / 1e-3
    torch.testing.assert_close(found[some].double(), change, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_known_by_its_weights_as_by_asking_it(dtype):
    """Whatever else a projection is made of is asked what it gives; both are the same matrix, the
    asked one's bias left out."""

    class Asked(torch.nn.Linear):
        """Of another class, as an adapter's layer is."""

    made = model("qwen2").to(dtype).requires_grad_(False)  # has biases of queries, keys, values
    layout, like = Layout(made), torch.zeros(1, 1, made.config.hidden_size, dtype=dtype)
    for site in (Site("q", 1), Site("k", 1), Site("v", 1), Site("z", 1)):
        module = layout.module(site)
        if module.bias is not None:
            module.bias.normal_()
        known = matrix(layout, site, like)
        module.__class__ = Asked
        close = 1e-6 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(known, matrix(layout, site, like), rtol=0, atol=close)
        assert not known.requires_grad


def test_transformer_lens_has_the_same_nodes_and_edges():
    """Its query, key and value heads must be as many; its scores are by token, ours sum them."""
    from transformer_lens.tools.analysis import attribution_patching as theirs

    from workbench.models.transformer_lens import bridge

    made = model(num_key_value_heads=4)
    clean, dirty = (batch(own, [0], "cpu", 0) for own in partners(1))
    (row,) = clean.rows
    kinds = edges.needed(Layout(made))
    goal, start = (observe(made, own, kinds, MEASURE) for own in (clean, dirty))
    scores = edges.scores(made, goal.values, start.values, start.values, start.slopes)
    ours = dict(zip(edges.links(Layout(made)), scores[:, 0].tolist(), strict=True))
    with torch.enable_grad():
        found = theirs.attribution_patch(
            bridge(made, WORDS), clean.ids, dirty.ids,
            lambda logits: logits[0, -1, row.answer[0]] - logits[0, -1, row.foils[0]],
            theirs.EdgeAttributionConfig(granularity="edge"),
        )  # fmt: skip
    kind = {
        "embed": "resid_pre", "attn_head_out": "z", "mlp_out": "mlp_out", "q_input": "q",
        "k_input": "k", "v_input": "v", "mlp_in": "mlp_out", "logits": "resid_post",
    }  # fmt: skip

    def site(node: Any) -> Site:
        return Site(kind[node.kind], node.layer or 0, node.head)

    summed: dict[edges.Link, float] = {}
    for (writer, reader), score in found.edge_scores.items():
        link = edges.Link(site(writer), site(reader))
        summed[link] = summed.get(link, 0.0) + score
    assert set(summed) == set(ours)
    assert max(abs(summed[link] - ours[link]) for link in ours) < 1e-4
    sites = [Site("z", 1, head, position=t) for head in range(4) for t in range(len(row.ids))]
    own = [patches.Patch((s,)) for s in sites]
    nodes = first_order(own, (clean, goal.values), (dirty, start.values), start.slopes)[:, 0]
    for s, value in zip(sites, nodes.tolist(), strict=True):
        node = theirs.Node("attn_head_out", s.position, s.layer, s.head)
        assert value == pytest.approx(found.node_scores[node], abs=1e-4)


def test_the_exact_ones_are_chosen_on_one_half_and_ranked_on_the_other(tmp_path):
    pair, prompts = planted(tmp_path, 1, "o"), boxes(8)
    dirty = corrupt(prompts)
    parts = [
        [PromptSet("half", tuple(own.prompts[i] for i in part)) for own in (prompts, dirty)]
        for part in halves(8, 0)
    ]
    options: dict[str, Any] = {"sites": "z", "sides": ["tuned"]}
    result = attribution(pair, prompts, corrupted=dirty, exact=5, **options)
    found = result.table
    assert any("were picked on 4 prompts; their rows report the other 4" in note
               for note in result.provenance.notes)  # fmt: skip
    exact = found[found["metric"] == "exact"]
    assert exact.groupby("group").size().to_dict() == {"random": 5, "top": 5}
    by = ["layer", "head", "position"]
    picking, reporting = (
        attribution(pair, one, corrupted=other, exact=0, **options).table for one, other in parts
    )
    sizes, ours = (
        own[(own["metric"] == "attribution") & (own["arm"] == "patch")].set_index(by)["value"]
        for own in (picking, reporting)
    )
    sizes = sizes.abs().sort_values()
    top = exact[exact["group"] == "top"].set_index(by).index
    assert set(top) == set(sizes.index[-5:])
    ranked = found[found["metric"] == "rank_correlation"].set_index("group")
    expected = spearman(
        ours.loc[top].to_numpy(float), exact[exact["group"] == "top"]["value"].to_numpy()
    )
    assert ranked.loc["top", "value"] == pytest.approx(expected.value)
    assert ranked.loc["top", "n"] == 5
    picked = found[found["arm"] == "picked"].set_index(["group", *by])["value"]
    assert picked.loc["top"].to_numpy() == pytest.approx(ours.loc[top].to_numpy(float), abs=1e-5)
    assert (exact["n"] == 4).all()
    assert (found.loc[found["arm"] == "shuffled", "metric"] == "attribution").all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ()}, "Expected sides"),
        ({"across": True, "steps": 3}, "steps=1"),
        ({"steps": 0}, "at least one step"),
        ({"sites": ["head"]}, "takes z"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, options, message):
    with pytest.raises(WorkbenchError, match=message):
        attribution(planted(tmp_path, 1, "o"), boxes(2), **options)


@pytest.mark.parametrize("options", [{"edges": True}, {"steps": 2}])
def test_all_tokens_need_partners_of_one_length(tmp_path, options):
    prompts = boxes(2)
    longer = tuple(replace(p, prompt=f"the {p.prompt}", spans={}) for p in prompts)
    with pytest.raises(WorkbenchError, match="different lengths"):
        attribution(
            planted(tmp_path, 1, "o"), prompts, corrupted=PromptSet("longer", longer, 0),
            positions=[-1], **options,
        )  # fmt: skip


def test_the_plan_by_hand():
    """Three plain runs, a run with its way back (as long as two) for every step, and for every
    exact patch its own run and one for its shuffled partner; twice that where edges are patched."""
    made = model()
    chosen = patches.patches(Layout(made), "mlp_out", [-1])
    for steps, edged, exact, wanted in (
        (1, False, 7, 3 + 3 + 14), (5, False, 7, 3 + 15 + 14), (1, True, 7, 3 + 3 + 28),
        (1, False, 0, 6),
    ):  # fmt: skip
        plan = job(made, chosen, steps)._replace(edges=edged).plan(exact)
        assert (plan.forwards, plan.patches, plan.prompts) == (wanted, 3, 4)
