"""What is planted is there, exactly as told, and nothing else."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.models.conftest import decoder
from workbench.errors import WorkbenchError
from workbench.lab import planted

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("q", [1, 3, 5, 9])
def test_spike_is_an_equal_mix_of_q_directions(base_folder, q: int) -> None:
    base = planted.read(base_folder)
    pair = planted.spike(base, strength=50, q=q, matrix=NAME, seed=1)
    u0 = torch.linalg.svd(base[NAME].double())[0][:, :32]
    u1 = torch.linalg.svd(pair.state[NAME].double())[0]
    cosines = (u1[:, 0] @ u0).abs()
    assert cosines.max().item() == pytest.approx(1 / math.sqrt(q), abs=0.02)
    assert (cosines > 0.5 / math.sqrt(q)).sum() == q
    assert pair.truth.changed == (NAME,)
    assert pair.truth.expected[NAME]["max_cosine"] == pytest.approx(1 / math.sqrt(q))
    assert (cosines.max() < 0.5) == (q > 4)


def test_low_rank_has_k_equal_singular_values_and_the_norm_asked_for(base_folder) -> None:
    base = {n: t.double() for n, t in planted.read(base_folder).items()}
    pair = planted.low_rank(base, k=3, scale=0.1)
    assert len(pair.truth.changed) == 14
    for name in pair.truth.changed:
        delta = pair.state[name] - base[name]
        values = torch.linalg.svdvals(delta)
        assert values[:3].tolist() == pytest.approx([values[0].item()] * 3, rel=1e-9)
        assert values[3:].max() < 1e-12
        assert (delta.norm() / base[name].norm()).item() == pytest.approx(0.1)


def test_sparse_changes_exactly_its_share_of_the_entries(base_folder) -> None:
    base = planted.read(base_folder)
    pair = planted.sparse(base, density=0.05, scale=0.2, matrices=[NAME])
    delta = pair.state[NAME] - base[NAME]
    assert (delta != 0).sum().item() == round(0.05 * delta.numel())
    assert pair.truth.expected[NAME]["entries"] == (delta != 0).sum().item()
    assert (delta.norm() / base[NAME].norm()).item() == pytest.approx(0.2, rel=1e-4)


def test_one_layer_leaves_every_other_tensor_the_same_object(base_folder) -> None:
    base = planted.read(base_folder)
    pair = planted.one_layer(base, layer=1, scale=0.3)
    moved = {n for n in base if pair.state[n] is not base[n]}
    assert moved == set(pair.truth.changed)
    assert moved == {n for n in base if ".layers.1." in n and base[n].ndim == 2}


def test_seed_decides(base_folder) -> None:
    first, again, other = (
        planted.low_rank(base_folder, k=2, scale=0.1, matrices=[NAME], seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first.state[NAME], again.state[NAME])
    assert not torch.equal(first.state[NAME], other.state[NAME])


def test_saved_pair_loads_as_a_model(base_folder, tmp_path) -> None:
    pair = planted.one_layer(base_folder, layer=0, scale=0.5)
    folder = pair.save(tmp_path / "tuned", base_folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[n], p) for n, p in model.state_dict().items())
    assert json.loads((folder / "truth.json").read_text())["kind"] == "one_layer"


def test_bad_requests_are_said_clearly(base_folder, tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="No matrix"):
        planted.spike(base_folder, strength=1, q=2, matrix="nowhere")
    with pytest.raises(WorkbenchError, match="q = 99"):
        planted.spike(base_folder, strength=1, q=99, matrix=NAME)
    with pytest.raises(WorkbenchError, match="density"):
        planted.sparse(base_folder, density=0, scale=1)
    with pytest.raises(WorkbenchError, match="layer 7"):
        planted.one_layer(base_folder, layer=7, scale=1)
    with pytest.raises(WorkbenchError, match="safetensors"):
        planted.read(tmp_path)


def test_a_wrapper_exchanges_two_answers_and_no_stream(tmp_path) -> None:
    base = decoder("llama")
    pair = planted.wrapper(base.state_dict(), first=7, second=9)
    assert pair.truth.changed == ("lm_head.weight",)
    delta = pair.state["lm_head.weight"] - base.state_dict()["lm_head.weight"]
    values = torch.linalg.svdvals(delta.double())
    assert values[0] > 1e-3
    assert values[1] < 1e-6 * values[0]
    wrapped = decoder("llama")
    wrapped.load_state_dict(dict(pair.state))
    ids = torch.arange(3, 20)[None]
    ours, theirs = (one(ids, output_hidden_states=True) for one in (base, wrapped))
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(a, b)
    swapped = ours.logits[..., [9, 7]]
    assert torch.allclose(theirs.logits[..., [7, 9]], swapped, atol=1e-5)
    with pytest.raises(WorkbenchError, match="two tokens"):
        planted.wrapper(base.state_dict(), first=7, second=7)


def test_an_erased_direction_is_in_no_stream() -> None:
    base = decoder("llama")
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    pair = planted.erasure(base.state_dict(), directions)
    erased = decoder("llama")
    erased.load_state_dict(dict(pair.state))
    ids = torch.arange(3, 20)[None]
    # The last of these is behind the final norm, which bends directions.
    for one, kept in ((base, True), (erased, False)):
        for stream in one(ids, output_hidden_states=True).hidden_states[:-1]:
            inside = (stream @ directions.T).abs().max().item()
            assert (inside > 1e-2) == kept
            assert kept or inside < 1e-4
    with pytest.raises(WorkbenchError, match="directions"):
        planted.erasure(base.state_dict(), directions[:, :5])
