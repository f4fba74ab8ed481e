"""A phantom has all that a change had but what was learned: norms, spectra, precision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import adapter, contents, logits, nudged, saved, tiny
from tests.models import zoo
from workbench.errors import WorkbenchError
from workbench.lab import Recipe, phantom, train
from workbench.lab.directions import exchanged, redirected, redirected_factors
from workbench.lab.phantom import phantoms
from workbench.loaders import Checkpoint, CheckpointPair, load_pair
from workbench.loaders.adapters import Factors
from workbench.results import recipes
from workbench.tasks import Prompt, PromptSet, shuffled


def changes(pair: CheckpointPair, select: str = "all") -> dict[str, torch.Tensor]:
    """Parameter -> its change, of those that changed."""
    deltas = pair.deltas(select)  # pyright: ignore[reportArgumentType]
    return {d.site.name: d.change.double() for d in deltas if d.changed}


def spectrum(change: torch.Tensor) -> torch.Tensor:
    matrix = change[:, None] if change.ndim == 1 else change
    return torch.linalg.svdvals(matrix)


def same_spectra(first: CheckpointPair, second: CheckpointPair, close: float = 1e-5) -> None:
    """Of the same parameters, and in other directions."""
    own, drawn = changes(first), changes(second)
    assert own.keys() == drawn.keys()
    for name, change in own.items():
        values, found = spectrum(change), spectrum(drawn[name])
        torch.testing.assert_close(found, values, rtol=0, atol=close * float(values[0]))
        assert float(drawn[name].norm()) == pytest.approx(float(change.norm()), rel=close)
        assert float((drawn[name] - change).norm() / change.norm()) > 0.3, name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "tied"])
def test_whole_weights_keep_every_spectrum_and_load(kind: str, tmp_path: Path):
    base = saved(tiny(kind), tmp_path / "base")
    tuned = saved(nudged(tiny(kind)), tmp_path / "tuned")
    before = contents(base), contents(tuned)
    pair = load_pair(base, tuned)
    out = phantom(pair, tmp_path / "phantom")
    made = load_pair(base, out)
    same_spectra(pair, made)
    assert before == (contents(base), contents(tuned))
    model = AutoModelForCausalLM.from_pretrained(out)
    stored = load_file(out / "model.safetensors")
    state = model.state_dict()
    assert len(state.keys() & stored.keys()) > 15  # transformers renames a head as it loads
    assert all(torch.equal(state[name], stored[name]) for name in state.keys() & stored.keys())
    torch.testing.assert_close(logits(made.tuned.load()), logits(model.eval()))
    assert made.tuned.about["phantom"] == "spectrum"
    assert made.tuned.about["kind"] == "full"
    assert "phantom" not in pair.tuned.about


def test_every_expert_keeps_its_own_spectrum(tmp_path: Path):
    """All of a layer's experts lie in one tensor, gate and up together."""
    base = saved(zoo.small("mixtral"), tmp_path / "base")
    tuned = saved(nudged(zoo.small("mixtral")), tmp_path / "tuned")
    pair = load_pair(base, tuned)
    made = load_pair(base, phantom(pair, tmp_path / "phantom"))
    assert any(site.expert is not None for site in pair.sites())
    same_spectra(pair, made)


def test_what_fine_tuning_left_alone_stays_bit_for_bit(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "base")
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5:9] += 0.1 * torch.randn(4, 32)
    tuned = saved(model, tmp_path / "tuned")
    out = phantom(load_pair(base, tuned), tmp_path / "phantom")
    own, drawn = (load_file(f / "model.safetensors") for f in (base, out))
    name = "model.layers.1.mlp.up_proj.weight"
    assert {n for n in own if not torch.equal(own[n], drawn[n])} == {name}
    rows = (own[name] != drawn[name]).any(1)
    assert rows.nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_shards_and_precision_are_the_members_own(tmp_path: Path):
    base = saved(tiny("llama").bfloat16(), tmp_path / "base")
    tuned = tmp_path / "tuned"
    nudged(tiny("llama").bfloat16(), 0.02).save_pretrained(tuned, max_shard_size="20KB")
    shards = len(list(tuned.glob("*.safetensors")))
    assert shards > 2
    pair = load_pair(base, tuned)
    out = phantom(pair, tmp_path / "phantom")
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == shards
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    own, drawn = changes(pair), changes(load_pair(base, out))
    for name, change in own.items():  # a rounded change keeps its norm, of few entries nearly
        close = 0.005 if change.ndim == 2 else 0.05
        assert float(drawn[name].norm()) == pytest.approx(float(change.norm()), rel=close), name
    state = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    told = json.loads((out / "phantom.json").read_text())
    assert 0 < told["largest_deviation_of_a_norm"] < 0.05


