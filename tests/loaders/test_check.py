"""The preflight names what is wrong and what to do; bad input is one sentence."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.loaders import CheckpointPair
from workbench.loaders.pair import SAME


def status(report, item: str) -> list[str]:
    return list(report.table[report.table["item"] == item]["status"])


def edited(folder: Path, change) -> Path:
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def raw_pair(base, tuned) -> CheckpointPair:
    return CheckpointPair(wb.Checkpoint.parse(base), wb.Checkpoint.parse(tuned))


def test_a_good_pair_has_no_stop_and_says_what_changed(base: Path, tuned: Path):
    report = wb.load_pair(base, tuned).check()
    assert report.ok
    assert report.changes is not None
    assert (report.changes["norm"] > 0).all()
    assert "21 of 21 parameters changed" in report.table["found"].iloc[-1]


def test_base_against_itself_says_every_analysis_is_null(base: Path):
    report = wb.load_pair(base, base).check()
    assert status(report, "changes") == ["warn"]
    assert any("exact null" in note for note in report.notes)


def test_another_architecture_stops(base: Path, tmp_path: Path):
    other = saved(tiny("gpt2"), tmp_path / "gpt2")
    with pytest.raises(wb.WorkbenchError, match="base is llama, tuned is gpt2"):
        wb.load_pair(base, other)


def test_nan_stops_and_names_the_parameter(base: Path, tuned: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    edited(tuned, lambda s: s | {name: s[name].fill_(float("nan"))})
    report = wb.load_pair(base, tuned).check()
    assert not report.ok
    with pytest.raises(wb.WorkbenchError, match=name):
        wb.spectral.intruders(wb.load_pair(base, tuned))


def test_inf_that_cancels_in_a_sum_is_found(base: Path, tuned: Path):
    name = "model.layers.0.mlp.up_proj.weight"

    def spoil(state):
        state[name][0, 0], state[name][1, 1] = float("inf"), float("-inf")
        return state

    edited(tuned, spoil)
    with pytest.raises(wb.WorkbenchError, match="2 NaN or inf"):
        list(wb.load_pair(base, tuned).deltas())


def test_mixed_precision_is_a_warning(base: Path, tmp_path: Path):
    half = saved(tiny("llama").to(torch.float16), tmp_path / "half")
    assert status(wb.load_pair(base, half).check(), "dtype") == ["warn"]


def test_an_adapter_for_a_wider_model_stops(base: Path, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaConfig(hidden_size=64, intermediate_size=48, num_hidden_layers=2, vocab_size=50,
                       num_attention_heads=4)  # fmt: skip
    lora = adapter(LlamaForCausalLM(wide), tmp_path / "a")
    with pytest.raises(wb.WorkbenchError, match="trained on"):
        wb.load_pair(base, lora)


def test_an_adapter_for_another_architecture_stops(base: Path, tmp_path: Path):
    lora = adapter(tiny("gpt2"), tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(wb.WorkbenchError, match="match nothing in the base"):
        wb.load_pair(base, lora)


def test_adapter_keys_that_match_nothing_are_named(base: Path, lora: Path):
    state = load_file(lora / "adapter_model.safetensors")
    for part in ("lora_A", "lora_B"):
        old = f"base_model.model.model.layers.1.mlp.up_proj.{part}.weight"
        state[old.replace("layers.1", "layers.7")] = state.pop(old)
    save_file(state, lora / "adapter_model.safetensors")
    report = wb.load_pair(base, lora).check()
    assert status(report, "adapter keys") == ["warn"]
    assert "layers.7" in "".join(report.notes)


def test_an_adapter_without_its_tensors_is_told(base: Path, lora: Path):
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(wb.WorkbenchError, match=r"adapter_model\.bin in .*, found neither"):
        wb.load_pair(base, lora)


def test_an_untrained_adapter_is_said_to_change_nothing(base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "a", init_lora_weights=True)
    pair = wb.load_pair(base, lora)
    report = pair.check()
    assert status(report, "adapter effect") == ["warn"]
    assert status(report, "changes") == ["warn"]
    assert not any(delta.changed for delta in pair.deltas("all"))


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"])
def test_a_factor_of_another_rank_than_declared_is_told(part: str, base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    file = lora / "adapter_model.safetensors"
    state = load_file(file)
    name = next(name for name in state if part in name)
    cut = state[name][:2] if part.endswith("A") else state[name][:, :2].contiguous()
    save_file(state | {name: cut}, file, metadata={"format": "pt"})
    with pytest.raises(wb.WorkbenchError, match=f"declares rank 3 for .* stores {part} of shape"):
        wb.load_pair(base, lora)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_rewrote_its_base_is_refused_with_the_call_that_converts_it(
    start: str, base: Path, lora: Path
):
    """base + BA is not the model, and base - BA not the base."""
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(wb.WorkbenchError, match="path_initial_model_for_weight_conversion"):
        wb.load_pair(base, lora)
    with pytest.raises(wb.WorkbenchError, match="path_initial_model_for_weight_conversion"):
        wb.Checkpoint.parse(f"{base}+{lora}").load()


def test_pissa_converted_by_peft_is_the_change_of_the_original_base(tmp_path: Path):
    """peft's own conversion against the merged model."""
    base = saved(tiny("llama"), tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=3, target_modules="all-linear", init_lora_weights="pissa")
    model = get_peft_model(tiny("llama"), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(
        tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    pair = wb.load_pair(base, tmp_path / "lora")
    merged = model.merge_and_unload().state_dict()
    for delta in pair.deltas():
        whole = merged[delta.site.name]
        torch.testing.assert_close(delta.tuned, whole, atol=2e-5, rtol=0)


def test_other_adapters_are_refused_with_a_remedy(base: Path, lora: Path):
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "NEWEST"}))
    with pytest.raises(wb.WorkbenchError, match="Merge it into its base"):
        wb.load_pair(base, lora)


