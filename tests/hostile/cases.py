"""The readers of the library, each with whole files to damage and a way to read what is left."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from csv import writer
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from tests.figures.synthetic import family, intruders, retention
from tests.forgetting import logged
from tests.hostile import leads, neighbours, spoken
from tests.hostile.mangled import TEXTS, broken, json_bytes
from tests.hostile.page import require_escaped
from tests.loaders.test_gguf import write as write_gguf
from workbench.errors import unpanicked, visible
from workbench.figures import Spec
from workbench.loaders import tokenizer_safety
from workbench.results import cache, run_folder
from workbench.sandbox import chat_template as templates
from workbench.skills.graft import Graft
from workbench.study import runs
from workbench.tasks import PromptSet, own_samples
from workbench.tasks.measurements import read_text

Files = dict[str, bytes]
WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(97 + i): 3 + i for i in range(26)}
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [
        {"id": 1, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True},
    ],
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "<pad>"},
}  # fmt: skip
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}  # fmt: skip
CODE = ("auto_map", "attn_implementation", "quantization_config", "use_pretrained_backbone",
        "architectures", "model_type", "custom_pipelines", "torch_dtype", "dtype")  # fmt: skip
PEFT = ("megatron_config", "megatron_core", "auto_mapping", "eva_config", "loftq_config",
        "rank_pattern", "alpha_pattern", "layers_pattern", "layers_to_transform",
        "exclude_modules", "modules_to_save", "trainable_token_indices")  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """whole: file name -> content, undamaged. cases: strategy of the same, damaged. read: what the
    library does with the folder. share: of 10,000 cases."""

    name: str
    whole: Files
    cases: st.SearchStrategy[Files]
    read: Callable[[Path], Any]
    share: int


def files(folder: Path) -> Files:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


class Seeds:
    """Whole files of every kind, made once under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = saved(tiny("llama"), root / "base")
        (self.base / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (self.base / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
        tuned = root / "tuned"
        shutil.copytree(self.base, tuned)
        saved(nudged(tiny("llama")), tuned)
        nudged(tiny("llama")).save_pretrained(root / "shards", max_shard_size="20KB")
        self.tuned, self.shards = files(tuned), files(root / "shards")
        options = {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}}
        self.lora = files(adapter(tiny("llama"), root / "lora", **options))
        self.gguf = write_gguf(tiny("llama"), root / "m.gguf").read_bytes()
        self.converted = wb.Checkpoint.parse(root / "m.gguf").fingerprint
        self.results = [files(retention(family(2)).save(root / "r1")),
                        files(intruders(family(2)).save(root / "r2"))]  # fmt: skip
        graft = Graft("g", {"w": np.array([1, 3, 5])}, {"w": 9, "v": 4})
        self.graft = graft.save(root / "g.safetensors").read_bytes()


def small_weights() -> tuple[dict, bytes]:
    """(header, data) of a safetensors file of two matrices and a vector, named as the base's."""
    shapes = {"model.layers.0.self_attn.q_proj.weight": (32, 32), "model.norm.weight": (32,),
              "model.layers.1.self_attn.k_proj.weight": (32, 32)}  # fmt: skip
    raw = save({name: torch.ones(shape) for name, shape in shapes.items()})
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@st.composite
def safetensors_bytes(draw: st.DrawFn) -> bytes:
    header, data = small_weights()
    text = draw(json_bytes(header)) if draw(st.booleans()) else json.dumps(header).encode()
    length = len(text)
    if draw(st.integers(0, 3)) == 0:
        length = draw(
            st.sampled_from([0, 1, max(length - 1, 0), length + 1, 2**31, 2**63, 2**64 - 1])
        )
    if draw(st.booleans()):
        values = np.frombuffer(data, dtype=np.float32).copy()
        odd = draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 1e-45]))
        values[draw(st.integers(0, len(values) - 1))] = odd
        data = values.tobytes()
    return (
        length.to_bytes(8, "little") + text + (draw(broken(data)) if draw(st.booleans()) else data)
    )


