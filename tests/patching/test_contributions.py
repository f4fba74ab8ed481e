"""Direct logit attribution: the parts add up exactly, and each is what plain torch makes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import MOVER, boxes, copier, model, paired, planted, said
from workbench.patching.contributions import CHANGE, differences
from workbench.patching.frozen_norm import frozen
from workbench.results.result import Result
from workbench.tasks.batching import Row, encode

PARTS = ("embedding", "head", "attn_out", "mlp_out", "mixer_out", "other_out", "bias")


def of(result: Result, side: str, component: str, **where: int) -> float:
    """The one value of a component, among the means over all prompts."""
    rows = result.metric("contribution")
    rows = rows[(rows["side"] == side) & (rows["component"] == component) & rows["arm"].isna()]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def summed(result: Result, side: str) -> float:
    rows = result.metric("contribution")
    rows = rows[(rows["side"] == side) & rows["arm"].isna() & rows["component"].isin(PARTS)]
    return float(rows["value"].sum())


def gap(made, pair: wb.CheckpointPair, prompts) -> float:
    """Mean logit of the answer's first token less the mean of the foils', by transformers."""
    words, found = pair.base.tokenizer(), []
    for prompt in prompts:
        own = encode(words, prompt)
        with torch.no_grad():
            logits = made(torch.tensor([own.ids[: own.start]])).logits[0, -1]
        foils = [encode(words, wb.tasks.Prompt("", prompt.prompt, f)) for f in prompt.foils]
        others = [one.ids[one.start] for one in foils]
        found.append(float(logits[own.ids[own.start]] - logits[others].mean()))
    return float(np.mean(found))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "mistral"])
def test_the_parts_add_up_to_the_logit_difference(tmp_path, kind):
    """Over norms with and without centring, parallel blocks, norms behind the sublayers, biases."""
    base = model(kind)
    pair, prompts = paired(base, nudged(model(kind), seed=1), tmp_path), boxes(5, count=None)
    found = wb.patching.contributions(pair, prompts, batch_size=2)
    for side in ("base", "tuned", CHANGE):
        assert summed(found, side) == pytest.approx(of(found, side, "total"), abs=1e-4)
    if kind != "gemma2":  # whose logits are capped behind the head
        assert of(found, "base", "total") == pytest.approx(gap(base, pair, prompts), abs=1e-4)
    change = of(found, "tuned", "total") - of(found, "base", "total")
    assert of(found, CHANGE, "total") == pytest.approx(change, abs=1e-5)


def test_every_part_by_plain_torch(tmp_path):
    """c . g by the definition: the part, at the scale of the final norm, times the unembedding."""
    base = model()
    pair, prompts = paired(base, nudged(model(), seed=1), tmp_path), boxes(4, count=None)
    found = wb.patching.contributions(pair, prompts)
    words, layer, head, wide = pair.base.tokenizer(), 1, 2, 8
    seen: dict[str, torch.Tensor] = {}
    block = base.model.layers[layer]
    hooks = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda m, a: seen.update(z=a[0][0, -1])),
        block.mlp.register_forward_hook(lambda m, a, out: seen.update(mlp=out[0, -1])),
        base.model.norm.register_forward_pre_hook(lambda m, a: seen.update(last=a[0][0, -1])),
    ]
    told: dict[str, list[float]] = {"head": [], "mlp": [], "embedding": []}
    for prompt in prompts:
        own = encode(words, prompt)
        with torch.no_grad():
            base(torch.tensor([own.ids[: own.start]]))
        foils = [encode(words, wb.tasks.Prompt("", prompt.prompt, f)) for f in prompt.foils]
        unembed = base.get_output_embeddings().weight
        way = unembed[own.ids[own.start]] - unembed[[f.ids[f.start] for f in foils]].mean(0)
        size = (seen["last"].square().mean() + base.config.rms_norm_eps).sqrt()
        way = way * base.model.norm.weight / size
        part = slice(wide * head, wide * (head + 1))
        added = block.self_attn.o_proj.weight[:, part] @ seen["z"][part]
        told["head"].append(float(added @ way))
        told["mlp"].append(float(seen["mlp"] @ way))
        told["embedding"].append(
            float(base.model.embed_tokens.weight[own.ids[own.start - 1]] @ way)
        )
    for hook in hooks:
        hook.remove()
    where = {"layer": layer}
    assert of(found, "base", "head", head=head, **where) == pytest.approx(np.mean(told["head"]))
    assert of(found, "base", "mlp_out", **where) == pytest.approx(np.mean(told["mlp"]))
    assert of(found, "base", "embedding") == pytest.approx(np.mean(told["embedding"]))


def test_the_mover_of_a_hand_built_circuit_writes_the_answer(tmp_path):
    """Of the copier's two heads only MOVER writes what the model's head reads: all of the logit
    difference is its own, none of it the reader's, and of another prompt's object it says nothing
    good."""
    made = copier()
    found = wb.patching.contributions(paired(made, made, tmp_path), said())
    total = of(found, "base", "total")
    assert total > 1
    assert of(found, "base", "head", layer=MOVER[0], head=MOVER[1]) == pytest.approx(
        total, rel=1e-4
    )
    rows = found.metric("contribution")
    heads = rows[(rows["component"] == "head") & (rows["side"] == "base")]
    others = heads[~((heads["layer"] == MOVER[0]) & (heads["head"] == MOVER[1]))]
    np.testing.assert_allclose(others["value"], 0, atol=1e-5)
    own = heads[(heads["layer"] == MOVER[0]) & (heads["head"] == MOVER[1])]
    assert own["baseline"].iloc[0] < 0.2 * total
    change = rows[rows["side"] == CHANGE]
    assert change["value"].abs().max() < 1e-6  # a model against itself


def test_a_scaled_mlp_is_picked(tmp_path):
    """The last layer's down projection times 3: nothing before it changes what it adds."""
    pair = planted(tmp_path, 2, "down", factor=3.0)
    found = wb.patching.contributions(pair, boxes(12))
    rows = found.metric("contribution")
    picked = rows[rows["arm"] == "picked"].iloc[0]
    assert picked["component"] in ("mlp_out", "embedding")
    found = wb.patching.contributions(pair, boxes(1))  # one prompt has one scale of the norm
    mlp = of(found, "tuned", "mlp_out", layer=2) / of(found, "base", "mlp_out", layer=2)
    scale = of(found, "tuned", "embedding") / of(found, "base", "embedding")
    assert mlp / scale == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_a_frozen_norm_is_its_own_gain_over_its_own_scale(centred):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(7) if centred else torch.nn.RMSNorm(7, eps=1e-6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(7))
        given = torch.randn(3, 7) + 0.5
        made = norm(given)
        linear = frozen(norm, given, made)
        way = torch.randn(3, 7)
        back = (linear.back(way) * given).sum(-1) + way @ linear.bias
    assert linear.centred == centred
    torch.testing.assert_close(back, (way * made).sum(-1), atol=1e-5, rtol=1e-5)
    with pytest.raises(wb.WorkbenchError, match="linear at a fixed scale"):
        frozen(torch.nn.Tanh(), given, given.tanh())


def test_differences_by_hand():
    logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 3.0, 6.0]])
    rows = [Row("a", [0], answer=(2,), foils=(0, 1)), Row("b", [0], answer=(1,))]
    assert differences(logits, rows).tolist() == [4.5, 0.0]
