"""Files that lead elsewhere, to code, other weights, the hub or settings: none is followed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.conftest import adapter, logits, nudged, saved, tiny
from tests.hostile.cases import TOKENIZER, TOKENIZER_CONFIG
from tests.hostile.test_corpus import refused
from tests.loaders.test_gguf import write as write_gguf
from workbench.loaders.staging import handed, offline
from workbench.results import cache

ROOT = Path(__file__).parents[2]


def changed(file: Path, **changes) -> None:
    """A JSON object with some of its entries set; None removes one."""
    before = json.loads(file.read_text()) if file.exists() else {}
    after = {k: v for k, v in (before | changes).items() if v is not None}
    file.write_text(json.dumps(after))


# Code beside the files.

EVIL = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): model_type = "evil"
class M(LlamaForCausalLM): config_class = C
class T(PreTrainedTokenizerFast): pass
def generate(model, *arguments, **more): open({marker!r}, "w").close()
"""
MAPPED = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M",
          "AutoTokenizer": ["evil.T", "evil.T"]}  # fmt: skip


@pytest.fixture
def marker(tmp_path: Path, monkeypatch) -> Path:
    """Written by code that is run; whoever is asked says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.syspath_prepend(str(tmp_path / "trap"))
    return tmp_path / "MARKER"


def trapped(folder: Path, marker: Path) -> Path:
    """The folder with code beside its files, and configs that name it."""
    code = EVIL.format(marker=str(marker))
    for name in ("evil.py", "config.py", "tokenizer.py", "modeling_evil.py"):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            changed(folder / name, auto_map=MAPPED)
    return folder


def spoken(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


def test_the_trap_catches_whoever_steps_into_it(marker: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    write_gguf(tiny("llama"), tmp_path / "g" / "m.gguf")
    changed(tmp_path / "g" / "tokenizer_config.json", tokenizer_class="T")
    AutoTokenizer.from_pretrained(trapped(tmp_path / "g", marker), gguf_file="m.gguf")
    assert marker.exists()


def test_no_code_beside_a_gguf_is_run(marker: Path, tmp_path: Path):
    path = write_gguf(tiny("llama", seed=21), tmp_path / "g" / "m.gguf")
    changed(tmp_path / "g" / "tokenizer_config.json", tokenizer_class="T")
    changed(tmp_path / "g" / "config.json", model_type="evil", architectures=["M"])
    trapped(tmp_path / "g", marker)
    checkpoint = wb.Checkpoint.parse(path)
    assert checkpoint.tokenizer().convert_tokens_to_ids("A") > 0
    checkpoint.load()
    assert not marker.exists()


def test_no_code_beside_a_checkpoint_is_run(base: Path, marker: Path, tmp_path: Path):
    tuned = trapped(spoken(saved(nudged(tiny("llama")), tmp_path / "tuned")), marker)
    pair = wb.load_pair(spoken(base), tuned)
    pair.check(run=True).require()
    words = pair.tuned.tokenizer()
    assert words("a b").input_ids
    made = pair.tuned.load()
    made.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)  # pyright: ignore
    pair.to_transformer_lens()
    changed(tuned / "config.json", model_type="evil", architectures=["M"])
    refused("config.json", wb.Checkpoint.parse(tuned).load)
    assert not marker.exists()


def test_no_code_beside_an_adapter_is_run(base: Path, lora: Path, marker: Path, monkeypatch):
    changed(lora / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil",
            auto_mapping={"base_model_class": "M", "parent_library": "evil"})  # fmt: skip
    trapped(spoken(lora), marker)
    monkeypatch.chdir(lora)
    monkeypatch.syspath_prepend(str(lora))
    pair = wb.load_pair(spoken(base), lora)
    pair.check(run=True).require()
    pair.tuned.load()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_no_code_in_a_folder_without_weights_is_run(kind: str, base: Path, marker, tmp_path: Path):
    folder = tmp_path / "part"
    shutil.copytree(spoken(base), folder)
    (folder / "model.safetensors").unlink()
    if kind == "tokenizer":
        for known in ("a known one", "evil"):
            changed(folder / "config.json", model_type="llama" if known != "evil" else known)
            trapped(folder, marker)
            assert wb.Checkpoint.parse(folder).tokenizer()("a b").input_ids
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        trapped(folder, marker)
        refused("Expected weights", wb.Checkpoint.parse(folder).load)
        refused("No tokenizer", wb.Checkpoint.parse(folder).tokenizer)
    assert not marker.exists()


# Other weights than those that were read.


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return saved(nudged(tiny("llama"), seed=9), tmp_path / "other")


LINKS = ["second.safetensors", "../other/model.safetensors", "/etc/passwd", 3, ["a"], "evil/repo"]


@pytest.mark.parametrize("named", LINKS)
def test_a_config_names_no_other_weights(named, base: Path, tuned: Path, other: Path):
    shutil.copy(other / "model.safetensors", tuned / "second.safetensors")
    changed(tuned / "config.json", transformers_weights=named)
    refused("transformers_weights", wb.load_pair, base, tuned)


def test_a_config_may_name_the_weights_that_are_read(tuned: Path, other: Path):
    truth = logits(wb.Checkpoint.parse(tuned).load())
    changed(tuned / "config.json", transformers_weights="model.safetensors")
    shutil.copy(other / "model.safetensors", tuned / "second.safetensors")
    assert torch.equal(logits(wb.Checkpoint.parse(tuned).load()), truth)


ELSEWHERE = {
    "another config": {"configuration_files": ["config.4.0.0.json"]},
    "rewritten modules": {"fusion_config": {"patch_embeddings": True}},
    "a quantiser in a part": {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    "a quantiser in a list": {"parts": [{"quantization_config": {"quant_method": "awq"}}]},
    "weights in a part": {"text_config": {"transformers_weights": "x.safetensors"}},
}


@pytest.mark.parametrize("which", ELSEWHERE)
def test_a_config_leads_to_no_other_model(which: str, base: Path, tuned: Path):
    changed(tuned / "config.json", **ELSEWHERE[which])
    shutil.copy(base / "config.json", tuned / "config.4.0.0.json")
    refused("quantised" if "quantiser" in which else "config.json", wb.load_pair, base, tuned)


BESIDE = ("model.safetensors.index.json", "shard-00000-model-00000-of-00001.safetensors",
          "adapter_model.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
          "model-00001-of-00001.safetensors", "consolidated.safetensors")  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_weights_beside_those_that_are_read_do_not_run(name: str, tuned: Path, other: Path):
    truth = logits(wb.Checkpoint.parse(tuned).load())
    if name.endswith("index.json"):
        keys = load_file(tuned / "model.safetensors")
        places = dict.fromkeys(keys, "../other/model.safetensors")
        (tuned / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    elif name.endswith(".bin"):
        torch.save(load_file(other / "model.safetensors"), tuned / name)
    else:
        shutil.copy(other / "model.safetensors", tuned / name)
    found = wb.Checkpoint.parse(tuned)
    assert torch.equal(logits(found.load()), truth)
    assert {file.name for file in found.weights().home.values()} == {"model.safetensors"}


def test_shards_run_by_whatever_names_an_index_gives_them(tmp_path: Path):
    """transformers takes a folder with such a name for a checkpoint of another kind."""
    model = nudged(tiny("llama"))
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    first = min(places.values())
    odd = "shard-00000-model-00000-of-00001.safetensors"
    (tmp_path / "m" / first).rename(tmp_path / "m" / odd)
    places = {name: odd if file == first else file for name, file in places.items()}
    changed(index, weight_map=places, metadata={"dtype": "float16", "total_size": -1})
    assert torch.equal(logits(wb.Checkpoint.parse(tmp_path / "m").load()), logits(model.eval()))


def test_a_single_file_by_another_name_is_what_runs(tuned: Path):
    truth = logits(wb.Checkpoint.parse(tuned).load())
    (tuned / "model.safetensors").rename(tuned / "weights.safetensors")
    assert torch.equal(logits(wb.Checkpoint.parse(tuned).load()), truth)


def test_a_gguf_of_that_name_where_one_stands_is_not_read(tmp_path: Path, monkeypatch):
    path = write_gguf(tiny("llama", seed=31), tmp_path / "g" / "m.gguf")
    write_gguf(tiny("llama", seed=32), tmp_path / "here" / "m.gguf")
    monkeypatch.chdir(tmp_path / "here")
    found = wb.Checkpoint.parse(path).weights()
    expected = dict(tiny("llama", seed=31).named_parameters())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("told", [{}, {"megatron_core": "evil", "megatron_config": {"a": 1}},
                                  {"base_model_name_or_path": "evil/base"}])  # fmt: skip
def test_an_adapter_beside_a_gguf_stays_out_of_it(told: dict, tmp_path: Path):
    model = tiny("llama", seed=41)
    path = write_gguf(model, tmp_path / "g" / "m.gguf")
    adapter(tiny("llama", seed=41), tmp_path / "g")
    changed(tmp_path / "g" / "adapter_config.json", **told)
    found = wb.Checkpoint.parse(path).weights()
    expected = dict(model.named_parameters())
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_on_the_gguf_beside_it_is_read_as_an_adapter(tmp_path: Path):
    from peft import PeftModel

    path = write_gguf(tiny("llama", seed=42), tmp_path / "g" / "m.gguf")
    adapter(tiny("llama", seed=42), tmp_path / "g")
    made = wb.load_pair(path, tmp_path / "g").tuned.load()
    truth = PeftModel.from_pretrained(tiny("llama", seed=42), str(tmp_path / "g")).eval()
    torch.testing.assert_close(logits(made), logits(truth), atol=1e-5, rtol=1e-5)


# Entries that are looked at only when the model runs, or that change what it puts out.

RUNS = {
    "tuples": {"return_dict": False}, "more beside": {"output_attentions": True},
    "two halves": {"is_encoder_decoder": True}, "labels": {"num_labels": 10**9},
    "odd labels": {"id2label": [1]}, "torchscript": {"torchscript": True},
}  # fmt: skip


@pytest.mark.parametrize("which", RUNS)
def test_what_a_model_puts_out_is_not_the_configs_to_say(which: str, base: Path, tuned: Path):
    from workbench.tasks import own_samples

    words, truth = (
        wb.Checkpoint.parse(spoken(base)).tokenizer(),
        logits(nudged(tiny("llama")).eval()),
    )
    changed(tuned / "config.json", **RUNS[which])
    pair = wb.load_pair(base, tuned)
    assert pair.check().table.set_index("item").loc["runs", "status"] == "ok"
    model = pair.tuned.load()
    assert torch.equal(logits(model), truth)
    assert model(torch.ones(1, 2, dtype=torch.long)).attentions is None
    own_samples(model, words, n=1, length=2)


FAILS = {
    "a window": {"sliding_window": 2**63},
    "layers": {"layer_types": ["sliding_attention"] * 2},
}


@pytest.mark.parametrize("which", FAILS)
def test_a_model_that_fails_when_it_runs_is_told_when_it_is_loaded(which, base: Path, tuned: Path):
    changed(tuned / "config.json", **FAILS[which])
    refused("does not run", wb.Checkpoint.parse(tuned).load)
    report = wb.load_pair(base, tuned).check().table.set_index("item")
    assert report.loc["runs", "status"] == "warn"


# Tokenizers.


@pytest.mark.parametrize("most", ["x", None, [], -1, float("nan"), 1e30, 7])
def test_the_longest_text_is_a_number(most, base: Path):
    changed(spoken(base) / "tokenizer_config.json", model_max_length=most)
    found = wb.Checkpoint.parse(base).tokenizer().model_max_length
    assert found == (7 if most == 7 else 2048)


PATHS = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "gguf_file", "vocab", "merges",
         "chat_template_file", "tokenizer_config_file", "name_or_path", "tokenizer_object",
         "cache_dir", "special_tokens_map_file", "backend_tokenizer")  # fmt: skip


@pytest.mark.parametrize("key", PATHS)
def test_a_tokenizer_reads_no_other_files(key: str, base: Path, tmp_path: Path):
    other = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": {"a": 7, "b": 8, "<pad>": 0}}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    (spoken(base) / "tokenizer.9.9.9.json").write_text(json.dumps(other))
    truth = wb.Checkpoint.parse(base).tokenizer()("a b").input_ids
    changed(base / "tokenizer_config.json", **{key: str(tmp_path / "other.json")},
            fast_tokenizer_files=["tokenizer.4.0.0.json", "tokenizer.9.9.9.json"],
            init_inputs=[str(tmp_path / "other.json")])  # fmt: skip
    (base / "tokenizer.4.0.0.json").write_text(json.dumps(other))
    words = wb.Checkpoint.parse(base).tokenizer()
    assert words("a b").input_ids == truth
    assert words.name_or_path == str(base)
    assert wb.Checkpoint.parse(words.save_pretrained(tmp_path / "again") and base).tokenizer()


# The hub.


def unreachable(monkeypatch) -> list:
    """Requests that were made, none of which leaves this machine."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list = []

    def connect(*arguments, **more):
        asked.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    assert not huggingface_hub.is_offline_mode()
    return asked