class Call:
    """A pickle that runs a command where pickles run code."""

    def __reduce__(self) -> Any:
        return open, ("MARKER", "w")


def hostile_pickles() -> list[bytes]:
    def archive(content: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    name = "model.layers.0.self_attn.q_proj.weight"
    wide = torch.ones(1).as_strided((1 << 20, 1 << 20), (0, 0))
    whole = {name: torch.ones(32, 32), "model.norm.weight": torch.ones(32)}
    return [
        archive(whole), archive(whole, _use_new_zipfile_serialization=False),
        archive({name: wide}), archive({name: Call()}), pickle.dumps(Call()), pickle.dumps(whole),
        archive([1, 2]), archive({name: torch.ones(32, 32).to_sparse()}), archive({1: 2}),
        archive({name: torch.full((32, 32), float("nan"))}), b"",
    ]  # fmt: skip


def damaged(files: Files, name: str, content: st.SearchStrategy[bytes]) -> dict[str, Any]:
    """The arguments of a Reader of `files`, of which `name` is damaged."""
    return {"whole": files, "cases": content.map(lambda raw: files | {name: raw})}


def readers(seeds: Seeds) -> list[Reader]:
    found = [*weights(seeds), *models(seeds), *leading(seeds), *texts(), *outcomes(seeds)]
    found += logs(seeds)
    return [*found, *meanings(seeds), *neighbourhoods(seeds)]


def compared(seeds: Seeds, reference: Path | str) -> wb.CheckpointPair:
    """The preflight of the base and what is in question, and every change where it passes."""
    pair = wb.CheckpointPair(wb.Checkpoint.parse(seeds.base), wb.Checkpoint.parse(reference))
    if pair.check().ok:
        assert all(torch.isfinite(d.change).all() for d in pair.deltas("all"))
    return pair


def weights(seeds: Seeds) -> list[Reader]:
    header, data = small_weights()
    text = json.dumps(header).encode()
    small = len(text).to_bytes(8, "little") + text + data
    index, pickles = "model.safetensors.index.json", hostile_pickles()

    def read(folder: Path) -> None:
        compared(seeds, folder)

    def read_gguf(folder: Path) -> None:
        compared(seeds, folder / "m.gguf")

    torches = st.sampled_from(pickles).flatmap(lambda raw: st.one_of(st.just(raw), broken(raw)))
    # Nearly all of a GGUF file is data; what can lie is its head.
    head, rest = seeds.gguf[:4000], seeds.gguf[4000:]
    ggufs = st.one_of(broken(head).map(lambda raw: raw + rest), broken(seeds.gguf))
    return [
        Reader(
            "safetensors", **damaged({"model.safetensors": small}, "model.safetensors",
                                     safetensors_bytes()), read=read, share=1040,
        ),
        Reader(
            "index", **damaged(seeds.shards, index, json_bytes(json.loads(seeds.shards[index]))),
            read=read, share=500,
        ),
        Reader(
            "torch", **damaged({"pytorch_model.bin": pickles[0]}, "pytorch_model.bin", torches),
            read=read, share=600,
        ),
        Reader("gguf", **damaged({"m.gguf": seeds.gguf}, "m.gguf", ggufs), read=read_gguf,
               share=500),
    ]  # fmt: skip


def models(seeds: Seeds) -> list[Reader]:
    lora, tuned = seeds.lora, seeds.tuned | {"evil.py": b"open('MARKER', 'w')"}
    config, settings = (
        json.loads(found) for found in (tuned["config.json"], lora["adapter_config.json"])
    )

    def attach(folder: Path) -> None:
        pair = wb.load_pair(seeds.base, folder)
        if pair.check().ok:
            assert all(torch.isfinite(d.change).all() for d in pair.deltas("all"))
            pair.tuned.load()

    def run(folder: Path) -> None:
        compared(seeds, folder).tuned.load()

    def speak(folder: Path) -> None:
        words = compared(seeds, folder).tuned.tokenizer()
        words("a b zz")
        if words.chat_template:
            wb.tasks.chat(PromptSet("p", (wb.tasks.Prompt("1", "a b", " c"),)), words)

    adapters = st.one_of(
        damaged(lora, "adapter_config.json", json_bytes(settings, PEFT))["cases"],
        damaged(lora, "adapter_model.safetensors",
                broken(lora["adapter_model.safetensors"]))["cases"],
    )  # fmt: skip
    tokenizers = st.one_of(
        damaged(tuned, "tokenizer.json", json_bytes(TOKENIZER))["cases"],
        damaged(tuned, "tokenizer_config.json", json_bytes(TOKENIZER_CONFIG, CODE))["cases"],
    )
    return [
        Reader("adapter", lora, adapters, attach, 1200),
        Reader("config", **damaged(tuned, "config.json", json_bytes(config, CODE)), read=run,
               share=800),
        Reader("tokenizer", tuned, tokenizers, speak, 500),
    ]  # fmt: skip


def leading(seeds: Seeds) -> list[Reader]:
    """Whole files, but for configs that lead elsewhere."""
    second = seeds.tuned["model.safetensors"]
    trap: Files = dict.fromkeys(("evil.py", "custom_generate/generate.py"), leads.CODE_FILE)
    trap |= {"second.safetensors": second, "tokenizer.4.0.0.json": seeds.tuned["tokenizer.json"]}
    member, lora = seeds.tuned | trap, seeds.lora | trap
    shards = {name: raw for name, raw in member.items() if name != "model.safetensors"}
    shards |= seeds.shards
    beside = {"m.gguf": seeds.gguf} | {
        name: member[name] for name in ("config.json", "tokenizer_config.json", *trap)
    }

    def run(folder: Path) -> None:
        pair = compared(seeds, folder)
        own_samples(pair.tuned.load(), pair.base.tokenizer(), n=1, length=2)

    def speak(folder: Path) -> None:
        compared(seeds, folder).tuned.tokenizer()

    def attach(folder: Path) -> None:
        with contextlib.suppress(wb.WorkbenchError):
            wb.Checkpoint.parse(folder)  # on the base that it names
        compared(seeds, f"{seeds.base}+{folder}").tuned.load()

    def convert(folder: Path) -> None:
        shutil.rmtree(cache.folder("gguf"), ignore_errors=True)
        found = wb.Checkpoint.parse(folder / "m.gguf")
        assert found.fingerprint == seeds.converted
        found.tokenizer()

    def mixed(files: Files, *which: tuple[str, leads.Leads]) -> st.SearchStrategy[Files]:
        return st.one_of([
            leads.rewritten(json.loads(files.get(name, b"{}")), found).map(
                lambda raw, name=name: files | {name: raw}
            )
            for name, found in which
        ])  # fmt: skip

    settings, index = "generation_config.json", "model.safetensors.index.json"
    own = ("config.json", leads.CONFIG)
    words, adapted = (
        ("tokenizer_config.json", leads.WORDS), ("adapter_config.json", leads.ADAPTER),
    )  # fmt: skip
    return [
        Reader("leads", member, mixed(member, own, own, own, (settings, leads.SETTINGS)), run, 500),
        Reader("shards", shards, mixed(shards, (index, leads.INDEX), own), run, 200),
        Reader("words", member, mixed(member, words, words, own), speak, 400),
        Reader("lora", lora, mixed(lora, adapted), attach, 400),
        Reader("converted", beside, mixed(beside, own, words, adapted), convert, 100),
    ]  # fmt: skip


def texts() -> list[Reader]:
    lines, row = b"one line\nanother\r\n\n" * 30, json.dumps(PROMPT).encode()

    def read(folder: Path) -> None:
        (file,) = folder.iterdir()
        found = PromptSet.load(file)
        copy = PromptSet.load(found.save(folder / "again.jsonl"))
        assert copy == found
        assert copy.fingerprint == found.fingerprint

    def pieces(folder: Path) -> None:
        read_text(folder / "t.txt")

    table = b"id,prompt,target,foils,split,kind\n1,Box,apple,book|pen,test,box\n"
    return [
        Reader("jsonl", **damaged({"p.jsonl": row}, "p.jsonl", jsonl()), read=read, share=500),
        Reader("csv", **damaged({"p.csv": table}, "p.csv", csv()), read=read, share=300),
        Reader("text", **damaged({"t.txt": lines}, "t.txt", broken(lines)), read=pieces, share=100),
        *shaped(read),
    ]


def shaped(read: Callable[[Path], None]) -> list[Reader]:
    """Rows of every shape that is read, as lines and as tables of Arrow: each with one damaged."""
    whole = json.dumps(ROWS[0]).encode()
    row = st.sampled_from(ROWS).flatmap(lambda one: json_bytes(one, ("tags", "split", "id")))
    state = json.dumps({"_data_files": [{"filename": "a.arrow"}]}).encode()
    tables, streams = ([arrow(one, kind) for one in ROWS] for kind in ("parquet", "stream"))
    stored = {"state.json": state, "a.arrow": streams[0], "b.arrow": streams[1]}
    hurt = st.sampled_from(tables).flatmap(broken)
    folders = st.one_of(
        damaged(stored, "a.arrow", st.sampled_from(streams).flatmap(broken))["cases"],
        damaged(stored, "state.json", json_bytes(json.loads(state), ("_indices_files",)))["cases"],
    )

    def folder(given: Path) -> None:
        found = PromptSet.load(given)
        assert PromptSet.load(found.save(given.parent / "again.jsonl")) == found

    return [
        Reader("shapes", **damaged({"p.jsonl": whole}, "p.jsonl", row), read=read, share=300),
        Reader("parquet", **damaged({"p.parquet": tables[0]}, "p.parquet", hurt), read=read,
               share=100),
        Reader("datasets", stored, folders, folder, share=100),
    ]  # fmt: skip


def arrow(row: dict[str, Any], kind: str) -> bytes:
    """A table of Arrow of one row, as parquet or as a stream of batches."""
    table, buffer = pa.Table.from_pylist([row]), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_stream(buffer, table.schema) as writing:
            writing.write_table(table)
    return buffer.getvalue()


def logs(seeds: Seeds) -> list[Reader]:
    """One side's log of an evaluation is damaged, the other's is whole."""
    rows = [logged.choice_row(i, i > 2) for i in range(5)]
    about, name = logged.results("zoo"), f"samples_zoo_{logged.DATE}.jsonl"
    whole = {
        name: "\n".join(map(json.dumps, rows)).encode(),
        f"results_{logged.DATE}.json": json.dumps(about).encode(),
    }
    log = logged.evaluation([logged.sample(i, "CIC"[i]) for i in range(3)])
    packed = logged.archive(log)
    inspected = {"a.json": json.dumps(log).encode(), "a.eval": packed}
    sides = {}
    for side, files in (("harness", whole), ("inspected", {"a.json": inspected["a.json"]})):
        for file, raw in files.items():
            (seeds.root / side).mkdir(exist_ok=True)
            (seeds.root / side / file).write_bytes(raw)
        sides[side] = seeds.root / side

    def read(folder: Path) -> None:
        found = wb.forgetting.samples(sides["harness"], folder, by="subject")
        require_plain(found)

    def inspect(folder: Path) -> None:
        for file in folder.iterdir():
            require_plain(wb.forgetting.samples(sides["inspected"], file))

    line = st.one_of(*(json_bytes(row, ("filter", "acc")) for row in rows[:2]))
    lines = st.tuples(line, st.just(json.dumps(rows[4]).encode())).map(b"\n".join)
    damage = st.one_of(
        damaged(whole, name, st.one_of(lines, broken(whole[name])))["cases"],
        damaged(whole, f"results_{logged.DATE}.json", json_bytes(about))["cases"],
    )
    # Each as a file of its own: that one of them is refused says nothing of the other.
    inspections = st.one_of(
        json_bytes(log).map(lambda raw: {"a.json": raw}),
        broken(packed).map(lambda raw: {"a.eval": raw}),
    )
    return [
        Reader("harness", whole, damage, read, 400),
        Reader("inspected", inspected, inspections, inspect, 300),
    ]


def require_plain(found: wb.Result) -> None:
    """Finite scores, and no text that a terminal or a page would obey."""
    assert np.isfinite(found.metric("score")["value"]).all()
    for column in ("prompt", "asked", "expected", "base_said", "said"):
        for text in found.metric("item")[column]:
            assert visible(text) == text


def outcomes(seeds: Seeds) -> list[Reader]:
    def report(folder: Path) -> None:
        wb.report([folder], folder / "page.html")

    def graft(folder: Path) -> None:
        found = Graft.load(folder / "g.safetensors")
        assert len(found) <= found.total
        assert found.fingerprint

    def page(folder: Path) -> None:
        require_escaped(folder)

    def panels(folder: Path) -> None:
        Spec.load(folder / "panels.yaml").draw()

    grafts = st.one_of(broken(seeds.graft), safetensors_bytes())
    # pandas holds no lone surrogates, and the loaders let none in.
    name = TEXT.filter(lambda text: "\ud800" not in text)
    names = st.lists(name, min_size=4, max_size=4).map(lambda four: json.dumps(four).encode())
    plain = {"texts.json": json.dumps(["member", "task", "note", "other"]).encode()}
    results = st.sampled_from(seeds.results).flatmap(damaged_result)
    told = {f"results/kept/{name}": content for name, content in seeds.results[0].items()}
    spec = json.dumps(SPEC).encode()
    lines = st.one_of(json_bytes(SPEC, ("colour",)), broken(yaml.safe_dump(SPEC).encode()))
    return [
        Reader("result", seeds.results[0], results, report, 500),
        Reader("graft", **damaged({"g.safetensors": seeds.graft}, "g.safetensors", grafts),
               read=graft, share=300),
        Reader("spec", **damaged(told | {"panels.yaml": spec}, "panels.yaml", lines), read=panels,
               share=200),
        Reader("page", **damaged(plain, "texts.json", names), read=page, share=200),
    ]  # fmt: skip


def meanings(seeds: Seeds) -> list[Reader]:
    """Tokenizers and chat templates that are whole and say something hostile."""

    def speak(folder: Path) -> None:
        with unpanicked(), mock.patch.object(tokenizer_safety, "READ", 3.0):
            words = wb.Checkpoint.parse(folder).tokenizer()
            words.decode(words("a b zz the aaaa, 1.")["input_ids"])

    def render(folder: Path) -> None:
        with mock.patch.object(templates, "SECONDS", 1.0):
            words = wb.Checkpoint.parse(folder).tokenizer()
            wb.tasks.chat(PromptSet("p", (wb.tasks.Prompt("1", "a b", " c"),)), words)

    def config(template: str) -> bytes:
        return json.dumps(TOKENIZER_CONFIG | {"chat_template": template}).encode()

    return [
        Reader("spoken", **damaged(seeds.tuned, "tokenizer.json", spoken.tokenizer(TOKENIZER)),
               read=speak, share=300),
        Reader("template", **damaged(seeds.tuned, "tokenizer_config.json",
                                     spoken.template().map(config)), read=render, share=150),
    ]  # fmt: skip


def neighbourhoods(seeds: Seeds) -> list[Reader]:
    """Runs with hostile accounts of themselves, and with hostile things in them."""
    spec = json.dumps(SPEC | {"panels": [{"analysis": "kept"}]}).encode()

    def draw(folder: Path) -> None:
        runs.redraw(folder, formats=("png",))

    def beside(folder: Path) -> None:
        (folder / "panels.yaml").write_bytes(spec)
        run_folder.failures(folder)
        Spec.load(folder / "panels.yaml").draw()

    whole, cases = neighbours.whole_run(*seeds.results), neighbours.runs(*seeds.results)
    return [
        Reader("run", whole, cases, draw, 60),
        Reader("beside", whole, cases, beside, 150),
    ]


TEXT = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30))
PROMPT = {
    "id": "1", "prompt": "Box F contains the", "target": " apple", "foils": [" book"],
    "split": "test", "tags": {"kind": "box"}, "template": "t", "spans": {"box": [0, 5]},
}  # fmt: skip


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
         {"role": "assistant", "content": "Yo"}]  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "choices": ["one", "two"], "answer": 1, "subject": "sums"},
    {"question": "1 + 1?", "choices": {"text": ["one", "two"], "label": ["A", "B"]},
     "answerKey": "B"},
    {"ctx": "She opens", "endings": ["it.", "a door."], "label": "1"},
    {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    {"messages": TURNS}, {"prompt": TURNS[:2], "completion": TURNS[2:]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
    {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}, {"text": "Once upon a time."},
    {"prompt": "Box", "target": " apple", "foils": [" book"], "kind": "box"},
]  # fmt: skip
SPEC = {
    "results": "results", "style": "paper", "size": [3, 2], "columns": 2,
    "panels": [{"analysis": "kept", "figure": "rank", "members": ["full"], "title": "a",
                "options": {}, "span": 1, "legend": True}],
}  # fmt: skip


@st.composite
def jsonl(draw: st.DrawFn) -> bytes:
    head = json_bytes({"name": "set", "seed": 3})
    line = st.one_of(json_bytes(PROMPT, ("other",)), st.just(json.dumps(PROMPT).encode()))
    rows = [draw(head)] if draw(st.booleans()) else []
    rows += draw(st.lists(line, min_size=1, max_size=4))
    whole = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(rows)
    return draw(broken(whole)) if draw(st.integers(0, 3)) == 0 else whole


@st.composite
def csv(draw: st.DrawFn) -> bytes:
    cell = st.one_of(TEXT, st.sampled_from(["test", 'a"b', "a,b", '"', "x|y"]))
    rows = [["id", "prompt", "target", "foils", "split", "kind"]]
    for number in range(draw(st.integers(0, 4))):
        own = [str(number), draw(cell), draw(cell), draw(cell), "test", draw(cell)]
        rows.append(own if draw(st.integers(0, 4)) else draw(st.lists(cell, max_size=8)))
    buffer = io.StringIO()
    writer(buffer).writerows(rows)
    whole = buffer.getvalue().encode("utf-8", "surrogatepass")
    return draw(broken(whole)) if draw(st.integers(0, 2)) == 0 else whole


@st.composite
def damaged_result(draw: st.DrawFn, whole: Files) -> Files:
    kind = draw(st.sampled_from(["about", "about", "bytes", "table", "table"]))
    if kind == "about":
        return whole | {"result.json": draw(json_bytes(json.loads(whole["result.json"])))}
    if kind == "bytes":
        return whole | {"table.parquet": draw(broken(whole["table.parquet"]))}
    table = pd.read_parquet(io.BytesIO(whole["table.parquet"]))
    column = draw(st.sampled_from(list(table.columns)))
    how = draw(st.sampled_from(["drop", "text", "none", "lists", "rename", "numbers", "empty"]))
    if how == "drop":
        table = table.drop(columns=column)
    elif how == "rename":
        table = table.rename(columns={column: draw(TEXT.filter(lambda t: "\ud800" not in t))})
    elif how == "empty":
        table = table.head(0)
    else:
        values = {"text": "<b>", "none": None, "numbers": np.inf}.get(how)
        table[column] = [[1]] * len(table) if how == "lists" else values
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return whole | {"table.parquet": buffer.getvalue()}
