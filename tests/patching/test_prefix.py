"""Prefixes: the theorem on real models, planted prefixes, and every number by plain torch.

The oracle is transformers' own model with its prefix put into a cache by hand, layer by layer. An
adapter that does nothing does not exist among prefixes: a base against itself is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import workbench as wb
from tests.conftest import adapter, nudged
from tests.models import zoo
from tests.models.conftest import decoder
from tests.patching.conftest import WORDS, boxes, model
from tests.patching.prefixes import drawn_prefix, prefixed
from tests.tuco.conftest import write
from workbench.models import Layout, Site, capture
from workbench.patching.prefix import _range
from workbench.patching.prefixed import OWN, RUNS, SAME, Added, Layer, bias, drawn, tolerance
from workbench.patching.recalled import Attended, Prefix, called
from workbench.stats import halves
from workbench.study.catalogue import ANALYSES
from workbench.tasks import PromptSet
from workbench.tasks.batching import rows

COUNT, RANDOM = 5, 2
KINDS = ("llama", "gpt2")  # of two key-value heads for four, and of learned positions
asked = partial(wb.patching.prefix, random=RANDOM)


def made(kind: str) -> Any:
    return model() if kind == "llama" else decoder(kind, vocab_size=WORDS, n_positions=128)


def prompts() -> PromptSet:
    """Six, of two lengths."""
    parts = [boxes(3, count=count).prompts for count in (2, 3)]
    return PromptSet("boxes", tuple(one for own in parts for one in own))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, wb.CheckpointPair]:
    found = {}
    for kind in KINDS:
        own = made(kind)
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = prefixed(folder, own, drawn_prefix(own, COUNT))
    return found


@pytest.fixture(scope="module")
def results(pairs: dict[str, wb.CheckpointPair]) -> dict[str, Any]:
    return {kind: asked(pair, prompts(), batch_size=4) for kind, pair in pairs.items()}


def of(result: Any, metric: str, side: str = "tuned", *, heads: bool = True) -> pd.DataFrame:
    """Rows of the heads, or of the layers."""
    rows = result.metric(metric)
    return rows[(rows["side"] == side) & (rows["head"].notna() == heads)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_leaves_the_relative_attention_alone_where_states_are_the_same(
    kind: str, results: dict[str, Any]
):
    """The theorem, and the first layer of the two runs; deeper ones are given other states."""
    for heads in (True, False):
        same = of(results[kind], "largest_content_change", SAME, heads=heads)
        assert len(same) == (12 if heads else 3)
        assert (same["value"] < same["baseline"]).all()
        runs = of(results[kind], "largest_content_change", RUNS, heads=heads)
        first = runs[runs["layer"] == 0]
        assert (first["value"] < first["baseline"]).all()
        assert (runs[runs["layer"] > 0]["value"] > 1000 * first["baseline"].max()).all()
    assert (same["baseline"] < 1e-4).all()


class Plain:
    """One text in transformers' own Llama, with keys and values put into its cache by hand."""

    def __init__(self, own: Any, ids: list[int], numbers: Tensor) -> None:
        self.model, self.numbers = own, numbers
        self.ids = torch.tensor([ids])
        self.base = own(self.ids, output_attentions=True)

    def run(self, numbers: Tensor) -> Any:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(numbers):
            cache.update(keys[None], values[None], layer)
        return self.model(
            self.ids, past_key_values=cache, output_attentions=True, output_hidden_states=True
        )

    def layer(self, layer: int, instead: Tensor | None = None) -> dict[str, Tensor]:
        """attention (head, query, key), and what virtual tokens and all tokens add, per head
        (token, head, d_head) and behind the projection. instead: another prefix of this layer."""
        numbers = self.numbers.clone()
        if instead is not None:
            numbers[layer] = instead
        out = self.run(numbers)
        block = self.model.model.layers[layer]
        a = out.attentions[layer][0]
        states = block.input_layernorm(out.hidden_states[layer][0])
        values = block.self_attn.v_proj(states).unflatten(-1, (2, 8)).transpose(0, 1)
        whole = torch.cat([numbers[layer, 1], values], 1)[[0, 0, 1, 1]]
        bias = torch.einsum("hqp,hpd->qhd", a[..., :COUNT], whole[:, :COUNT])
        mixed = torch.einsum("hqk,hkd->qhd", a, whole)
        project = block.self_attn.o_proj.weight
        return {
            "a": a, "base": self.base.attentions[layer][0], "bias": bias, "mixed": mixed,
            "bias out": bias.flatten(1) @ project.T, "mixed out": mixed.flatten(1) @ project.T,
        }  # fmt: skip