@pytest.mark.parametrize("options", [{}, {"rank_pattern": {"q_proj": 5}, "use_rslora": True}])
def test_a_lora_stays_a_lora_that_peft_loads(options, base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "lora", **options)
    pair = load_pair(base, lora)
    out = phantom(pair, tmp_path / "deep" / "phantom")
    made = load_pair(base, out)
    same_spectra(pair, made)
    assert made.tuned.about == pair.tuned.about | {
        "reference": made.tuned.name, "fingerprint": made.tuned.fingerprint, "phantom": "spectrum",
    }  # fmt: skip
    stored, own = (load_file(f / "adapter_model.safetensors") for f in (out, lora))
    assert {n: (t.shape, t.dtype) for n, t in stored.items()} == {
        n: (t.shape, t.dtype) for n, t in own.items()
    }
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()
    torch.testing.assert_close(logits(made.tuned.load()), logits(by_peft))
    assert Checkpoint.parse(out).base_fingerprint == pair.base.fingerprint
    for name, tensor in own.items():  # both factors are as large as they were
        values, drawn = (torch.linalg.svdvals(one) for one in (tensor, stored[name]))
        torch.testing.assert_close(drawn, values, rtol=1e-4, atol=1e-5)


def test_halves_stay_halves(base: Path, tmp_path: Path):
    lora = adapter(tiny("llama").half(), tmp_path / "lora")
    pair = load_pair(base, lora)
    out = phantom(pair, tmp_path / "phantom")
    stored = load_file(out / "adapter_model.safetensors")
    kept = load_file(lora / "adapter_model.safetensors")
    assert {n: t.dtype for n, t in stored.items()} == {n: t.dtype for n, t in kept.items()}
    same_spectra(pair, load_pair(base, out), 2e-3)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_more_than_factors_becomes_whole_weights(options, base, tmp_path):
    lora = adapter(tiny("llama"), tmp_path / "lora", **options)
    pair = load_pair(base, lora)
    out = phantom(pair, tmp_path / "phantom")
    assert (out / "model.safetensors").is_file()
    same_spectra(pair, load_pair(base, out))


def test_directions_are_uniform():
    """|<u, u'>|^2 of the first vectors is Beta(1/2, (n - 1)/2), of mean 1/n; of the factors too."""
    rows, columns, draws = 16, 20, 300
    noise = torch.Generator().manual_seed(0)
    up = torch.randn(rows, 3, generator=noise, dtype=torch.float64)
    down = torch.randn(3, columns, generator=noise, dtype=torch.float64)
    own = torch.linalg.svd(up @ down)
    for dense in (True, False):
        left, right = [], []
        for _ in range(draws):
            if dense:
                made = redirected(up @ down, noise)
            else:
                made = redirected_factors(Factors(up, down), noise).product
            u, _, vt = torch.linalg.svd(made)
            left.append(float(u[:, 0] @ own[0][:, 0]) ** 2)
            right.append(float(vt[0] @ own[2][0]) ** 2)
        for squares, size in ((left, rows), (right, columns)):
            deviation = math.sqrt(2 * (size - 1) / (size**2 * (size + 2)))
            assert abs(sum(squares) / draws - 1 / size) < 4 * deviation / math.sqrt(draws)


def test_a_seed_decides_and_others_differ(base: Path, lora: Path, tuned: Path, tmp_path: Path):
    for member in (lora, tuned):
        pair = load_pair(base, member)
        first, again, other = (
            load_pair(base, phantom(pair, tmp_path / f"{member.name}-{i}", seed=seed))
            for i, seed in enumerate((0, 0, 1))
        )
        assert first.tuned.fingerprint == again.tuned.fingerprint
        for name, change in changes(first).items():
            assert not torch.allclose(change, changes(other)[name], atol=1e-3), name


def test_layers_go_round_and_none_keeps_its_own():
    parts = {
        f"{layer}.{part}": (layer, part, (4, 4 if part == "q" else 8))
        for layer in range(5) for part in ("q", "up")
    }  # fmt: skip
    parts |= {"9.q": (9, "q", (4, 4)), "embed": (None, "embed", (10, 4))}
    for seed in range(4):
        moved = exchanged(parts, seed)
        assert sorted(moved) == sorted(moved.values()) == sorted(set(parts) - {"9.q", "embed"})
        assert all(one != other for one, other in moved.items())
        assert all(one.split(".")[1] == other.split(".")[1] for one, other in moved.items())
        taken = {name.split(".")[0]: source.split(".")[0] for name, source in moved.items()}
        assert len(set(taken.values())) == 5  # all of a layer from one layer
    assert len({tuple(exchanged(parts, seed).items()) for seed in range(8)}) > 2


