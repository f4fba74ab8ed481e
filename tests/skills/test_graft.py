"""Exactly the k largest whatever the ties; grafts are sets of entries, and edits bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.skills.conftest import no_gradients, pair_of  # noqa: F401
from workbench.loaders.names import ParameterSite
from workbench.models import edit
from workbench.skills import Graft, rankings
from workbench.skills.graft import count, graft_of, inside, top

numbers = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.one_of(
        st.sampled_from([0, 1, 2]), st.floats(0, 2.0**100, width=32, allow_subnormal=False)
    ),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=3), st.floats(0, 1))
def test_the_k_largest_are_chosen_under_any_ties(arrays, share: float):
    scores = {f"m{i}": torch.from_numpy(a) for i, a in enumerate(arrays)}
    sites = [ParameterSite(name, 0, "m") for name in scores]
    total = sum(a.size for a in arrays)
    k = round(share * total)
    masks = top(lambda site: scores[site.name], sites, k)
    taken = torch.cat([scores[n][m] for n, m in masks.items()])
    left = torch.cat([scores[n][~m] for n, m in masks.items()])
    assert taken.numel() == k
    assert k in (0, total) or taken.min() >= left.max()


@pytest.mark.parametrize("k", range(5))
def test_numbers_that_differ_in_their_last_bits_alone_sort(k: int):
    """The halves of the bits: 0xffff, the last of all, twice, and 0 behind one upper half."""
    bits = torch.tensor([0x3F800000, 0x3F80FFFF, 0x3F80FFFF, 0x3F7FFFFF], dtype=torch.int32)
    masks = top(lambda site: bits.view(torch.float32), [ParameterSite("m", 0, "m")], k)
    assert masks["m"].nonzero()[:, 0].tolist() == sorted([1, 2, 0, 3][:k])


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_scores_that_do_not_sort_are_refused(bad: float):
    sites = [ParameterSite("m", 0, "m")]
    with pytest.raises(wb.WorkbenchError, match="NaN or negative"):
        top(lambda site: torch.tensor([1.0, bad]), sites, 1)


def graft(name: str, a: list[int], b: list[int]) -> Graft:
    places = {"a": np.array(a, dtype=np.int64), "b": np.array(b, dtype=np.int64)}
    return Graft(name, {n: own for n, own in places.items() if len(own)}, {"a": 6, "b": 4})


def test_grafts_are_sets(tmp_path: Path):
    one, two = graft("one", [0, 2, 5], []), graft("two", [2, 3], [1])
    assert (one.total, len(one), one.share) == (10, 3, 0.3)
    either, both = one | two, one & two
    assert either.places["a"].tolist() == [0, 2, 3, 5]
    assert either.places["b"].tolist() == [1]
    assert {n: own.tolist() for n, own in both.places.items()} == {"a": [2]}
    again = Graft.load(one.save(tmp_path / "one.safetensors"))
    assert (again.name, again.fingerprint) == ("one", one.fingerprint)
    assert one.fingerprint != two.fingerprint
    with pytest.raises(wb.WorkbenchError, match="same parameters"):
        one | Graft("other", {}, {"a": 6})
    with pytest.raises(wb.WorkbenchError, match="saved graft"):
        Graft.load(tmp_path / "nothing")
    for wrong in ([0, 0, 1], [1, 0], [-1, 2], [0, 6]):
        with pytest.raises(wb.WorkbenchError, match="do not increase within its 6"):
            Graft.load(graft("bad", wrong, []).save(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_none_and_all_are_the_two_sides_bit_for_bit(kind: str, how: str, tmp_path: Path):
    pair = pair_of(kind, how, tmp_path)
    held, sites = pair.held(), inside(pair)
    everything = graft_of("all", top(rankings.movement(held), sites, count(pair)))
    nothing = graft_of("none", top(rankings.movement(held), sites, 0))
    assert (everything.share, len(nothing)) == (1, 0)
    whole = edit(pair, mask=lambda site: site.layer is not None).tensors()
    for made in (everything.edit(pair), nothing.edit(pair, outside=True), everything.edit(held)):
        found = made.tensors()
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    model = AutoModelForCausalLM.from_pretrained(pair.base.folder, dtype=torch.float32)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with nothing.edit(pair).on(model):
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_graft_and_its_complement_share_out_the_change(kind: str, tmp_path: Path):
    pair = pair_of(kind, "full", tmp_path).held()
    sites = inside(pair)
    some = graft_of("some", top(rankings.random(pair, 0), sites, count(pair) // 3))
    inner, outer = some.edit(pair).tensors(), some.edit(pair, outside=True).tensors()
    for site in sites:
        delta = pair.delta(site)
        chosen = torch.zeros(delta.base.numel(), dtype=torch.bool)
        chosen[torch.from_numpy(some.places[site.name])] = True
        chosen = chosen.view(delta.base.shape)
        assert torch.equal(inner[site.name], torch.where(chosen, delta.tuned, delta.base))
        assert torch.equal(outer[site.name], torch.where(chosen, delta.base, delta.tuned))


def test_a_held_pair_reads_each_parameter_once(tmp_path: Path, monkeypatch):
    pair = pair_of("llama", "lora", tmp_path)
    held = pair.held()
    first = {s.name: held.delta(s) for s in inside(pair)}
    monkeypatch.setattr(wb.CheckpointPair, "stored", lambda *a: pytest.fail("read twice"))
    for site in inside(pair):
        assert held.delta(site) is first[site.name]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_held_pair_shares_the_bases_parameters(kind: str, tmp_path: Path):
    pair = pair_of(kind, "full", tmp_path)
    held, model = pair.held(), pair.base.load("cpu", torch.float32)
    held.rest_on(model)
    pointers = {p.data_ptr() for p in model.parameters()}
    for site in inside(pair):
        own, plain = held.delta(site), pair.delta(site)
        assert own.base.data_ptr() in pointers
        assert torch.equal(own.base, plain.base)
        assert torch.equal(own.change, plain.change)


def test_orders_of_entries_by_hand(tmp_path: Path):
    pair = pair_of("llama", "full", tmp_path)
    site = next(s for s in inside(pair) if s.component == "mlp.up_proj")
    delta = pair.delta(site)
    moved, own = delta.change.abs(), delta.base.abs()
    assert torch.equal(rankings.movement(pair)(site), moved)
    assert torch.equal(rankings.magnitude(pair)(site), own)
    torch.testing.assert_close(rankings.relative(pair)(site), moved / (own + rankings.TINY))
    assert (rankings.smallest(pair)(site).argmax() == moved.argmin()).item()
    values = torch.linalg.svdvals(delta.base)
    low = rankings.principal(pair, rank=2)(site)
    torch.testing.assert_close(low.norm(), values[:2].norm(), rtol=1e-4, atol=1e-5)
    noise = rankings.random(pair, 0)(site)
    assert torch.equal(noise, rankings.random(pair, 0)(site))
    assert not torch.equal(noise, rankings.random(pair, 1)(site))