def columns(one: dict[str, Tensor], name: str) -> Tensor:
    """Norms (token, head + 1), heads and behind them the layer."""
    sizes = one[name].norm(dim=-1)
    return torch.cat([sizes, one[f"{name} out"].norm(dim=-1)[:, None]], 1)


def test_every_number_by_plain_torch(pairs: dict[str, wb.CheckpointPair], results: dict[str, Any]):
    own, found = made("llama"), results["llama"]
    numbers = drawn_prefix(own, COUNT)
    texts = [row.ids for row in rows(pairs["llama"].base.tokenizer(), prompts())]
    plain = [Plain(own, ids, numbers) for ids in texts]
    pick, report = halves(len(texts), 0)
    for layer in range(3):
        arms = {OWN: [one.layer(layer) for one in plain]}
        for number in range(RANDOM):
            other = drawn(Prefix(*numbers[layer][:, None]), (0, layer, number))
            instead = torch.stack([other.keys[0], other.values[0]])
            arms[str(number)] = [one.layer(layer, instead) for one in plain]
        told: dict[str, list[np.ndarray]] = {}
        for read in arms.values():
            masses = torch.stack([one["a"][..., :COUNT].sum(-1).mean(1) for one in read])
            norms = torch.stack([columns(one, "bias").mean(0) for one in read])
            whole = torch.stack([columns(one, "mixed").mean(0) for one in read])
            shares = norms.sum(0) / whole.sum(0)
            along, energy = torch.zeros(5), torch.zeros(5)
            for head in range(5):
                parts = [one["bias out"] if head == 4 else one["bias"][:, head] for one in read]
                mean = torch.cat([parts[i] for i in pick]).sum(0)
                unit = mean / mean.norm()
                # Prompts weigh alike, whatever their length.
                along[head] = sum((parts[i] @ unit).square().mean() for i in report)
                energy[head] = sum(parts[i].square().sum(-1).mean() for i in report)
            mass = masses.mean(0)
            for metric, value in (
                ("prefix_mass", torch.cat([mass, mass.mean()[None]])), ("bias", norms.mean(0)),
                ("bias_share", shares), ("bias_direction", along / energy),
            ):  # fmt: skip
                told.setdefault(metric, []).append(value.numpy())
        for metric, values in told.items():
            rows_of = found.metric(metric)
            own_rows = rows_of[rows_of["layer"] == layer]
            np.testing.assert_allclose(own_rows["value"], values[0], atol=1e-5)
            np.testing.assert_allclose(own_rows["baseline"], np.mean(values[1:], 0), atol=1e-5)
            assert set(own_rows["n"]) == {3 if metric == "bias_direction" else 6}
        changes = []
        for one in arms[OWN]:
            content = one["a"][..., COUNT:]
            content = content / content.sum(-1, keepdim=True)
            changes.append((content - one["base"]).abs().sum(-1) / 2)
        means = torch.stack([change.mean(1) for change in changes]).mean(0)
        runs = of(found, "content_change", RUNS)
        np.testing.assert_allclose(runs[runs["layer"] == layer]["value"], means, atol=1e-5)
        runs = of(found, "largest_content_change", RUNS)
        most = torch.stack([change.amax(1) for change in changes]).amax(0)
        np.testing.assert_allclose(runs[runs["layer"] == layer]["value"], most, atol=1e-5)
        added = torch.cat([one["bias out"] for one in arms[OWN]]).mean(0)
        np.testing.assert_allclose(found.tensors["bias"][layer], added, atol=1e-5)


