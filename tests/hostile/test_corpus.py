"""Hand-made damaged and hostile files: each ends in one sentence that says what is wrong."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import signal
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from tests.conftest import nudged, saved, tiny
from tests.figures.synthetic import family, retention
from tests.hostile.cases import TOKENIZER, TOKENIZER_CONFIG, Call, small_weights
from tests.hostile.guard import require_sentence
from tests.loaders.test_gguf import write as write_gguf
from workbench.sandbox import process as bounding
from workbench.sandbox.chat_template import rendered
from workbench.skills.graft import Graft
from workbench.tasks import Prompt, PromptSet, chat

Q = "model.layers.0.self_attn.q_proj.weight"
DEEP = "[" * 100_000
BOUND = 60  # seconds by the clock; the bounds themselves are 5 s or less of work


def refused(says: str, read, *arguments):
    """`read` raises a WorkbenchError of one plain line that holds `says`, within seconds."""
    start = time.monotonic()
    with pytest.raises(wb.WorkbenchError) as caught:
        read(*arguments)
    assert says in str(caught.value)
    require_sentence(str(caught.value))
    assert time.monotonic() - start < BOUND


def headed(header: dict | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes) -> bytes:
    """A file of three tensors, the first described otherwise."""
    header, data = small_weights()
    header[Q] |= changes
    return headed(header, data)


HEADER, DATA = small_weights()
SAFETENSORS = {
    "nothing": (b"", "claims"),
    "a length beyond the file": (headed(HEADER, DATA, 1 << 62), "header claims"),
    "a length of 90 MB": (headed(HEADER, DATA, 90_000_000), "header claims"),
    "cut in its data": (headed(HEADER, DATA[:-1]), "end at byte"),
    "more than its tensors": (headed(HEADER, DATA + b"x"), "end at byte"),
    "a shape of terabytes": (one(shape=[1 << 40, 1 << 40]), "bytes"),
    "a shape that overflows": (one(shape=[1 << 62, 4]), "has the shape"),
    "a negative size": (one(shape=[-32, -32]), "has the shape"),
    "true for a size": (one(shape=[True, 1024]), "has the shape"),
    "a scaled type": (
        headed(HEADER | {"model.norm.weight": {"dtype": "F8_E4M3", "shape": [128], "data_offsets":
                         HEADER["model.norm.weight"]["data_offsets"]}}, DATA), "F8_E4M3",
    ),
    "another type": (one(dtype="F16"), "bytes"),
    "an unknown type": (one(dtype="F128"), "unknown type"),
    "offsets that overlap": (one(data_offsets=[64, 4160]), "begin at byte"),
    "offsets outside": (one(data_offsets=[1 << 50, (1 << 50) + 4096]), "begin at byte"),
    "offsets that run back": (one(data_offsets=[4096, 0]), "bytes"),
    "offsets of text": (one(data_offsets=["0", "4096"]), "offsets"),
    "more keys": (one(more=1), "is not described by"),
    "a name twice": (
        headed(json.dumps(HEADER).replace("1.self_attn.k", "0.self_attn.q").encode(), DATA),
        "occurs twice",
    ),
    "no UTF-8": (headed(b'{"\xff": 1}', DATA), "utf-8"),
    "no object": (headed(b"[1]", DATA), "not a JSON object"),
    "deep nesting": (headed(b'{"a": ' + DEEP.encode(), DATA), "nested deeper"),
    "NaN": (headed(HEADER, np.full(2080, np.nan, np.float32).tobytes()), "NaN or inf"),
    "infinity": (headed(HEADER, np.full(2080, -np.inf, np.float32).tobytes()), "NaN or inf"),
}  # fmt: skip


@pytest.mark.parametrize("which", SAFETENSORS)
def test_safetensors(which: str, base: Path, tmp_path: Path):
    content, says = SAFETENSORS[which]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(content)
    refused(says, lambda: list(wb.load_pair(base, tmp_path / "bad").deltas("all")))


def test_names_that_would_drive_a_terminal_are_written_as_codes(base: Path, tmp_path: Path):
    name = "model.layers.0.\x1b[2J\nworkbench: all is well.q_proj.weight"
    save_file({name: torch.ones(3, 3)}, saved(tiny("llama"), tmp_path / "b") / "model.safetensors")
    refused("\\u001b[2J", wb.load_pair, base, tmp_path / "b")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    nudged(tiny("llama")).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    return tmp_path / "shards"


def reindexed(folder: Path, change) -> Path:
    file = folder / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    change(content["weight_map"])
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "..", ".", "",
                                  "model.bin", "a\x00.safetensors", 3, None, ["x"]])  # fmt: skip
def test_an_index_names_files_of_its_own_folder_alone(name, base: Path, shards: Path):
    folder = reindexed(shards, lambda places: places.update({Q: name}))
    refused("model.safetensors.index.json", wb.load_pair, base, folder)


def test_an_index_and_its_shards_agree(base: Path, shards: Path, tmp_path: Path):
    again = shutil.copytree(shards, tmp_path / "again")
    copied = shutil.copytree(shards, tmp_path / "copied")
    refused("does not hold it", wb.load_pair, base,
            reindexed(shards, lambda places: places.update({"model.gone": places[Q]})))  # fmt: skip
    refused("is missing", wb.load_pair, base,
            reindexed(again, lambda places: places.update({Q: "more.safetensors"})))  # fmt: skip
    first = min(copied.glob("*.safetensors"))
    shutil.copy(first, copied / "twice.safetensors")
    places = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    own = next(name for name, file in places.items() if file == first.name)
    more = next(name for name, file in places.items() if file == first.name and name != own)
    reindexed(copied, lambda places: places.update({more: "twice.safetensors"}))
    refused("it is unclear which one counts", wb.load_pair, base, copied)


def test_links_lead_nowhere_but_into_the_hubs_cache(base: Path, tuned: Path, tmp_path: Path):
    linked = shutil.copytree(tuned, tmp_path / "linked")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(tuned / "model.safetensors")
    refused("outside its folder", wb.load_pair, base, linked)
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    blobs = tmp_path / "models--o--m" / "blobs"
    shutil.copytree(tuned, snapshot)
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert wb.load_pair(base, snapshot).sites()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_is_not_waited_for(name: str, base: Path, tuned: Path):
    (tuned / name).unlink()
    os.mkfifo(tuned / name)
    refused("found none", wb.load_pair, base, tuned)


def test_a_config_of_a_gigabyte_is_not_read(base: Path, tuned: Path):
    os.truncate(tuned / "config.json", 1 << 30)
    refused("larger than", wb.load_pair, base, tuned)


SLOW = "(a|aa)+[xy]"
ADAPTERS = {
    "r = 0": ({"r": 0}, "r >= 1"),
    "r < 0": ({"r": -3}, "r >= 1"),
    "r true": ({"r": True}, "r >= 1"),
    "r of text": ({"r": "3"}, "r >= 1"),
    "no r": ({"r": None}, "r >= 1"),
    "a rank of a billion": ({"r": 10**9}, "declares rank 1000000000"),
    "a rank that is not stored": ({"r": 4}, "declares rank 4"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha > 0"),
    "alpha infinite": ({"lora_alpha": float("inf")}, "lora_alpha > 0"),
    "alpha < 0": ({"lora_alpha": -5}, "lora_alpha > 0"),
    "alpha of text": ({"lora_alpha": "5"}, "lora_alpha > 0"),
    "alphas of text": ({"alpha_pattern": {"q_proj": "x"}}, "lora_alpha > 0"),
    "ranks as a list": ({"rank_pattern": [1]}, "as objects"),
    "a pattern that is none": ({"rank_pattern": {"(": 3}}, "cannot be matched"),
    "a pattern for an hour": ({"rank_pattern": {SLOW: 3}}, "matched"),
    "saved modules of numbers": ({"modules_to_save": [1]}, "modules_to_save"),
    "another kind": ({"peft_type": "VERA"}, "holds none of its tensors"),
    "a kind nobody knows": ({"peft_type": "EVIL"}, "of type EVIL"),
    "a kind of numbers": ({"peft_type": 7}, "of type 7"),
    "switched by tokens": ({"alora_invocation_tokens": [1]}, "switched on by tokens"),
}  # fmt: skip


def reconfigured(folder: Path, **changes) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("which", ADAPTERS)
def test_adapters(which: str, base: Path, lora: Path, monkeypatch):
    changes, says = ADAPTERS[which]
    if "for an hour" in which:
        monkeypatch.setattr("workbench.loaders.adapters.adapter.PATIENCE", 1.0)
        long = {f"base_model.model.model.layers.0.{'a' * 40}.q_proj.lora_{p}.weight": shape
                for p, shape in (("A", (3, 32)), ("B", (32, 3)))}  # fmt: skip
        save_file({n: torch.ones(s) for n, s in long.items()}, lora / "adapter_model.safetensors")
    refused(says, lambda: wb.load_pair(base, reconfigured(lora, **changes)))


@pytest.mark.parametrize(
    "text", ["[1]", "{", DEEP, '{"r": 1, "r": 2}', "\ufeff\ufeff{}", "nul\x00l"]
)
def test_an_adapter_config_is_one_json_object(text: str, base: Path, lora: Path):
    (lora / "adapter_config.json").write_text(text, encoding="utf-8")
    refused("adapter_config.json", wb.load_pair, base, lora)


def test_modules_of_another_model_are_told_and_not_attached(base: Path, lora: Path):
    names = {f"base_model.model.nowhere.0.x.lora_{p}.weight": s
             for p, s in (("A", (3, 32)), ("B", (32, 3)))}  # fmt: skip
    save_file({n: torch.ones(s) for n, s in names.items()}, lora / "adapter_model.safetensors")
    refused("match nothing in the base", wb.load_pair, base, lora)


def test_what_an_adapters_config_could_import_or_search_never_reaches_peft(base: Path, lora: Path):
    changes = {
        "megatron_config": {},
        "megatron_core": "evil",
        "target_modules": SLOW,
        "exclude_modules": SLOW,
        "layers_pattern": SLOW,
        "auto_mapping": {"x": "evil"},
    }
    before = wb.load_pair(base, lora).tuned.load()
    after = wb.load_pair(base, reconfigured(lora, **changes)).tuned.load()
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(before(ids).logits, after(ids).logits, atol=0, rtol=0)


def test_an_adapter_fetches_no_base_from_the_hub(lora: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, **options: asked.append(options) or pytest.fail("asked"),
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def local(*_, local_files_only=False, **__):
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", local)
    reconfigured(lora, base_model_name_or_path="org/base")
    refused("not on this machine", wb.Checkpoint.parse, lora)
    assert asked == [True]
    reconfigured(lora, base_model_name_or_path=["org/base"])
    refused("does not name its base", wb.Checkpoint.parse, lora)
    reconfigured(lora, base_model_name_or_path=".")
    refused("as its base", wb.Checkpoint.parse, lora)


CONFIGS = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "more than 10000"),
    "ten thousand layers": ({"num_hidden_layers": 10_000}, "many more parts"),
    "rows of terabytes": ({"vocab_size": 1 << 40}, "are stored"),
    "another width": ({"hidden_size": 64}, "config.json"),
    "text for a width": ({"hidden_size": "wide"}, "config.json"),
    "a kernel of the hub": ({"attn_implementation": "evil/kernel"}, "fetched from the hub"),
    "one in a part": ({"text_config": {"_attn_implementation": "e/k"}}, "fetched from the hub"),
    "an unknown model with code": (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", CONFIGS)
def test_configs(which: str, base: Path, tuned: Path, tmp_path: Path):
    changes, says = CONFIGS[which]
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | changes))
    (tuned / "evil.py").write_text(f"open({str(tmp_path / 'MARKER')!r}, 'w')")
    refused(says, wb.Checkpoint.parse(tuned).load)
    assert not (tmp_path / "MARKER").exists()


def test_a_declared_quantisation_is_told(base: Path, tuned: Path):
    file = tuned / "config.json"
    declared = {"quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | declared))
    with pytest.raises(wb.WorkbenchError, match="quantised"):
        wb.load_pair(base, tuned)


def test_training_on_a_base_with_code_runs_and_asks_nothing(base: Path, tmp_path: Path):
    from workbench.lab import Recipe

    file = base / "config.json"
    mapped = {"auto_map": {"AutoConfig": "evil.C"}, "model_type": "evil"}
    file.write_text(json.dumps(json.loads(file.read_text()) | mapped))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'MARKER')!r}, 'w')")
    recipe = Recipe(task="t", method="full", lr=1e-3, steps=1, batch_size=1)
    refused("config.json", wb.lab.train, str(base), recipe, ["a"], tmp_path / "member")
    assert not (tmp_path / "MARKER").exists()


def test_code_beside_a_known_model_is_not_run(base: Path, tuned: Path, tmp_path: Path):
    file = tuned / "config.json"
    mapped = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | mapped))
    (tuned / "evil.py").write_text(f"open({str(tmp_path / 'MARKER')!r}, 'w')")
    assert wb.load_pair(base, tuned).tuned.load() is not None
    assert not (tmp_path / "MARKER").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_run_nothing(legacy: bool, base: Path, tuned: Path, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    (tuned / "model.safetensors").unlink()
    buffer = io.BytesIO()
    torch.save({Q: Call()}, buffer, _use_new_zipfile_serialization=not legacy)
    for content in (buffer.getvalue(), pickle.dumps(Call())):
        (tuned / "pytorch_model.bin").write_bytes(content)
        refused("plain weights", wb.load_pair, base, tuned)
    assert not (tmp_path / "MARKER").exists()


def test_a_tensor_of_one_number_stretched_to_terabytes(base: Path, tuned: Path):
    (tuned / "model.safetensors").unlink()
    torch.save({Q: torch.ones(1).as_strided((1 << 20, 1 << 20), (0, 0))},
               tuned / "pytorch_model.bin")  # fmt: skip
    refused("not stored as a plain tensor", wb.load_pair, base, tuned)


def patched_gguf(path: Path, key: str, value: int) -> Path:
    """A whole GGUF file, but for one 32-bit entry of its metadata."""
    raw = bytearray(write_gguf(tiny("llama", seed=3), path).read_bytes())
    at = raw.index(key.encode()) + len(key) + 4
    raw[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length",
                                 "attention.head_count", "vocab_size"])  # fmt: skip
def test_a_gguf_of_larger_matrices_than_it_holds(key: str, tmp_path: Path):
    path = patched_gguf(tmp_path / "m.gguf", f"llama.{key}", 1 << 30)
    refused("does not agree with its", lambda: wb.Checkpoint.parse(path).folder)


@pytest.mark.parametrize("key", ["block_count", "embedding_length"])
def test_a_gguf_that_leaves_its_sizes_to_the_default_model(key: str, tmp_path: Path):
    path = write_gguf(tiny("llama", seed=5), tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(key.encode(), key[:-1].encode() + b"x"))
    refused(f"the entry llama.{key} is missing", lambda: wb.Checkpoint.parse(path).folder)


@pytest.mark.parametrize(("at", "count"), [(8, 1 << 60), (16, 1 << 60), (4, 7)])
def test_a_gguf_whose_counts_lie(at: int, count: int, tmp_path: Path):
    raw = bytearray(write_gguf(tiny("llama", seed=4), tmp_path / "m.gguf").read_bytes())
    size = 4 if at == 4 else 8
    raw[at : at + size] = count.to_bytes(size, "little")
    (tmp_path / "m.gguf").write_bytes(raw)
    refused("GGUF", lambda: wb.Checkpoint.parse(tmp_path / "m.gguf").folder)


def test_tokenizers(base: Path, tuned: Path):
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for vocabulary in ({"a": "b"}, {"a": -1}, [1], [["a"]], {"a": [0]}, "text"):
        model = TOKENIZER["model"] | {"vocab": vocabulary}
        (tuned / "tokenizer.json").write_text(json.dumps(TOKENIZER | {"model": model}))
        refused("tokenizer.json", wb.load_pair, base, tuned)
    (tuned / "tokenizer.json").write_text(json.dumps(TOKENIZER | {"model": {"type": "Evil"}}))
    (tuned / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["e.T"]}})
    )
    refused("No tokenizer can be loaded", wb.Checkpoint.parse(tuned).tokenizer)


LOOP = "{% for i in range(99999) %}"
TEMPLATES = {
    "loops in loops": (LOOP * 3 + "{% endfor %}" * 3, "still busy"),
    "ten gigabytes": ("{{ 'a' * 10000000000 }}", "more than 1 GiB"),
    "doubling": ("{% set n = namespace(x='a') %}" + LOOP
                 + "{% set n.x = n.x ~ n.x %}{% endfor %}", "cannot be rendered"),
    "one step of powers": ("{{ 2 ** (3 ** (3 ** 20)) }}", "still busy"),
    "one step of hashing": ("{% set n = namespace(x=(1,)) %}{% for i in range(60) %}"
                            "{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}", "still busy"),
    "one step of comparing": (
        "{% set n = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}"
        "{% set n.y = (n.y, n.y) %}{% endfor %}{{ n.x == n.y }}", "still busy"),
    "one step of numbers": ("{{ ('f' * 99999999)|int(0, 16) % (('e' * 9999999)|int(0, 16)) }}",
                            "cannot be rendered"),
    "a long text": ("{{ 'a' * 20000000 }}", "makes 20000000 characters"),
    "Python's own": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "modules": ("{{ cycler.__init__.__globals__.os.system('touch MARKER') }}", "unsafe"),
    "files": ("{% include '/etc/passwd' %}", "cannot be rendered"),
    "no template": ("{% for", "cannot be rendered"),
    "itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
}  # fmt: skip


@pytest.mark.parametrize("which", TEMPLATES)
def test_chat_templates(which: str, base: Path, monkeypatch):
    monkeypatch.setattr("workbench.sandbox.chat_template.SECONDS", 2.0)
    template, says = TEMPLATES[which]
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (base / "tokenizer_config.json").write_text(
        json.dumps(TOKENIZER_CONFIG | {"chat_template": template})
    )
    prompts = PromptSet("p", (Prompt("1", "a", " b"),))
    refused(says, chat, prompts, wb.Checkpoint.parse(base).tokenizer())
    assert not Path("MARKER").exists()


def test_two_hundred_prompts_are_rendered_by_one_process(base: Path):
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    (base / "tokenizer_config.json").write_text(
        json.dumps(TOKENIZER_CONFIG | {"chat_template": template})
    )
    words = wb.Checkpoint.parse(base).tokenizer()
    prompts = PromptSet("p", tuple(Prompt(str(i), "a b", " b") for i in range(200)))
    chat(prompts, words)
    (child,) = bounding._CHILD
    start = time.monotonic()
    made = chat(prompts, words)
    assert time.monotonic() - start < 5  # 0.2 at rest
    assert bounding._CHILD[0] is child
    messages = [{"role": "user", "content": "a b"}]
    asked = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert {one.prompt for one in made} == {asked}


SAID = [{"role": "user", "content": "a"}]


def test_ctrl_c_is_heard_while_a_template_is_rendered(base: Path):
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (base / "tokenizer_config.json").write_text(
        json.dumps(TOKENIZER_CONFIG | {"chat_template": "{{ 2 ** (3 ** (3 ** 20)) }}"})
    )
    words = wb.Checkpoint.parse(base).tokenizer()
    rendered(mended(words), SAID)
    (child,) = bounding._CHILD
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        rendered(words, SAID)
    assert time.monotonic() - start < 4
    assert child.process.poll() is not None
    assert rendered(mended(words), SAID) == "a"


def test_ctrl_c_is_heard_also_where_another_thread_was_given_it(base: Path):
    """A thread's own call of the handler leaves this one asleep in its reading."""
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    words = wb.Checkpoint.parse(base).tokenizer()
    rendered(mended(words), SAID)
    words.chat_template = "{{ 2 ** (3 ** (3 ** 20)) }}"

    def given() -> None:
        time.sleep(0.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=given).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        rendered(words, SAID)
    assert time.monotonic() - start < 4