def test_the_hub_is_out_of_reach_inside_blocks_and_in_reach_behind_the_last(monkeypatch):
    import huggingface_hub

    asked = unreachable(monkeypatch)
    with offline():
        with offline(), pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
            huggingface_hub.HfApi().repo_info("org/name")
        assert huggingface_hub.is_offline_mode()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not asked
    assert not huggingface_hub.is_offline_mode()
    assert "HF_HUB_OFFLINE" not in os.environ


HUB = {
    "dpt": {"model_type": "dpt", "backbone": "evil/backbone"},
    "detr": {"model_type": "detr", "backbone": "resnet50", "use_timm_backbone": True},
    "a pretrained one": {"model_type": "maskformer", "backbone": "evil/b",
                         "use_pretrained_backbone": True},
    "a part": {"text_config": {"model_type": "llama", "_name_or_path": "evil/text"}},
    "attention": {"_attn_implementation": "flash_attention_2"},
    "a kernel": {"attn_implementation": "evil/kernel"},
    "a name": {"_name_or_path": "evil/model", "_commit_hash": "0" * 40},
}  # fmt: skip


@pytest.mark.parametrize("which", HUB)
def test_a_config_reaches_no_hub(which: str, base: Path, tuned: Path, monkeypatch):
    asked = unreachable(monkeypatch)
    changed(spoken(tuned) / "config.json", **HUB[which])
    for act in (lambda: wb.load_pair(base, tuned).check(), wb.Checkpoint.parse(tuned).load,
                wb.Checkpoint.parse(tuned).tokenizer):  # fmt: skip
        with contextlib.suppress(wb.WorkbenchError):
            act()
    assert asked == []