def test_values_of_zero_add_nothing_and_are_looked_at(tmp_path: Path):
    own = made("llama")
    numbers = drawn_prefix(own, COUNT)
    numbers[:, 1] = 0
    found = asked(prefixed(tmp_path, own, numbers), prompts())
    assert (found.metric("prefix_mass")["value"] > 0.05).all()
    assert (found.metric("bias")["value"] == 0).all()
    assert (found.metric("bias_share")["value"] == 0).all()
    assert found.metric("bias_direction")["value"].isna().all()
    assert any("bias_direction is undefined" in note for note in found.provenance.notes)


def test_one_virtual_token_has_one_direction(tmp_path: Path, results: dict[str, Any]):
    own = made("llama")
    found = asked(prefixed(tmp_path, own, drawn_prefix(own, 1)), prompts())
    heads = of(found, "bias_direction")
    np.testing.assert_allclose(heads["value"], 1, atol=1e-5)
    np.testing.assert_allclose(heads["baseline"], 1, atol=1e-5)  # of any prefix as short
    # Heads are attended to in turn, so that a layer has several; and so have five tokens.
    assert (of(found, "bias_direction", heads=False)["value"] < 0.999).all()
    assert (of(results["llama"], "bias_direction")["value"] < 0.999).all()


def test_keys_that_repel_leave_the_base(tmp_path: Path):
    """Queries are a constant here, and little beside; keys are far on its other side."""
    own = made("gpt2")
    numbers = drawn_prefix(own, COUNT)
    with torch.no_grad():
        for layer, block in enumerate(own.transformer.h):
            block.attn.c_attn.weight[:, :32] *= 0.01
            block.attn.c_attn.bias[:32] = 3
            block.attn.c_proj.bias += 1  # which no prefix adds
            numbers[layer, 0] = -100
    pair = prefixed(tmp_path, own, numbers)
    found = asked(pair, prompts())
    assert (found.metric("prefix_mass")["value"] == 0).all()
    assert (found.metric("bias")["value"] == 0).all()
    assert (of(found, "largest_content_change", RUNS)["value"] < 1e-6).all()
    ids = torch.tensor([rows(pair.base.tokenizer(), prompts())[0].ids])
    with pair.models() as sides:
        places = torch.arange(ids.shape[1])[None] + COUNT
        wanted = sides.base(input_ids=ids, position_ids=places).logits
        torch.testing.assert_close(sides.tuned(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_pefts_own_run(kind: str, pairs: dict[str, wb.CheckpointPair]):
    """The same logits under its hooks, and a layer that is called again gives its own bits."""
    pair = pairs[kind]
    alone = AutoModelForCausalLM.from_pretrained(
        str(pair.base.reference), attn_implementation="eager"
    )
    assert pair.tuned.lora is not None
    peft = PeftModel.from_pretrained(alone, str(pair.tuned.lora.reference)).eval()
    ids = torch.tensor([row.ids[:15] for row in rows(pair.base.tokenizer(), prompts())])
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    with pair.models() as sides:
        layout = Layout(sides.base)
        sites = [Site(site, layer) for site in ("pattern", "z") for layer in range(3)]
        before = {name: value.clone() for name, value in sides.base.state_dict().items()}
        with capture(sides.base, sites) as seen, called(layout, range(3)) as calls:
            logits = sides.tuned(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(logits, peft(input_ids=ids, attention_mask=mask).logits)
        for layer, call in calls.items():
            again = call.again(layout, call.prefix)
            assert torch.equal(again.pattern, seen[Site("pattern", layer)])
            assert torch.equal(again.z, seen[Site("z", layer)])
        after = sides.base.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in sides.base.modules()]
        assert not any(hooks)


def test_batches_padding_and_bfloat16(pairs: dict[str, wb.CheckpointPair], results: dict[str, Any]):
    once = asked(pairs["llama"], prompts(), batch_size=1).table
    whole = results["llama"].table
    assert not once["metric"].ne(whole["metric"]).any()
    rest = ~once["metric"].str.contains("content_change") | (once["value"] > 1e-4)
    np.testing.assert_allclose(once["value"][rest], whole["value"][rest], atol=2e-6)
    half = asked(pairs["llama"], prompts(), dtype="bfloat16")
    same = of(half, "largest_content_change", SAME)
    assert (same["value"] < same["baseline"]).all()
    assert (same["baseline"] > 0.01).all()  # scores are rounded to some three digits
    np.testing.assert_allclose(
        of(half, "prefix_mass", heads=False)["value"],
        of(results["llama"], "prefix_mass", heads=False)["value"], atol=0.02,
    )  # fmt: skip


def test_by_hand():
    """Two content tokens behind one virtual one of value (2, 0), two heads of one key-value head.
    The last query: .5 on the prefix, and .1 to .4; without it .2 to .8."""
    pattern = torch.tensor([[[[0.5, 0.5, 0.0], [0.5, 0.1, 0.4]], [[0.0, 1.0, 0.0], [1.0, 0, 0]]]])
    own = Attended(pattern, torch.zeros(1, 2, 2, 2))
    torch.testing.assert_close(own.content[0, 0], torch.tensor([[1.0, 0.0], [0.2, 0.8]]))
    assert own.content[0, 1, 1].tolist() == [0, 0]  # of nothing there is no share
    added = bias(own, Prefix(torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0]]]])))
    assert added[0].tolist() == [[[1, 0], [0, 0]], [[1, 0], [2, 0]]]
    eps = torch.finfo(torch.float32).eps
    rounding = tolerance(own.content, torch.float32)[0, 0]
    np.testing.assert_allclose(rounding, [4 * eps, 4 * eps * (1 + np.log(5))], rtol=1e-6)
    both = Added(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[0.0, 2.0]]]))
    assert both.sizes()[0, 0].tolist() == [5, 2]
    east = Added(torch.tensor([[7.0, 0.0]]), torch.tensor([1.0, 1.0]))
    np.testing.assert_allclose(both.along(east)[0, 0], [9, 2], rtol=1e-6)
    assert both.summed(torch.zeros(1, 1)).heads.tolist() == [[0, 0]]