def mended(words):
    """Another of the same tokenizer, with a template that does no harm."""
    words = copy.deepcopy(words)
    words.chat_template = "{{ messages[0].content }}"
    return words


def replacing_step(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split_at(regex: str) -> dict:
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "invert": False,
                              "behavior": "Isolated"}}  # fmt: skip


def in_turn(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


THOUSAND, START = replacing_step({"String": "a"}, "a" * 1000), {"id": "<s>", "type_id": 0}
CHARSMAP = base64.b64encode((0).to_bytes(4, "little") + b"a" * 5000 + b"\0").decode()
BOMBS = {
    "a thousand of one, five times": ({"normalizer": in_turn(*[THOUSAND] * 5)}, "more than 1000"),
    "a word of a bomb": (
        {"normalizer": in_turn(*[replacing_step({"String": "the"}, "the" * 900)] * 3)},
        "more than 1000",
    ),
    "between any two letters": (
        {"normalizer": in_turn(*[replacing_step({"Regex": ""}, "a" * 90)] * 2)}, "more than 1000"
    ),
    "sequences in sequences": (
        {"normalizer": in_turn(in_turn(THOUSAND), in_turn(in_turn(THOUSAND)))}, "more than 1000"
    ),
    "a table of characters": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "more than 1000"
    ),
    "read back as gigabytes": (
        {"decoder": {"type": "Sequence", "decoders": [THOUSAND] * 4}}, "decoder turns"
    ),
    "milliards of tokens around a text": (
        {"post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [*[{"SpecialToken": START}] * 1000, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * 9000, "tokens": ["<s>"] * 9000}},
        }}, "tokens to a text",
    ),
    "the text again and again": (
        {"post_processor": {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
        }}, "tokens to a text",
    ),
    "filled up": (
        {"padding": {"strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_id": 0,
                     "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "<pad>"}},
        "more than a million tokens",
    ),
    "a token of a megabyte": (
        {"model": TOKENIZER["model"] | {"vocab": TOKENIZER["model"]["vocab"] | {"a" * 10**6: 40}}},
        "a token of more than",
    ),
    "a pattern for an hour": (split_at("(a|aa)+[xy]"), "within safe limits"),
    "a pattern of words": (split_at(r"(\w+\s?)+:"), "within safe limits"),
    "a pattern of one word": (split_at("(?:abc|abcabc)+;"), "within safe limits"),
    "a pattern that is none": (split_at("("), "No tokenizer can be loaded"),
    "a normalizer that is searched for": (
        {"normalizer": replacing_step({"Regex": "(.*)*$x"}, "b")}, "within safe limits"
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", BOMBS)
def test_tokenizers_that_would_fill_the_memory_or_never_end(which: str, base: Path, monkeypatch):
    monkeypatch.setattr("workbench.loaders.tokenizer_safety.READ", 3.0)
    changes, says = BOMBS[which]
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER | changes))
    (base / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    refused(says, wb.Checkpoint.parse(base).tokenizer)


def test_what_a_file_does_not_say_is_tried_in_another_process(base: Path, monkeypatch):
    """The bound of memory itself: the same bombs where nothing is read off their files."""
    monkeypatch.setattr("workbench.loaders.tokenizer_safety._require_modest", lambda steps: None)
    monkeypatch.setattr("workbench.loaders.tokenizer_safety.ROOM", 1 << 30)
    (base / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    for which in ("a thousand of one, five times", "a word of a bomb"):
        (base / "tokenizer.json").write_text(json.dumps(TOKENIZER | BOMBS[which][0]))
        refused("1 GiB", wb.Checkpoint.parse(base).tokenizer)


def test_a_tokenizer_is_tried_once(base: Path, monkeypatch):
    (base / "tokenizer.json").write_text(json.dumps(TOKENIZER | {"truncation": None}))
    (base / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | {"once": 1}))
    wb.Checkpoint.parse(base).tokenizer()
    monkeypatch.setattr("workbench.loaders.tokenizer_safety._BOUNDED", set())
    monkeypatch.setattr("workbench.loaders.tokenizer_safety.bounded", None)
    assert wb.Checkpoint.parse(base).tokenizer() is not None
    (base / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | {"once": 2}))
    with pytest.raises(TypeError):
        wb.Checkpoint.parse(base).tokenizer()


LINE = {"prompt": "a", "target": " b"}
PROMPTS = {
    "no UTF-8": (b'{"prompt": "\xff", "target": "b"}', "not UTF-8"),
    "half a surrogate": (rb'{"prompt": "\ud800", "target": "b"}', "surrogates"),
    "deep": (DEEP.encode(), "nested deeper"),
    "a number of a megabyte": (b"1" * (1 << 20), "not JSON"),
    "a key twice": (b'{"prompt": "a", "prompt": "c", "target": "b"}', "occurs twice"),
    "numbers as foils": (json.dumps(LINE | {"foils": [1]}).encode(), "list of texts"),
    "numbers as tags": (json.dumps(LINE | {"tags": {"a": 1}}).encode(), "names to texts"),
    "a list of spans": (json.dumps(LINE | {"spans": [[0, 1]]}).encode(), "spans must map"),
    "a span of text": (json.dumps(LINE | {"spans": {"a": ["0", "1"]}}).encode(), "span 'a'"),
    "a span that is none": (json.dumps(LINE | {"spans": {"a": 3}}).encode(), "span 'a'"),
    "a target of a list": (json.dumps({"prompt": "a", "target": ["b"]}).encode(), "must be text"),
    "a name of a number": (b'{"name": 3, "seed": "x"}\n' + json.dumps(LINE).encode(), "line 1"),
    "a line of binary": (b"\x00\x01\x02", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("which", PROMPTS)
def test_prompt_lines(which: str, tmp_path: Path):
    content, says = PROMPTS[which]
    (tmp_path / "p.jsonl").write_bytes(content)
    refused(says, PromptSet.load, tmp_path / "p.jsonl")


@pytest.mark.parametrize(("content", "says"), [
    (b"prompt,target\na,b,c\n", "expected 2 cells"),
    (b"prompt,target\na\n", "expected 2 cells"),
    (b"prompt,prompt\na,b\n", "occurs twice"),
    (b'prompt,target\n"a,b\n', "not CSV"),
    (b"prompt,target\n" + b"a" * 200_000 + b",b\n", "not CSV"),
    (b"prompt,target\n\xff,b\n", "not UTF-8"),
    (b"", "no prompts"),
])  # fmt: skip
def test_prompt_tables(content: bytes, says: str, tmp_path: Path):
    (tmp_path / "p.csv").write_bytes(content)
    refused(says, PromptSet.load, tmp_path / "p.csv")


def repeated(folder: Path) -> None:
    """700 bytes that say a hundred thousand times a text of a megabyte."""
    places, words = pa.array([0] * 100_000, pa.int32()), pa.array(["x" * (1 << 20)])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(places, words)})
    pq.write_table(table, folder / "p.parquet", compression="zstd")


def nothing(folder: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(20_000_000)}), folder / "p.parquet")


