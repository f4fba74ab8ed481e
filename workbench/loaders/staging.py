"""What are transformers and peft handed to read? A folder of ours, never the one that was given.

A checkpoint's folder is anyone's. Beside the weights that are compared it can hold other weights,
code, an adapter or settings for writing texts, which a library picks up by their names; and its
configs can name further files, kernels and ids of the hub. So a library gets links to the very
files that are read and fingerprinted here, under names of ours, copies of the configs without what
leads elsewhere, and nothing else. While it reads them the hub is out of reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import MIB, is_number, read_json
from workbench.loaders.side_files import READ, TEMPLATES

Files = Mapping[str, Path | str]

# How weight files are called, the ones to read first.
STORED = (("model", ".safetensors"), ("pytorch_model", ".bin"))

# Of a model's config, at any depth: code, other files, what rewrites the modules of a process, what
# a model puts out otherwise or beside its logits, and labels, of which any number can be claimed.
LEADS = re.compile(
    r"^(auto_map|custom_pipelines|transformers_weights|configuration_files|fusion_config|"
    r"distributed_config|_commit_hash|return_dict|torchscript|output_attentions|"
    r"output_hidden_states|num_labels|id2label|label2id)$"
)
# How attention or experts are computed; anything else than torch's own is a package or a kernel.
KERNELS = re.compile(r"^_?(attn|experts)_implementation(_internal)?$")
OWN_KERNELS = ("eager", "sdpa", "grouped_mm", "batched_mm")
# Of a tokenizer's config: code, paths, and objects that stand for a whole tokenizer.
TOKENIZER_LEADS = re.compile(
    r"^(auto_map|init_inputs|name_or_path|vocab|merges|tokenizer_object|backend_tokenizer|"
    r"post_processor|trust_remote_code|local_files_only|is_local|cache_dir|subfolder|token|"
    r"(.*_)?(file|files|path|dir))$"
)
# Of the files beside the weights those that no tokenizer is made from.
NO_WORDS = re.compile(r"^(adapter_config|generation_config|training|.*\.index)\.json$")


@contextlib.contextmanager
def handed(files: Files, given: Path | str, *, kept: bool = False) -> Iterator[Path]:
    """A fresh folder of `files` for as long as the block lasts, the hub out of reach meanwhile.

    files: name -> the file it links to, or its text. given: what the user named; an error of the
    block's that speaks of the fresh folder is raised as a RuntimeError that speaks of that. kept:
    the folder is not removed where the block ends well.
    """
    fresh = Path(tempfile.mkdtemp(prefix="workbench-"))
    try:
        for name, content in files.items():
            place = fresh / name
            place.parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                place.write_text(content, encoding="utf-8")
            else:
                _link(place, content.resolve())
        with offline():
            yield fresh
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        told = str(error)
        if isinstance(error, WorkbenchError | MemoryError) or str(fresh) not in told:
            raise
        raise RuntimeError(told.replace(str(fresh), str(given))) from error
    if not kept:
        shutil.rmtree(fresh, ignore_errors=True)


def _link(place: Path, file: Path) -> None:
    try:
        place.symlink_to(file)
    except OSError:  # Windows keeps links for administrators
        shutil.copyfile(file, place)


_lock = threading.Lock()
_blocks: list[tuple[str | None, bool]] = []  # those inside `offline`; the first: what was before


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No request reaches the hub, from this process or what it starts.

    huggingface_hub reads the environment once, when it is imported; peft whenever it asks.
    """
    from huggingface_hub import constants

    with _lock:
        _blocks.append((os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE))
        os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        with _lock:
            said, known = _blocks[0] if len(_blocks) == 1 else ("1", True)
            _blocks.pop()
            constants.HF_HUB_OFFLINE = known
            if said is None:
                os.environ.pop("HF_HUB_OFFLINE", None)
            else:
                os.environ["HF_HUB_OFFLINE"] = said


def config_file(config: Mapping[str, Any]) -> Files:
    """config.json without what leads elsewhere."""
    return {"config.json": json.dumps(_harmless(config))} if config else {}


def model_files(config: Mapping[str, Any], home: Mapping[str, Path]) -> Files:
    """The config and the weights (tensor -> file), each under the name that is looked for."""
    return {**config_file(config), **_shards(home)}


def tokenizer_files(folder: Path, config: Mapping[str, Any]) -> Files:
    """All that a tokenizer can be made from; `config` is the model's beside it."""
    found: dict[str, Path | str] = {
        file.name: file for file in sorted(folder.iterdir())
        if file.suffix in READ and file.is_file() and not NO_WORDS.match(file.name)
    }  # fmt: skip
    for template in sorted((folder / TEMPLATES).glob("*.jinja")):
        found[f"{TEMPLATES}/{template.name}"] = template
    if "tokenizer_config.json" in found:
        own = read_json(folder / "tokenizer_config.json", most=128 * MIB)
        kept = {key: value for key, value in own.items() if not TOKENIZER_LEADS.match(key)}
        if not is_number(kept.get("model_max_length")):
            kept.pop("model_max_length", None)
        found["tokenizer_config.json"] = json.dumps(kept)
    found.pop("config.json", None)
    return {**found, **config_file(config)}


def _shards(home: Mapping[str, Path]) -> Files:
    """One file as it would be called alone; of several also an index of our own."""
    files = sorted({*home.values()})
    suffix = files[0].suffix
    stem = next(stem for stem, own in STORED if own == suffix)
    if len(files) == 1:
        return {f"{stem}{suffix}": files[0]}
    # Names of ours: by some others transformers takes a folder for a checkpoint of another kind.
    named = {
        file: f"{stem}-{i:05}-of-{len(files):05}{suffix}" for i, file in enumerate(files, start=1)
    }
    places = {name: named[file] for name, file in home.items()}
    return {
        **{name: file for file, name in named.items()},
        f"{stem}{suffix}.index.json": json.dumps({"metadata": {}, "weight_map": places}),
    }


def _harmless(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _harmless(v) for k, v in config.items() if not _leads(k, v)}
    return [_harmless(one) for one in config] if isinstance(config, list) else config


def _leads(key: str, value: Any) -> bool:
    if KERNELS.match(key):
        return value not in OWN_KERNELS
    return bool(LEADS.match(key))