def test_random_prefixes_have_the_same_norms_and_other_directions():
    own = Prefix(torch.randn(3, 2, 4, 64), 7 * torch.randn(3, 2, 4, 64))
    own = Prefix(*(part[:1].expand(3, -1, -1, -1) for part in own))
    other = drawn(own, (0, 1, 2))
    for before, after in zip(own, other, strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
        assert torch.equal(after[0], after[2])
        cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1)
        assert float(cosines.abs().max()) < 0.6
    assert torch.equal(drawn(own, (0, 1, 2)).keys, other.keys)
    assert not torch.allclose(drawn(own, (0, 1, 3)).keys, other.keys)


def test_a_layer_whose_outputs_are_no_mixture_is_refused(pairs: dict[str, wb.CheckpointPair]):
    ids = torch.tensor([rows(pairs["llama"].base.tokenizer(), prompts())[0].ids])
    with pairs["llama"].models() as sides, torch.no_grad():
        layout = Layout(sides.base)
        sites = Site("pattern", 1), Site("z", 1)
        with capture(sides.base, sites) as seen, called(layout, [1]) as calls:
            sides.tuned(input_ids=ids)
        gate = torch.linspace(0.2, 1, 8)
        own = Attended(seen[sites[0]], gate * seen[sites[1]])
        layer = Layer(layout, calls[1], own, torch.ones_like(ids).float())
        with pytest.raises(wb.WorkbenchError, match=r"layer 1 .* no such mixture"):
            layer.attention(own)
        layer._replace(own=own._replace(z=seen[sites[1]])).attention(own)