def test_moved_token_ids_are_a_warning(base: Path, tuned: Path):
    for folder, order in ((base, "abc"), (tuned, "bac")):
        vocabulary = {token: i for i, token in enumerate(order)}
        content = {"model": {"type": "WordLevel", "vocab": vocabulary}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    assert status(wb.load_pair(base, tuned).check(), "tokenizer") == ["warn"]


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def empty(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def truncated(folder: Path) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def broken_config(folder: Path) -> Path:
    (folder / "config.json").write_text("{")
    return folder


def shard_gone(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def outside(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "../base/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


class Boom:
    def __reduce__(self):
        return (print, ("code of a checkpoint was run",))


def pickled_code(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Boom()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing, "no file or folder"),
        (empty, "Expected weights"),
        (truncated, "not a whole safetensors file"),
        (broken_config, "not valid JSON"),
        (shard_gone, "is missing"),
        (outside, "not a file of its own folder"),
        (pickled_code, "convert it to safetensors"),
    ],
)
def test_bad_folders_are_one_sentence(base: Path, tuned: Path, damage, says: str, capsys):
    with pytest.raises(wb.WorkbenchError, match=says) as caught:
        wb.load_pair(base, damage(tuned))
    assert "\n" not in str(caught.value)
    assert "was run" not in capsys.readouterr().out


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_damaged_safetensors_file_is_refused_or_read(data, tmp_path_factory):
    folder = saved(tiny("llama"), tmp_path_factory.mktemp("m"))
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    # Nothing but a WorkbenchError may come out; a file that is still whole may be read.
    with contextlib.suppress(wb.WorkbenchError):
        list(raw_pair(folder, folder).deltas("all"))


def test_nudging_is_visible(base: Path, tmp_path: Path):
    """Negative control of the null tests: a change of 1e-3 is not read as none."""
    near = saved(nudged(tiny("llama"), scale=1e-3), tmp_path / "near")
    assert all(delta.changed for delta in wb.load_pair(base, near).deltas("all"))


def test_a_result_of_one_model_twice_says_that_it_shows_nothing(base: Path, tuned: Path):
    same, other = wb.load_pair(base, base), wb.load_pair(base, tuned)
    assert any(SAME in note for note in same.provenance().notes)
    assert not any(SAME in note for note in other.provenance().notes)


def test_a_base_with_an_adapter_is_refused(base: Path, tuned: Path, lora: Path):
    """Its adapter would be seen by some analyses and not by others."""
    with pytest.raises(wb.WorkbenchError, match="the base is a model with an adapter"):
        wb.load_pair(f"{base}+{lora}", tuned)


@pytest.mark.parametrize(
    ("declared", "status"),
    [
        ("../base", "ok"),
        ("org/base", "ok"),
        ("../tuned", "warn"),
        ("org/other-7b", "warn"),
        ("Org/BASE-bnb-4bit", "ok"),
        ("org/base-GGUF", "ok"),
    ],
)
def test_the_base_that_an_adapter_declares(
    base: Path, tuned: Path, lora: Path, declared: str, status: str
):
    config = json.loads((lora / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = declared
    (lora / "adapter_config.json").write_text(json.dumps(config))
    table = wb.load_pair(base, lora).check(read=False).table.set_index("item")
    assert table.loc["adapter's base", "status"] == status


def test_an_untold_config_is_no_null(base: Path, tmp_path: Path):
    """The same weights under another rope: logits differ, so nothing is said to be equal."""
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    (other / "config.json").write_text(json.dumps(config))
    report = wb.load_pair(base, other).check()
    assert status(report, "config") == ["warn"]
    assert "rope_theta 10000.0 against 500.0" in "".join(report.notes)
    assert not any("exact null" in note for note in report.notes)
    ours, theirs = (wb.Checkpoint.parse(one).load() for one in (base, other))
    ids = torch.tensor([[5, 9, 30, 17, 44]])
    assert float((ours(ids).logits - theirs(ids).logits).abs().max()) > 1e-5


@pytest.mark.parametrize(
    "silent", [{"transformers_version": "4.40.0"}, {"use_cache": False}, {"architectures": ["X"]},
               {"rope_theta": 10000.0}, {"attention_dropout": 0.1}, {"_name_or_path": "elsewhere"}],
)  # fmt: skip
def test_what_computes_nothing_in_a_config_is_not_told(silent, base: Path, tmp_path: Path):
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | silent
    (other / "config.json").write_text(json.dumps(config))
    report = wb.load_pair(base, other).check()
    assert status(report, "config") == ["ok"]
    assert any("exact null" in note for note in report.notes)


def test_heads_of_other_roles_are_never_paired(tmp_path: Path):
    """RoBERTa's lm_head.dense and a classifier's dense have one shape and nothing in common."""
    masked = saved(tiny("roberta"), tmp_path / "masked")
    t = transformers
    config = t.AutoConfig.from_pretrained(masked, num_labels=3)
    torch.manual_seed(1)
    classifier = saved(t.RobertaForSequenceClassification(config), tmp_path / "classifier")
    pair = wb.load_pair(masked, classifier)
    assert not [n for n in pair.matched if n.startswith("lm_head")]
    assert all(name.removeprefix("roberta.") == other.removeprefix("roberta.")
               for name, other in pair.matched.items())  # fmt: skip


def test_a_change_larger_than_the_base_is_a_warning(base: Path, tmp_path: Path):
    other = saved(tiny("llama", seed=7), tmp_path / "other")
    assert status(wb.load_pair(base, other).check(), "size") == ["warn"]
    near = saved(nudged(tiny("llama"), 0.01), tmp_path / "near")
    assert status(wb.load_pair(base, near).check(), "size") == []


FOREIGN = {
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": "DeepSpeed",
    "__0_0.distcp": "FSDP",
    "consolidated.00.pth": "consolidated",
    "hf_model_0001_0.pt": "torchtune",
    "adapters.safetensors": r"MLX without its adapter_config\.json",
    "adapter_0.pt": r"torchtune without its adapter_config\.json",
    "pytorch_lora_weights.safetensors": "diffusers",
    "adapter_model.safetensors": r"without its adapter_config\.json",
    "checkpoint-500/model.safetensors": "give one of them, for example checkpoint-500",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_told_for_what_it_is(name: str, base: Path, tmp_path: Path):
    place = tmp_path / "it" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    with pytest.raises(wb.WorkbenchError, match=FOREIGN[name]):
        wb.load_pair(base, tmp_path / "it")


def test_placeholders_empty_tensors_and_packed_weights_are_told(base: Path, tmp_path: Path):
    pointer = shutil.copytree(base, tmp_path / "pointer")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9")
    with pytest.raises(wb.WorkbenchError, match="git lfs pull"):
        wb.load_pair(base, pointer)
    empty = edited(
        shutil.copytree(base, tmp_path / "empty"), lambda s: {n: t[:0] for n, t in s.items()}
    )
    with pytest.raises(wb.WorkbenchError, match="ZeRO-3"):
        wb.load_pair(base, empty)
    packed = shutil.copytree(base, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(wb.WorkbenchError, match=r"quantised \(gptq\)"):
        wb.load_pair(base, packed)


NAMES_OF_A_LANGUAGE_MODEL = {
    "as transformers 4 named it": lambda n: f"language_model.{n}",
    "as transformers 5 names it": lambda n: n.replace("model.", "model.language_model.", 1),
    "alone": lambda n: n,
}


@pytest.mark.parametrize("tuned_names", NAMES_OF_A_LANGUAGE_MODEL)
@pytest.mark.parametrize("base_names", NAMES_OF_A_LANGUAGE_MODEL)
def test_a_language_model_in_a_multimodal_one_is_the_same_module(
    base_names: str, tuned_names: str, base: Path, tuned: Path
):
    """A text-only member beside a multimodal base, and the names of two versions."""
    vision = {"vision_tower.layers.0.w.weight": torch.ones(4, 4)}
    for folder, names in ((base, base_names), (tuned, tuned_names)):
        name = NAMES_OF_A_LANGUAGE_MODEL[names]
        more = {} if names == "alone" else vision
        edited(folder, lambda s, name=name, more=more: {name(n): t for n, t in s.items()} | more)
    pair = wb.load_pair(base, tuned)
    language = [n for n in pair.matched if "vision" not in n]
    assert len(language) == 21
    for ours in language:
        theirs = pair.matched[ours]
        plain = [n.replace("language_model.", "") for n in (ours, theirs)]
        assert plain[0] == plain[1]


@pytest.mark.parametrize("inner", ["x", [1], 3, {"model_type": 3}])
def test_a_strange_config_of_a_language_model_inside_is_no_traceback(inner, base, tuned):
    """Weights are compared; what cannot be run ends in a sentence."""
    file = tuned / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_config": inner}))
    pair = wb.load_pair(base, tuned)
    assert any(delta.changed for delta in pair.deltas())
    pair.check()
    for ask in (pair.tuned.load, pair.tuned.tokenizer):
        with contextlib.suppress(wb.WorkbenchError):
            ask()
