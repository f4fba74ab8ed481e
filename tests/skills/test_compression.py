"""Bits by hand for every arm; the ends bit for bit; more bits, more of the change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.conftest import adapter
from tests.patching.conftest import model
from tests.skills.conftest import (
    APPLE,
    JOBS,
    NAME,
    PLACES,
    asked,
    mute,
    no_gradients,  # noqa: F401
    paired,
    planted,
    value,
    write,
)
from tests.skills.conftest import member as changed
from workbench.models import edit, truncated
from workbench.models.edits import TIERS
from workbench.skills.compression import (
    _masked,
    _projected,
    compression,
    mask_bits,
    one_bit_bits,
    rank_bits,
    tier_bits,
    width,
)

PROMPTS = asked(PLACES, "apple", 8)


def small(how: str, folder: Path):
    """A member of `mute` that changed in all matrices of its blocks, by noise or LoRA."""
    if how == "full":
        return paired(mute(), changed({}, noise=0.01), folder).held()
    base = write(mute(), folder / "base")
    return wb.load_pair(base, adapter(mute(), folder / "lora")).held()


def sites_of(pair) -> list:
    return [s for s in pair.sites("all") if pair.delta(s).changed]


def test_bits_by_hand():
    assert rank_bits((32, 48), 2) == 16 * 2 * 80
    assert one_bit_bits(32 * 48, 32 * 48) == 32 * 48 + 16
    assert one_bit_bits(5, 2) == pytest.approx(2 + math.log2(10) + 16)
    # 2 triplets at 8 bits, 32 at 3 and 6 of 968 at 2; two scales of 16 bits each
    assert tier_bits((4096, 5000), 40) == (2 * 8 + 32 * 3 + 6 * 2) * 9096 + 40 * 32
    # 48 / 4096 of them: 0.02 and 0.4, of which one each, and 11.3
    assert tier_bits((48, 64), 40) == (8 + 3 + 11 * 2) * 112 + 13 * 32
    assert tier_bits((48, 64), 1) == 8 * 112 + 32
    assert tier_bits((48, 64), 5, [(2, 4)]) == 2 * (4 * 112 + 32)
    assert mask_bits(2, 5) == pytest.approx(32 + math.log2(10))
    assert mask_bits(5, 5) == pytest.approx(80)


def test_an_index_costs_the_entropy():
    n, share = 10**7, 0.1
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert mask_bits(n // 10, n) / n == pytest.approx(16 * share + entropy, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(1, 500))
def test_bits_grow(rows: int, columns: int, rank: int, chosen: int):
    shape, total = (rows, columns), 1000
    assert 0 < rank_bits(shape, rank) < rank_bits(shape, rank + 1)
    assert 0 < tier_bits(shape, rank, TIERS) < tier_bits(shape, rank + 1, TIERS)
    assert tier_bits(shape, rank) <= tier_bits(shape, rank + 1)
    assert 16 * chosen <= mask_bits(chosen, total) < mask_bits(chosen + 1, total)
    assert one_bit_bits(total, total) == total + 16
    assert one_bit_bits(total, chosen) < one_bit_bits(total, chosen + 1)


def test_every_arm_of_a_full_member_by_hand(tmp_path: Path):
    tuned = changed({}, noise=0.01)
    tuned.model.layers[0].input_layernorm.weight.mul_(2)
    pair = paired(mute(), tuned, tmp_path).held()
    shapes = [tuple(pair.delta(s).base.shape) for s in sites_of(pair)]
    assert (32,) in shapes
    matrices = [s for s in shapes if len(s) == 2]
    entries = sum(math.prod(s) for s in shapes)
    total = sum(p.numel() for p in mute().parameters())
    found = compression(pair, PROMPTS, ranks=[1, 500], sparsities=[0.01, 1.0], random=1)
    bits = {
        arm: rows.sort_values("x")["value"].tolist()
        for arm, rows in found.metric("bits").groupby("arm")
    }
    assert bits["base"] == [0]
    assert bits["tuned"] == [16 * entries]
    assert bits["1-bit"] == [16 * 32 + sum(math.prod(s) + 16 for s in matrices)]
    widest = max(min(s) for s in matrices)
    assert bits["rank"] == [
        16 * 32 + sum(16 * min(k, *s) * sum(s) for s in matrices) for k in (1, widest)
    ]
    assert bits["tiered"] == [16 * 32 + sum(tier_bits(s, min(s)) for s in matrices)]
    few = round(0.01 * total)
    logs = [math.comb(entries, n) for n in (few, entries)]
    wanted = [16 * n + math.log2(c) for n, c in zip((few, entries), logs, strict=True)]
    for arm in ("movement", "principal", "random"):
        assert bits[arm] == pytest.approx(wanted)
    sizes = found.metric("bits")
    assert np.allclose(sizes["x"] * total, sizes["value"])
    assert value(found, "N") == total
    ratios = found.metric("ratio")
    assert np.allclose(ratios["value"], 16 * entries / (ratios["x"] * total))


def test_what_every_arm_makes_of_a_sparse_change_by_hand(tmp_path: Path):
    """Five entries of a full matrix and one vector moved. The bits are those of the change: where
    the base has numbers, the tuned matrix has them too."""
    base, tuned = model(), model()
    matrix, vector = (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.input_layernorm.weight",
    )
    moved = {(0, 0): 0.5, (3, 1): -0.25, (9, 30): 0.75, (31, 2): -1.5, (20, 20): 1.0}
    for place, by in moved.items():
        tuned.get_parameter(matrix)[place] += by
    tuned.get_parameter(vector).add_(torch.linspace(-1, 1, 32))
    before = {name: base.get_parameter(name).double().numpy() for name in (matrix, vector)}
    after = {name: tuned.get_parameter(name).double().numpy() for name in (matrix, vector)}
    change = {name: after[name] - before[name] for name in before}
    assert np.count_nonzero(after[matrix]) == 32 * 32
    pair = paired(base, tuned, tmp_path).held()
    sites = sites_of(pair)
    total = sum(p.numel() for p in base.parameters())
    made = {
        (one.about["arm"], one.about.get("rank") or one.about.get("sparsity")): one
        for one in (*_projected(pair, sites, [2]), *_masked(pair, sites, total, [4 / total], 1, 0))
    }

    def stored(*key: object) -> tuple[float, dict[str, np.ndarray]]:
        tensors = made[key].edits[0]().tensors()
        found = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        return made[key].bits, {name: found.get(name, before[name]) for name in before}

    left, values, right = np.linalg.svd(change[matrix])
    low = before[matrix] + (left[:, :2] * values[:2]) @ right[:2]
    signs = np.sign(change[matrix]) * np.mean([0.5, 0.25, 0.75, 1.5, 1.0])
    largest = np.argsort(-np.abs(np.concatenate([change[matrix].ravel(), change[vector]])))[:4]
    kept = np.zeros(32 * 33)
    kept[largest] = 1
    kept = {matrix: kept[: 32 * 32].reshape(32, 32), vector: kept[32 * 32 :]}
    expected = {
        ("rank", 2): (16 * 32 + 16 * 2 * 64, {matrix: low, vector: after[vector]}),
        ("1-bit", None): (
            16 * 32 + 5 + math.log2(math.comb(1024, 5)) + 16,
            {matrix: before[matrix] + signs, vector: after[vector]},
        ),
        ("movement", 4 / total): (
            16 * 4 + math.log2(math.comb(1024 + 32, 4)),
            {name: np.where(kept[name], after[name], before[name]) for name in before},
        ),
    }
    for key, (bits, tensors) in expected.items():
        told, found = stored(*key)
        assert told == pytest.approx(bits), key
        for name, tensor in tensors.items():
            np.testing.assert_allclose(found[name], tensor, atol=1e-5, err_msg=str((key, name)))
    told, found = stored("tiered", None)
    assert told == 16 * 32 + tier_bits((32, 32), 32)
    np.testing.assert_allclose(found[vector], after[vector], atol=1e-6)
    # LIFT's entries: of the base's best rank 8, the largest, and the vector's own size.
    left, values, right = np.linalg.svd(before[matrix])
    principal = np.abs((left[:, :8] * values[:8]) @ right[:8])
    sizes = np.concatenate([principal.ravel(), np.abs(before[vector])])
    taken = np.zeros(32 * 33)
    taken[np.argsort(-sizes, kind="stable")[:4]] = 1
    _, found = stored("principal", 4 / total)
    np.testing.assert_allclose(
        found[vector], np.where(taken[32 * 32 :], after[vector], before[vector]), atol=1e-6
    )


def test_an_adapter_stores_its_factors(tmp_path: Path):
    pair = small("lora", tmp_path)
    found = compression(pair, PROMPTS, ranks=[1, 2, 3, 8], sparsities=[0.01], random=1)
    shapes = [pair.delta(s).base.shape for s in sites_of(pair)]
    stored = 16 * sum(3 * sum(shape) for shape in shapes)
    bits = found.metric("bits").set_index("arm")["value"]
    assert bits["adapter"] == stored
    # No rank beyond the adapter's own three, which costs what the adapter does.
    assert bits["rank"].tolist() == [stored / 3, stored * 2 / 3, stored]
    assert bits["tiered"] == sum(tier_bits(shape, 3) for shape in shapes)
    for metric in ("score", "log_probability"):
        ends = [value(found, metric, arm=arm) for arm in ("tuned", "adapter")]
        assert ends[0] == ends[1]


@pytest.mark.parametrize("how", ["full", "lora"])
def test_full_rank_and_full_sparsity_are_the_tuned_model(how: str, tmp_path: Path):
    pair = small(how, tmp_path)
    sites = sites_of(pair)
    *_, widest = [one for one in _projected(pair, sites, [1, 500]) if one.about["arm"] == "rank"]
    for name, tensor in widest.edits[0]().tensors().items():
        site = next(s for s in sites if s.name == name)
        torch.testing.assert_close(tensor, pair.delta(site).tuned, atol=1e-5, rtol=0)
    total = sum(pair.delta(s).base.numel() for s in pair.sites("all"))
    for one in _masked(pair, sites, total, [1.0], 2, 0):
        for make in one.edits:
            tensors = make().tensors()
            assert tensors.keys() == {s.name for s in sites}
            assert all(torch.equal(tensors[s.name], pair.delta(s).tuned) for s in sites)


def test_random_masks_overlap_at_their_density(tmp_path: Path):
    pair = small("full", tmp_path)
    sites = sites_of(pair)
    total = sum(pair.delta(s).base.numel() for s in sites)
    (one,) = [m for m in _masked(pair, sites, total, [0.2], 2, 0) if m.about["arm"] == "random"]
    first, second = (make().tensors() for make in one.edits)
    taken = [
        torch.cat([(t[s.name] != pair.delta(s).base).flatten() for s in sites])
        for t in (first, second)
    ]
    assert all(int(t.sum()) == round(0.2 * total) for t in taken)
    both = float((taken[0] & taken[1]).sum()) / total
    assert both == pytest.approx(0.04, abs=0.005)


def test_one_decomposition_a_matrix(tmp_path: Path, monkeypatch):
    pair = small("full", tmp_path)
    sites, calls = sites_of(pair), []
    plain = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or plain(*a, **k))
    for one in _projected(pair, sites, [1, 2, 4]):
        one.edits[0]().tensors()
    assert len(calls) == len([s for s in sites if pair.delta(s).base.ndim > 1])


def test_factors_give_the_same_truncation(tmp_path: Path):
    pair = small("lora", tmp_path)
    delta = pair.delta(sites_of(pair)[0])
    assert width(delta) == 3
    left, values, right = torch.linalg.svd(delta.change, full_matrices=False)
    low = truncated(2)(delta)
    torch.testing.assert_close(low, (left[:, :2] * values[:2]) @ right[:2], atol=1e-5, rtol=1e-4)


def test_a_change_of_rank_one_needs_rank_one(tmp_path: Path):
    pair = planted(tmp_path, {(APPLE, PLACES): 3.0})
    found = compression(pair, PROMPTS, ranks=[1], sparsities=[1e-4, 0.01], random=2)
    assert value(found, "score", arm="base") == 0
    for arm in ("tuned", "rank", "1-bit"):  # the scale is of the one entry that changed
        assert value(found, "score", arm=arm) == 1
    assert value(found, "bits", arm="1-bit") == pytest.approx(1 + math.log2(32 * 48) + 16)
    scores = found.metric("score").set_index(["arm", "sparsity"])["value"]
    assert scores["movement", 1e-4] == 1
    assert scores["random", 1e-4] == 0
    # Of its parameters, only the one that changed is stored.
    assert found.metric("bits").set_index("arm")["value"]["tuned"] == 16 * 32 * 48
    assert edit(pair).tensors().keys() == {NAME}


def test_batches_change_nothing(tmp_path: Path):
    pair, options = small("lora", tmp_path), {"ranks": [2], "sparsities": [0.05], "random": 2}
    ways = [compression(pair, PROMPTS, batch_size=n, **options).table for n in (3, 32)]
    assert np.allclose(ways[0]["value"], ways[1]["value"], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"ranks": [0]}, "ranks of at least 1"), ({"sparsities": [0.0]}, "sparsities in"),
     ({"sparsities": [1.5]}, "sparsities in"), ({"random": 0}, "1 random mask")],
)  # fmt: skip
def test_errors(wrong: dict, told: str, tmp_path: Path):
    with pytest.raises(wb.WorkbenchError, match=told):
        compression(planted(tmp_path, {(APPLE, PLACES): 3.0}), PROMPTS, **wrong)


def test_a_base_against_itself_has_nothing_to_compress(tmp_path: Path):
    with pytest.raises(wb.WorkbenchError, match="no change to compress"):
        compression(planted(tmp_path, {}), PROMPTS)


def first_energy(model: Any, words: Any, prompt: Any) -> float:
    """-log sum exp of the logits behind a prompt, by plain torch."""
    with torch.no_grad():
        logits = model(**words(prompt.prompt, return_tensors="pt")).logits[0, -1].double()
    return -float(torch.log(torch.exp(logits).sum()))


def test_whole_matrices_are_truncated_and_all_of_them_is_the_tuned_model(tmp_path: Path):
    """Share 1 is the tuned model's answers, a half those of a copy truncated by numpy; how well
    confidence tells the sets apart, by counting pairs."""
    tuned = changed({(APPLE, PLACES): 3.0}, noise=0.02)
    pair = paired(mute(), tuned, tmp_path)
    task, other = asked(PLACES, "apple", 8), asked(JOBS, "book", 6)
    known = {"ranks": (1,), "sparsities": (0.5,), "random": 1}
    found = wb.skills.compression(pair, task, others=[other], whole=(0.5, 1.0), **known)
    words, table = pair.base.tokenizer(), found.table
    for share in (0.5, 1.0):
        copy = changed({(APPLE, PLACES): 3.0}, noise=0.02)
        for name, parameter in copy.named_parameters():
            if "layers" in name and parameter.ndim > 1:
                u, s, vt = np.linalg.svd(parameter.detach().double().numpy(), full_matrices=False)
                k = math.ceil(share * len(s))
                parameter.copy_(torch.from_numpy((u[:, :k] * s[:k]) @ vt[:k]))
        sides = [wb.tasks.answers(copy, words, one) for one in (task, other)]
        rows = table[(table["arm"] == "whole") & (table["sparsity"] == share)]
        for one, side in zip((task, other), sides, strict=True):
            own = rows[(rows["metric"] == "log_probability") & (rows["task"] == one.name)]
            assert own["value"].iloc[0] == pytest.approx(side["log_probability"].mean(), abs=1e-3)
        sure = [side["confidence"].to_numpy(float) for side in sides]
        above = np.mean([(a > b) + (a == b) / 2 for a in sure[0] for b in sure[1]])
        energy = [[first_energy(copy, words, prompt) for prompt in one] for one in (task, other)]
        for side, one in zip(sides, energy, strict=True):
            np.testing.assert_allclose(side["energy"], one, atol=1e-4)
        lower = np.mean([(a < b) + (a == b) / 2 for a in energy[0] for b in energy[1]])
        (area,) = rows[rows["metric"] == "energy_auroc"].to_dict("records")
        assert area["value"] == pytest.approx(lower, abs=0.05)
        (area,) = rows[rows["metric"] == "auroc"].to_dict("records")
        assert area["value"] == pytest.approx(above, abs=0.05)
        assert (area["task"], area["n"]) == (other.name, 14)
    ends = table[table["metric"] == "auroc"].set_index("arm")["value"]
    assert ends["whole"].iloc[-1] == pytest.approx(ends["tuned"], abs=0.03)
    with pytest.raises(wb.WorkbenchError, match=r"whole in \(0, 1\]"):
        wb.skills.compression(pair, task, whole=(0.0,), **known)