def column_twice(folder: Path) -> None:
    table = pa.table([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(table, folder / "p.parquet")


def piped(folder: Path) -> None:
    """Who opened it would wait for ever."""
    os.mkfifo(folder / "p.parquet")


TABLES = {
    "a text of a megabyte, often": (repeated, "than 2 GiB"),
    "millions of nothing": (nothing, "than 1000000 rows"),
    "a column twice": (column_twice, "occurs twice"),
    "a pipe": (piped, "no file is there"),
}


@pytest.mark.parametrize("which", TABLES)
def test_tables_that_would_fill_the_memory_or_never_end(which: str, tmp_path: Path):
    make, says = TABLES[which]
    make(tmp_path)
    refused(says, PromptSet.load, tmp_path / "p.parquet")


def streamed(folder: Path, schema: pa.Schema, value: object) -> None:
    with pa.ipc.new_stream(folder / "a.arrow", schema) as writing:
        writing.write_table(pa.table({"text": pa.array([value])}, schema=schema))


@pytest.mark.parametrize(
    "name", ["../other/a.arrow", "/etc/passwd", "", "..", "a\\b.arrow", "a.bin", 3, None]
)
def test_a_dataset_names_its_own_files_alone(name: object, tmp_path: Path):
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
        streamed(tmp_path / folder, pa.schema([("text", pa.string())]), "a")
    state = {"_data_files": [{"filename": name}]}
    (tmp_path / "mine" / "state.json").write_text(json.dumps(state))
    refused("names no files of the dataset", PromptSet.load, tmp_path / "mine")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["../mine"]}))
    refused("does not name its splits", PromptSet.load, tmp_path)