def test_what_is_no_prefix_is_refused_by_name(pairs: dict[str, wb.CheckpointPair], tmp_path: Path):
    own = made("llama")
    base = write(own, tmp_path / "base")
    lora = adapter(made("llama"), tmp_path / "lora")
    full = write(nudged(made("llama")), tmp_path / "full")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT)
    get_peft_model(own, config).save_pretrained(str(tmp_path / "prompt"))
    for tuned, says in (
        (base, "weights of its own; use patching.patterns"),
        (full, "weights of its own; use patching.patterns"),
        (lora, "is a LoRA adapter; use patching.patterns"),
        (tmp_path / "prompt", r"prompt tuning, which .* use behaviour\.tokens"),
    ):
        with pytest.raises(wb.WorkbenchError, match=says):
            asked(wb.load_pair(base, tuned), prompts())
    with pytest.raises(wb.WorkbenchError, match="at least 4 prompts"):
        asked(pairs["llama"], boxes(3))
    long = ["Box A contains the " * 31, *(one.text for one in boxes(3))]
    with pytest.raises(wb.WorkbenchError, match="after 5, of which 5 are the virtual tokens"):
        asked(pairs["gpt2"], long)
    with pytest.raises(wb.WorkbenchError, match="2 or more random prefixes, found 1"):
        asked(pairs["llama"], prompts(), random=1)


@pytest.mark.parametrize("family", ["bloom", "gemma2", "gpt_oss", "qwen3"])
def test_other_attention(family: str, tmp_path: Path):
    """Positions as biases; windows and capped scores; sinks; norms of queries and keys."""
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(zoo.config(family, vocab_size=WORDS)).eval()
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    base = write(own, tmp_path / "base")
    get_peft_model(own, config).save_pretrained(str(tmp_path / "prefix"))
    found = asked(wb.load_pair(base, tmp_path / "prefix"), prompts())
    same = of(found, "largest_content_change", SAME)
    assert (same["value"] < same["baseline"]).all()
    runs = of(found, "largest_content_change", RUNS).set_index("layer")
    assert (runs.loc[0, "value"] < runs.loc[0, "baseline"]).all()
    assert (runs.loc[2, "value"] > 1000 * runs.loc[2, "baseline"]).any()
    assert found.metric("prefix_mass")["value"].between(0.001, 0.9).all()


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba", "rwkv", "openai-gpt"])
def test_a_model_that_takes_no_keys_and_values_is_refused_by_name(family: str, tmp_path: Path):
    """peft's own model says what its base says, to the bit: it would run as if without a prefix."""
    own = AutoModelForCausalLM.from_config(zoo.config(family, vocab_size=WORDS)).eval()
    base = write(own, tmp_path / "base")
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        alone = own(ids).logits.clone()
    sizes: dict[str, Any] = {"num_layers": 3, "num_attention_heads": 4, "token_dim": 32}
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, **sizes)
    prefixed_by_peft = get_peft_model(own, config).eval()
    with torch.no_grad():
        assert torch.equal(prefixed_by_peft(input_ids=ids).logits, alone)
    prefixed_by_peft.save_pretrained(str(tmp_path / "prefix"))
    with pytest.raises(wb.WorkbenchError, match=r"takes none \(it has no past_key_values"):
        asked(wb.load_pair(base, tmp_path / "prefix"), prompts())


def test_no_study_asks_it_of_all_its_members():
    assert "patching.prefix" not in {one.key for one in ANALYSES}


@pytest.mark.parametrize("shares", [True, False])
def test_the_range_holds_another_prefix_in_nineteen_of_twenty(shares: bool):
    """Masses that spread over orders of magnitude, as a softmax of random scores gives them."""
    draw = np.random.default_rng(0)
    drawn = np.exp(3 * draw.standard_normal((6, 4000)))
    drawn = drawn / (1 + drawn) if shares else drawn
    low, high = _range(drawn[:5], shares)
    assert np.mean((low <= drawn[5]) & (drawn[5] <= high)) == pytest.approx(0.95, abs=0.015)
    assert _range(np.ones((5, 1)), True)[1] == 1  # one direction is all there can be
