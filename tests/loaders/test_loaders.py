"""Every way to name a checkpoint gives the same matrices, aligned with what they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.loaders import Checkpoint, Delta
from workbench.loaders.adapters import Factors
from workbench.loaders.names import ParameterSite
from workbench.loaders.weights import from_files

KINDS = ["llama", "tied", "gpt2", "neox", "phi3", "bert", "roberta", "t5", "vit"]


def changes(pair: wb.CheckpointPair, select="all") -> dict[str, torch.Tensor]:
    return {d.site.name: d.change for d in pair.deltas(select)}


@pytest.mark.parametrize("kind", KINDS)
def test_change_is_the_difference_for_every_architecture(kind: str, tmp_path: Path):
    before, after = saved(tiny(kind), tmp_path / "b"), saved(nudged(tiny(kind)), tmp_path / "t")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (before, after))
    found = changes(wb.load_pair(before, after))
    assert found.keys() == ours.keys()
    for name, change in found.items():
        expected = theirs[name] - ours[name]
        if kind == "gpt2" and ".c_" in name and expected.ndim == 2:
            expected = expected.T
        elif expected.ndim > 2:
            expected = expected.flatten(1)
        torch.testing.assert_close(change, expected)


@pytest.mark.parametrize(
    ("kind", "component", "shape"),
    [
        ("llama", "self_attn.q_proj", (32, 32)),
        ("llama", "mlp.down_proj", (32, 48)),
        ("gpt2", "attn.c_attn (q+k+v)", (96, 32)),
        ("gpt2", "mlp.c_fc", (128, 32)),
        ("neox", "attention.query_key_value (q+k+v)", (96, 32)),
        ("phi3", "mlp.gate_up_proj (gate+up)", (96, 32)),
        ("roberta", "attention.self.query", (32, 32)),
        ("bert", "intermediate.dense", (48, 32)),
        ("t5", "encoder.block.layer.0.SelfAttention.q", (32, 32)),
    ],
)
def test_components_are_out_by_in_and_fused_ones_say_so(kind, component, shape, tmp_path: Path):
    folder = saved(tiny(kind), tmp_path / "b")
    pair = wb.load_pair(folder, folder)
    found = [d for d in pair.deltas() if d.site.component == component]
    assert {d.site.layer for d in found} == {0, 1}
    assert {tuple(d.base.shape) for d in found} == {shape}


def test_the_paper_counts_six_matrices_a_layer_in_roberta(tmp_path: Path):
    folder = saved(tiny("roberta"), tmp_path / "b")
    assert len(wb.load_pair(folder, folder).sites()) == 2 * 6


def test_matrices_are_what_lies_in_the_blocks_and_has_two_sides(tmp_path: Path):
    """A row or a column is a vector; without numbered layers all matrices count."""
    shapes = {"layers.0.a": (4, 3), "layers.0.b": (1, 3), "layers.0.c": (4, 1), "layers.0.d": (4,),
              "layers.0.e": (2, 3, 1), "layers.0.f": (2, 1, 1), "embed": (5, 4)}  # fmt: skip
    for name, kept in (("blocks", shapes), ("none", {"embed": (5, 4), "norm": (4,)})):
        (tmp_path / name).mkdir()
        state = {f"{n}.weight": torch.ones(shape) for n, shape in kept.items()}
        save_file(state, tmp_path / name / "model.safetensors")
    blocks, none = (wb.load_pair(tmp_path / n, tmp_path / n) for n in ("blocks", "none"))
    assert {site.component for site in blocks.sites()} == {"a", "e"}
    assert {site.component for site in none.sites()} == {"embed"}
    assert len(blocks.sites("all")) == 7


def test_tied_weights_appear_once_in_every_kind_of_reference(tmp_path: Path):
    model = tiny("tied")
    folder = saved(model, tmp_path / "b")
    for reference in (folder, model):
        names = list(wb.Checkpoint.parse(reference).weights())
        assert "lm_head.weight" not in names
        assert names.count("model.embed_tokens.weight") == 1


def test_a_classifier_aligns_with_the_bare_encoder_it_grew_from(tmp_path: Path):
    encoder = tiny("bert")
    grown = tiny("bert-classifier")
    grown.bert.load_state_dict(encoder.state_dict(), strict=False)
    pair = wb.load_pair(saved(encoder, tmp_path / "b"), saved(grown, tmp_path / "t"))
    assert not any(d.changed for d in pair.deltas())
    unmatched = pair.check().table.query("item == 'unmatched names'")["found"].iloc[-1]
    assert "classifier" in unmatched


ADAPTERS = {
    "lora": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "patterns": ("llama", {"rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 2},
                           "alpha_pattern": {"k_proj": 11}}),
    # The first pattern that matches counts; as peft saves them, in the order of the alphabet.
    "patterns that overlap": ("llama", {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 7},
        "alpha_pattern": {"layers.0.mlp.up_proj": 3, "up_proj": 11, "[a-z]+_proj": 13.5}}),
    "biases": ("neox", {"bias": "all"}),
    "saved modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True,
                             "use_dora": True}),
    "dora embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "tied": ("tied", {}),
}  # fmt: skip


@pytest.mark.parametrize("which", ADAPTERS)
def test_an_adapters_tuned_matrices_are_those_peft_merges(which: str, tmp_path: Path):
    kind, options = ADAPTERS[which]
    folder = saved(tiny(kind), tmp_path / "b")
    lora = adapter(tiny(kind), tmp_path / "a", **options)
    oracle = PeftModel.from_pretrained(tiny(kind), str(lora)).merge_and_unload()
    merged = wb.load_pair(folder, saved(oracle, tmp_path / "m"))
    unmerged = wb.load_pair(folder, lora)
    together = wb.load_pair(folder, f"{folder}+{lora}")
    in_memory = wb.load_pair(folder, PeftModel.from_pretrained(tiny(kind), str(lora)))
    expected = changes(merged)
    moved = [name for name, change in expected.items() if change.abs().max() > 1e-3]
    named = [*options.get("target_modules", ()), *options.get("modules_to_save", ())]
    for part in ("weight", *named, *(["bias"] if "bias" in options else [])):
        assert any(part in name for name in moved), part
    for pair in (unmerged, together, in_memory):
        for name, change in changes(pair).items():
            torch.testing.assert_close(change, expected[name], atol=1e-5, rtol=1e-4)


def test_lora_keeps_its_factors_and_leaves_other_matrices_alone(base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "a", target_modules=["q_proj"])
    for delta in wb.load_pair(base, lora).deltas("all"):
        if delta.site.component == "self_attn.q_proj":
            assert delta.factors is not None
            assert delta.factors.up.shape == (32, 3)
            assert delta.norm == pytest.approx(float(delta.change.norm()), rel=1e-5)
        else:
            assert not delta.changed
            assert delta.tuned is delta.base


def test_an_adapter_of_a_classifier_stands_on_the_bare_encoder(tmp_path: Path):
    """The one's names have a prefix that the other's lack."""
    encoder, grown = tiny("bert"), tiny("bert-classifier")
    grown.bert.load_state_dict(encoder.state_dict(), strict=False)
    before = {name: tensor.clone() for name, tensor in grown.bert.state_dict().items()}
    options = {"target_modules": ["query"], "modules_to_save": ["pooler"]}
    lora = adapter(grown, tmp_path / "a", **options)
    base = saved(encoder, tmp_path / "b")
    found = {n: c for n, c in changes(wb.load_pair(base, lora)).items() if c.any()}
    stored = load_file(lora / "adapter_model.safetensors")
    for name, change in found.items():
        own = f"base_model.model.bert.{name}"
        if "query" in name:
            up, down = (stored[own.replace("weight", f"lora_{part}.weight")] for part in "BA")
            torch.testing.assert_close(change, 5 / 3 * up @ down)
        else:
            torch.testing.assert_close(change, stored[own] - before[name])
    assert found.keys() == {
        *(f"encoder.layer.{i}.attention.self.query.weight" for i in range(2)),
        "pooler.dense.weight", "pooler.dense.bias",
    }  # fmt: skip


def test_a_small_change_of_large_weights_is_not_rounded():
    site = ParameterSite("w", 0, "w")
    up, down = torch.randn(8, 2), 1e-9 * torch.randn(2, 6)
    delta = Delta(site, torch.full((8, 6), 1e3), factors=Factors(up, down))
    assert torch.equal(delta.change, up @ down)
    assert delta.norm == pytest.approx(float((up.double() @ down.double()).norm()), rel=1e-6)


def test_an_adapter_on_another_base_is_compared_with_the_given_one(base: Path, tmp_path: Path):
    other = saved(nudged(tiny("llama"), seed=9), tmp_path / "other")
    lora = adapter(nudged(tiny("llama"), seed=9), tmp_path / "a")
    merged = PeftModel.from_pretrained(nudged(tiny("llama"), seed=9), str(lora)).merge_and_unload()
    expected = changes(wb.load_pair(base, saved(merged, tmp_path / "m")))
    for name, change in changes(wb.load_pair(base, f"{other}+{lora}")).items():
        torch.testing.assert_close(change, expected[name], atol=1e-5, rtol=1e-4)


def test_an_adapter_alone_stands_on_the_base_it_names(base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "a")
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "../base"})
    )
    alone = wb.Checkpoint.parse(lora)
    assert alone.fingerprint == wb.Checkpoint.parse(f"{base}+{lora}").fingerprint


def test_shards_torch_files_and_one_safetensors_file_are_the_same(tmp_path: Path):
    model = tiny("llama")
    whole = saved(model, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    torch_folder = tmp_path / "torch"
    torch_folder.mkdir()
    (torch_folder / "config.json").write_text((whole / "config.json").read_text())
    torch.save(model.state_dict(), torch_folder / "pytorch_model.bin")
    for folder in (tmp_path / "shards", torch_folder):
        pair = wb.load_pair(whole, folder)
        assert len(pair.sites("all")) == len(model.state_dict())
        assert not any(delta.changed for delta in pair.deltas("all"))


def test_weights_are_read_one_at_a_time(base: Path, tuned: Path, monkeypatch):
    """A mapping that read everything up front would fail here."""
    opened = []
    original = wb.Checkpoint.parse(base).weights().__class__.__getitem__
    monkeypatch.setattr(
        "workbench.loaders.weights.Weights.__getitem__",
        lambda self, name: opened.append(name) or original(self, name),
    )
    deltas = wb.load_pair(base, tuned).deltas()
    assert opened == []
    next(deltas)
    assert len(opened) == 2


def test_fingerprints_follow_content_not_place(base: Path, tuned: Path, lora: Path, tmp_path: Path):
    copy = saved(tiny("llama"), tmp_path / "copy")
    prints = [wb.Checkpoint.parse(p).fingerprint for p in (base, copy, tuned, f"{base}+{lora}")]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_hub_reference_is_read_from_the_local_cache_offline(tmp_path: Path, monkeypatch):
    import huggingface_hub.constants as constants

    store = tmp_path / "hub"
    snapshot = store / "models--org--small" / "snapshots" / "abc123"
    saved(tiny("llama"), snapshot)
    (store / "models--org--small" / "refs").mkdir()
    (store / "models--org--small" / "refs" / "v1").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(store))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(store))
    found = wb.Checkpoint.parse("org/small@v1")
    assert found.revision == "v1"
    assert found.folder == snapshot
    with pytest.raises(wb.WorkbenchError, match="org/other"):
        wb.load_pair("org/small@v1", "org/other")


def test_bfloat16_is_read_at_stored_precision(tmp_path: Path):
    model = tiny("llama").to(torch.bfloat16)
    folder = saved(model, tmp_path / "b")
    delta = next(wb.load_pair(folder, folder).deltas())
    assert delta.base.dtype == torch.bfloat16
    assert delta.change.dtype == torch.float32


def test_from_files_says_shapes_before_reading(base: Path):
    info = from_files([base / "model.safetensors"]).info
    assert info["model.embed_tokens.weight"].shape == (50, 32)


def test_a_member_is_named_by_the_last_part_of_its_path(base: Path, tuned: Path, lora: Path):
    assert wb.load_pair(base, tuned).name == "tuned"
    assert wb.load_pair(base, base).name == "base"
    assert wb.load_pair(base, lora).name == wb.load_pair(base, f"{base}+{lora}").name == "lora"
    assert wb.load_pair(base, nudged(tiny("llama"))).name == "tuned"  # has no path
    for reference in (tuned, lora):
        assert wb.load_pair(base, reference, name="mine").name == "mine"


def test_a_checkpoint_knows_its_architecture_and_its_size(base, lora):
    """By transformers' own count; an adapter is known by its rank instead."""
    counted = transformers.AutoModelForCausalLM.from_pretrained(base).num_parameters()
    about = Checkpoint.parse(base).about
    assert (about["model"], about["parameters"]) == ("llama", counted)
    assert "parameters" not in Checkpoint.parse(f"{base}+{lora}").about