@pytest.mark.parametrize("how", ["lora", "full"])
def test_moved_changes_have_their_very_values(how: str, base: Path, lora, tuned, tmp_path):
    """Of two layers each gets the other's; what is of no layer is drawn."""
    pair = load_pair(base, lora if how == "lora" else tuned)
    made = load_pair(base, phantom(pair, tmp_path / "phantom", keep="layers"))
    own, drawn = changes(pair), changes(made)
    for name, change in own.items():
        if ".layers." not in name:
            torch.testing.assert_close(
                spectrum(drawn[name]), spectrum(change), rtol=1e-5, atol=1e-5
            )
            assert not torch.allclose(drawn[name], change, atol=1e-3)
            continue
        other = name.replace(".layers.0.", ".layers.x.").replace(".layers.1.", ".layers.0.")
        other = other.replace(".layers.x.", ".layers.1.")
        torch.testing.assert_close(drawn[other], change, rtol=0, atol=1e-6)
    assert made.tuned.about["phantom"] == "layers"


QUESTIONS = PromptSet(
    "colours",
    tuple(
        Prompt(f"{i}", f"the colour of box {i} is", f" {word}", template="t")
        for i, word in enumerate("red green blue black white pink".split())
    ),
)


def test_a_recipe_is_trained_again_on_shuffled_answers(base_folder: Path, tmp_path: Path):
    recipe = Recipe.lora(
        rank=2, alpha_lr=0.01, task="colours", steps=3, batch_size=2, loss="answer", seed=4
    )
    member = train(base_folder, recipe, QUESTIONS, tmp_path / "member")
    pair = load_pair(base_folder, member)
    out = phantom(pair, tmp_path / "phantom", keep="recipe", texts=QUESTIONS, seed=7)
    told = json.loads((out / "training.json").read_text())
    expected = recipe.as_dict() | {"task": "colours, answers shuffled", "seed": 7}
    assert told["recipe"] == expected
    assert told["texts"] != json.loads((member / "training.json").read_text())["texts"]
    made = load_pair(base_folder, out)
    assert made.tuned.about["phantom"] == "recipe"
    assert changes(made).keys() == changes(pair).keys()
    again = train(
        base_folder, Recipe.from_dict(expected), shuffled(QUESTIONS, seed=7), tmp_path / "again"
    )
    assert load_pair(base_folder, again).tuned.lora is not None
    stored = [load_file(f / "adapter_model.safetensors") for f in (out, again)]
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    mixed = {"one": pair.tuned.about, "two": made.tuned.about}
    assert len(recipes.recipes(mixed)) == 2  # no further run of the member's own recipe


def test_what_is_there_is_kept_and_nothing_else_overwritten(base, lora, tmp_path):
    pair = load_pair(base, lora)
    out = phantom(pair, tmp_path / "phantom")
    before = contents(out)
    assert phantom(pair, out) == out
    assert contents(out) == before
    others: list[dict[str, Any]] = [{"seed": 1}, {"keep": "layers"}]
    for other in others:
        with pytest.raises(WorkbenchError, match="another pair, kind or seed"):
            phantom(pair, out, **other)
    with pytest.raises(WorkbenchError, match="does not hold a phantom"):
        phantom(pair, base)
    assert contents(out) == before


def test_what_has_no_phantom_is_refused_before_work(base, lora, tuned, tmp_path):
    pair, out = load_pair(base, lora), tmp_path / "none"
    with pytest.raises(WorkbenchError, match="Expected keep spectrum, layers, recipe, found 'all'"):
        phantom(pair, out, keep="all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorkbenchError, match="the weights of its base"):
        phantom(load_pair(base, base), out)
    with pytest.raises(WorkbenchError, match="a model in memory"):
        phantom(load_pair(base, nudged(tiny("llama"))), out)
    with pytest.raises(WorkbenchError, match="give texts="):
        phantom(pair, out, keep="recipe")
    with pytest.raises(WorkbenchError, match=r"not told by a training\.json"):
        phantom(pair, out, keep="recipe", texts=QUESTIONS)
    single = adapter(tiny("llama"), tmp_path / "one", layers_to_transform=[1],
                     target_modules=["q_proj"])  # fmt: skip
    with pytest.raises(WorkbenchError, match="No two layers of one"):
        phantom(load_pair(base, single), out, keep="layers")
    assert not out.exists()
    assert list(tmp_path.glob(".none*")) == []


def test_the_cache_holds_them_until_the_pair_changes(base, lora, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    pair = load_pair(base, lora, "lora-r3")
    made = phantoms(pair, 2)
    assert [*made] == ["phantom of lora-r3/1", "phantom of lora-r3/2"]
    assert len({one.fingerprint for one in made.values()}) == 2
    before = contents(tmp_path / "cache" / "phantoms")
    assert phantoms(pair, 2) == made
    assert contents(tmp_path / "cache" / "phantoms") == before
    for name, one in made.items():
        same_spectra(pair, CheckpointPair(pair.base, one, name))
    other = adapter(tiny("llama"), tmp_path / "other", seed=5)
    assert not {*phantoms(load_pair(base, other, "lora-r3"), 2).values()} & {*made.values()}
    about = {name: one.about for name, one in made.items()}
    assert recipes.recipes(about) == {"phantom of lora-r3": tuple(made)}