def unplugged(asked: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command on a machine that reaches no other, and that does not say so itself."""
    own = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    own |= {"ASKED": str(asked), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unplugged'}"}
    return subprocess.run([sys.executable, *map(str, command)], cwd=asked.parent, env=own,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_commands_ask_nothing_of_other_machines(base: Path, tuned: Path, lora: Path, tmp_path):
    asked, run = tmp_path / "asked", ("-m", "workbench.cli")
    for folder in (base, tuned):
        changed(spoken(folder) / "config.json", _name_or_path="evil/model")
        changed(folder / "tokenizer_config.json", name_or_path="evil/words")
    changed(lora / "adapter_config.json", base_model_name_or_path="evil/base")
    done = unplugged(asked, *run, "check", base, lora, "--run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "p.jsonl").write_text('{"prompt": "a b", "target": " c", "foils": [" d"]}\n')
    members = ("--member", f"full={tuned}", "--member", f"lora={lora}")
    only = ("--only", "spectral.delta_spectrum", "--only", "forgetting.retention")
    where = ("--task", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    done = unplugged(asked, *run, "compare", base, *members, *only, *where)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert not asked.exists(), asked.read_text()
    wanted = "import socket; socket.create_connection(('huggingface.co', 443))"
    assert unplugged(asked, "-c", wanted).returncode == 1
    assert "huggingface.co" in asked.read_text()


def test_attention_of_packages_that_are_not_here_is_torchs_own(tuned: Path):
    truth = logits(wb.Checkpoint.parse(tuned).load())
    changed(tuned / "config.json", _attn_implementation="flash_attention_2")
    assert torch.equal(logits(wb.Checkpoint.parse(tuned).load()), truth)


# Settings for writing.

SETTINGS = {
    "sequence_bias": [[[7], 100.0]], "suppress_tokens": [5, 6, 7], "num_beams": 100_000,
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 100.0}, "stop_strings": ["a"],
    "dola_layers": "high", "temperature": 1e-6, "top_k": 1, "min_new_tokens": 60,
    "forced_bos_token_id": 9, "forced_eos_token_id": 9, "begin_suppress_tokens": [4],
    "bad_words_ids": [[3]], "repetition_penalty": 99.0, "exponential_decay_length_penalty": [1, 9],
    "num_return_sequences": 4, "cache_implementation": "static", "prompt_lookup_num_tokens": 4,
    "assistant_early_exit": 1, "guidance_scale": 7.0, "eos_token_id": [2, 3, 4, 5],
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_for_writing_are_left_out_and_told(key: str, base: Path, tuned: Path):
    from workbench.tasks import own_samples

    words = wb.Checkpoint.parse(spoken(base)).tokenizer()
    (tuned / "generation_config.json").unlink(missing_ok=True)
    truth = own_samples(wb.Checkpoint.parse(tuned).load(), words, n=3, length=12)
    changed(tuned / "generation_config.json", **{key: SETTINGS[key]})
    member = wb.Checkpoint.parse(tuned)
    assert own_samples(member.load(), words, n=3, length=12) == truth
    told = [note for note in wb.load_pair(base, tuned).limits().notes if "left out" in note]
    assert bool(told) is (key != "eos_token_id")
    assert all(key in note for note in told)
    setattr(model := member.load(), "generation_config", odd(key))  # noqa: B010 - as a user may
    assert own_samples(model, words, n=3, length=12) == truth


def odd(key: str):
    from transformers import GenerationConfig

    made = GenerationConfig()
    setattr(made, key, SETTINGS[key])
    return made


def test_settings_in_a_models_own_config_are_left_out(tuned: Path, base: Path):
    from workbench.tasks import own_samples

    words = wb.Checkpoint.parse(spoken(base)).tokenizer()
    (tuned / "generation_config.json").unlink(missing_ok=True)
    truth = own_samples(wb.Checkpoint.parse(tuned).load(), words, n=3, length=12)
    changed(tuned / "config.json", num_beams=100_000, suppress_tokens=[5, 6, 7], do_sample=False)
    assert own_samples(wb.Checkpoint.parse(tuned).load(), words, n=3, length=12) == truth


def test_where_texts_end_is_kept(tuned: Path):
    changed(tuned / "generation_config.json", eos_token_id=[2, 7], pad_token_id="x", num_beams=4)
    own = wb.Checkpoint.parse(tuned).load().generation_config
    assert own.eos_token_id == [2, 7]  # pyright: ignore
    assert own.pad_token_id == 0  # pyright: ignore
    assert own.num_beams in (None, 1)  # pyright: ignore


def test_a_result_says_which_settings_it_left_out(base: Path, tuned: Path):
    changed(spoken(tuned) / "generation_config.json", num_beams=100_000, temperature=0.6)
    found = wb.behaviour.generate(wb.load_pair(spoken(base), tuned), n=2, length=3, rounds=1)
    assert any("num_beams 100000" in note and "left out" in note for note in found.provenance.notes)


# What is handed over.


def test_only_what_is_named_is_handed_over_and_errors_speak_of_what_was_given(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"1")
    with handed({"a.bin": tmp_path / "a.bin", "sub/b.txt": "two"}, "GIVEN") as fresh:
        found = sorted(str(file.relative_to(fresh)) for file in fresh.rglob("*.*"))
        assert found == ["a.bin", "sub/b.txt"]
        assert (fresh / "a.bin").read_bytes() == b"1"
    assert not fresh.exists()
    with pytest.raises(RuntimeError, match=r"GIVEN/a\.bin"), handed({}, "GIVEN") as fresh:
        (fresh / "a.bin").read_bytes()
    assert not fresh.exists()


# What is kept between runs.


def test_a_kept_gguf_that_is_damaged_is_made_anew(tmp_path: Path):
    path = write_gguf(tiny("llama", seed=51), tmp_path / "m.gguf")
    expected = dict(tiny("llama", seed=51).named_parameters())
    folder = wb.Checkpoint.parse(path).folder
    assert folder is not None
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    weights = folder / "model.safetensors"
    flipped = bytearray(whole[weights])
    flipped[-5] ^= 64

    def gone() -> None:
        shutil.rmtree(folder)
        folder.write_text("a file")

    damage = {
        "cut": lambda: weights.write_bytes(whole[weights][:100]),
        "empty": lambda: weights.write_bytes(b""),
        "other bytes": lambda: weights.write_bytes(bytes(flipped)),
        "other weights": lambda: save_file({"a": torch.ones(2)}, weights),
        "no config": (folder / "config.json").unlink,
        "more": lambda: (folder / "adapter_config.json").write_text("{}"),
        "a file": gone,
        "its digest": lambda: folder.with_name(folder.name + ".sha256").write_text("0" * 64),
    }
    for act in damage.values():
        act()
        again = wb.Checkpoint.parse(path).weights()
        assert all(torch.equal(again[name], expected[name]) for name in expected)
        assert {file: file.read_bytes() for file in folder.iterdir()} == whole
        assert cache.intact(folder)


@pytest.mark.parametrize("text", ["", "0" * 64, "f" * 64 + " " + "0" * 16, "\x00", "0" * 63])
def test_a_kept_digest_that_is_damaged_is_taken_anew(text: str, tmp_path: Path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"content" * cache.SMALL)
    truth = cache.file_digest(file)
    memo = cache.digest_memo(file)
    memo.write_text(text)
    assert cache.kept_digest(memo) is None
    assert cache.file_digest(file) == truth
    other = tmp_path / "b.bin"
    other.write_bytes(b"other" * cache.SMALL)
    cache.file_digest(other)
    shutil.copy(cache.digest_memo(other), memo)  # another file's
    assert cache.file_digest(file) == truth
    memo.unlink()
    memo.mkdir()
    assert cache.kept_digest(memo) is None


def test_that_a_side_runs_is_not_believed_of_any_file(base: Path, tuned: Path):
    from workbench.loaders.run_check import _memo

    pair = wb.load_pair(base, tuned)
    memo, known = _memo(pair.tuned)
    memo.parent.mkdir(parents=True, exist_ok=True)
    memo.touch()
    pair.check()
    assert cache.kept_digest(memo) == known


def test_that_a_tokenizer_is_bounded_is_not_believed_of_any_file(base: Path, monkeypatch):
    kept: list[Path] = []
    keep = cache.keep_digest
    monkeypatch.setattr(
        cache, "keep_digest", lambda memo, found: (kept.append(memo), keep(memo, found))
    )
    changed(spoken(base) / "tokenizer_config.json", once="of this test")
    wb.Checkpoint.parse(base).tokenizer()
    (memo,) = [file for file in kept if file.parent.name == "tokenizers"]
    monkeypatch.setattr("workbench.loaders.tokenizer_safety._BOUNDED", set())
    monkeypatch.setattr("workbench.loaders.tokenizer_safety.bounded", None)
    assert wb.Checkpoint.parse(base).tokenizer() is not None
    memo.write_bytes(b"")
    with pytest.raises(TypeError):
        wb.Checkpoint.parse(base).tokenizer()


def test_a_trained_member_that_is_damaged_is_made_anew(tmp_path: Path):
    made = []

    def make() -> None:
        if not (tmp_path / "m").exists():
            made.append(1)
            (tmp_path / "m" / "steps").mkdir(parents=True)
            (tmp_path / "m" / "steps" / "a").write_text("whole")

    for _ in range(2):
        cache.made_in(tmp_path / "m", make)
    assert len(made) == 1
    (tmp_path / "m" / "steps" / "a").write_text("who")
    cache.made_in(tmp_path / "m", make)
    assert len(made) == 2
    assert (tmp_path / "m" / "steps" / "a").read_text() == "whole"
    assert cache.intact(tmp_path / "m")