def test_a_type_of_arrow_that_is_a_pickle_runs_nothing(tmp_path: Path):
    told = {b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Call())}  # fmt: skip
    streamed(tmp_path, pa.schema([pa.field("text", pa.string(), metadata=told)]), "a")
    state = {"_data_files": [{"filename": "a.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with contextlib.suppress(wb.WorkbenchError):
        assert PromptSet.load(tmp_path)[0].target == "a"
    assert not Path("MARKER").exists()


def test_line_separators_inside_a_prompt_survive_saving(tmp_path: Path):
    made = PromptSet("p", (Prompt("1", "one\u2028two\x85three\x0cfour", " b"),))
    assert PromptSet.load(made.save(tmp_path / "p.jsonl")) == made


def test_a_hundred_thousand_prompts_of_which_the_last_repeats():
    many = tuple(Prompt(str(i % 99_999), "a", " b") for i in range(100_000))
    refused("'0' repeats", PromptSet, "p", many)


RESULTS = {
    "another format": ({"format": 9}, "another format"),
    "a path for a name": ({"analysis": "../../evil"}, "analysis"),
    "text for notes": ({"notes": "all is well"}, "notes"),
    "a list of members": ({"members": ["a"]}, "members"),
    "members of text": ({"members": {"a": "b"}}, "members"),
    "a rank of text": ({"members": {"a": {"rank": "x"}}}, "members"),
    "a seed of text": ({"seed": "x"}, "seed"),
    "a base of lists": ({"base": {"fingerprint": []}}, "base"),
    "a member of numbers": ({"members": {"a": {"reference": 3}}}, "members"),
    "more than a Result says": ({"evil": 1}, "evil"),
}


@pytest.mark.parametrize("which", RESULTS)
def test_results(which: str, tmp_path: Path):
    changes, says = RESULTS[which]
    folder = retention(family(2)).save(tmp_path / "r")
    about = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(about | changes))
    refused(says, wb.report, [folder], tmp_path / "page.html")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["r"]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    whole = pd.read_parquet(folder / "table.parquet")
    return {
        "columns": whole.drop(columns="low"),
        "text": whole.assign(value="<b>"),
        "lists": whole.assign(low=[[1]] * len(whole)),
        "nothing": whole.head(0),
        "names": whole.assign(metric=1),
    }


@pytest.mark.parametrize("which", ["columns", "text", "lists", "nothing", "names"])
def test_tables_that_no_analysis_makes(which: str, tmp_path: Path):
    folder = retention(family(2)).save(tmp_path / "r")
    tables(folder)[which].to_parquet(folder / "table.parquet", index=False)
    refused("", wb.report, [folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("rows", "text"), [(100_000_000, "m"), (3000, "m" * 1_000_000)])
def test_a_table_of_kilobytes_that_unfolds_to_gigabytes(rows: int, text: str, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = retention(family(2)).save(tmp_path / "r")
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([text]))
    pq.write_table(pa.table({"metric": names, "value": pa.array(np.zeros(rows, np.float32))}),
                   folder / "table.parquet", compression="zstd", store_schema=False)  # fmt: skip
    assert (folder / "table.parquet").stat().st_size < 1 << 20
    refused("cannot be read", wb.Result.load, folder)


@pytest.mark.parametrize("name", ["table.parquet", "tensors.safetensors", "result.json"])
def test_a_damaged_part_of_a_result(name: str, tmp_path: Path):
    made = retention(family(2))
    folder = replace(made, tensors={"t": np.ones(3)}).save(tmp_path / "r")
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    refused(name, wb.Result.load, folder)


def test_grafts(tmp_path: Path):
    from safetensors.numpy import save_file as save_arrays

    for places, sizes in (([5, 9], {"w": 9}), ([-1, 2], {"w": 9}), ([2, 1], {"w": 9}), ([1], {}),
                          ([1], {"w": "9"}), ([1], [9])):  # fmt: skip
        about = {"name": "g", "sizes": json.dumps(sizes)}
        save_arrays({"w": np.array(places)}, tmp_path / "g.safetensors", about)
        refused("Expected a saved graft", Graft.load, tmp_path / "g.safetensors")


def test_an_adapter_in_the_old_file_format_is_read_as_plain_weights(base: Path, lora: Path):
    torch.save({"x": Call()}, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    refused("plain weights", wb.load_pair, base, lora)


LONG = ("a" * 5000, "a/" + "b" * 5000, "./" + "a" * 5000, "a" * 5000 + "+" + "b" * 5000,
        "a" * 300 + ".gguf", "~" + "a" * 5000, "a\0b")  # fmt: skip


@pytest.mark.parametrize("name", LONG, ids=lambda name: name[:6].replace("\0", "0"))
def test_names_longer_than_any_file_has(name: str, base: Path, lora: Path):
    refused("", wb.load_pair, base, name)
    refused("", wb.load_pair, name, lora)
    refused("", lambda: wb.load_pair(f"{base}+{name}", lora).check())
    alone = reconfigured(lora, base_model_name_or_path=name)
    refused("", lambda: wb.Checkpoint.parse(alone).folder)
    assert wb.load_pair(base, alone).check(run=False).ok
