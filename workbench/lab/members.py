"""How is a member written whose change was made by hand? As the one it stands for: a LoRA as peft
saves it, whole weights shard by shard, beside the files that a tokenizer is made from.

What the change is, others say; here it is rounded to the precision that the member is stored in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.files.tensors import write_tensors
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.adapters import Factors
from workbench.loaders.adapters.lora import Lora
from workbench.loaders.experts import Cut, Where, apart, stored_name, view
from workbench.loaders.names import is_conv1d, unwrapped
from workbench.loaders.side_files import READ, TEMPLATES

INDEX = "model.safetensors.index.json"
# What tells of one folder's own making, or of weights that are not copied.
OWN = ("training.json", "truth.json", "phantom.json", "adapter_config.json", "manifest.json")


def copy_side_files(source: Path, folder: Path) -> None:
    """Config, tokenizer and chat templates of a model's folder, without what tells of its own
    training or of its shards."""
    for file in sorted(source.iterdir()):
        kept = file.suffix in READ and file.name not in OWN and ".index." not in file.name
        if kept and file.is_file():
            shutil.copyfile(file, folder / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES)


def adapter_of(
    lora: Lora, change: Callable[[str], Factors], base: Checkpoint, folder: Path, place: Path
) -> dict[str, float]:
    """Write a LoRA of the same modules, ranks, alphas and precision whose change of a module is
    `change(module)`; module -> the norm of that change as it is stored.

    place: where the folder will stand, from which the base's path is told.
    """
    tensors: dict[str, Tensor] = {}
    norms = {}
    for module in lora.modules:
        own, scale = change(module), lora.scale(module)
        parts = {"lora_B": own.up / scale, "lora_A": own.down}
        if lora.is_embedding(module):
            parts = {"lora_embedding_A": own.up.T / scale, "lora_embedding_B": own.down.T}
        stored = []
        for part, values in parts.items():
            name = lora.parts[module][part]
            rounded = values.to(lora.weights.info[name].dtype).contiguous()
            tensors[name] = rounded
            stored.append(rounded.float())
        up, down = (one.T for one in stored) if lora.is_embedding(module) else stored
        norms[module] = Factors(up * scale, down).norm
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_adapter_config(lora.config, base, folder, place)
    return norms


def write_adapter_config(
    config: Mapping[str, Any], base: Checkpoint, folder: Path, place: Path
) -> None:
    """adapter_config.json over this base, whose path is told from `place`, where the folder will
    stand."""
    local = base.folder if os.path.exists(str(base.reference)) else None
    told = str(base.reference) if local is None else os.path.relpath(local, place)
    whole = {**config, "base_model_name_or_path": told}
    (folder / "adapter_config.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")


def plain_lora(pair: CheckpointPair) -> Lora | None:
    """The member's adapter where two factors a module are all of it."""
    lora = pair.tuned.lora
    if not isinstance(lora, Lora) or not pair.shared_base or lora.rewrites or lora.stacks:
        return None
    pairs = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})
    whole = lora.replaced or lora.tokens
    return lora if not whole and all(set(own) in pairs for own in lora.parts.values()) else None


def whole_of(
    pair: CheckpointPair, made: Callable[[str, torch.dtype], Tensor | None], folder: Path
) -> None:
    """Write whole weights, in the shards of the member's own (of an adapter: its base's), where a
    parameter of the base is `made(name, the precision it is stored in)`.

    made: (out, in) or (n,), the rows that both sides have; None leaves a parameter as the member
    has it. One stored tensor is in memory at a time.
    """
    assert pair.tuned.folder is not None
    copy_side_files(pair.tuned.folder, folder)
    stored, places = pair.tuned.stored, _places(pair.tuned)
    second = places.keys() - {*pair.tuned.weights()}  # heads that are their embedding once more
    wanted = {stored_name(places[own]): [] for own in places if own not in second}
    sites = {site.name: site for site in pair.sites("all")}
    for name in sites:
        theirs = pair.comparable[name]
        if theirs in places and theirs not in second:
            wanted[stored_name(places[theirs])].append((name, theirs))
    files = sorted({stored.home[name] for name in wanted})
    shards: dict[str, str] = {}

    def filled(name: str) -> Tensor:
        tensor = stored[name].clone().contiguous()
        for own, theirs in wanted[name]:
            found = made(own, tensor.dtype)
            if found is None:
                continue
            target = view({name: tensor}, places[theirs])
            conv = found.ndim == 2 and is_conv1d(theirs, pair.tuned.config)
            found = found.T if conv else found
            target = target[: len(found)]
            target.copy_(found.reshape(target.shape))
        return tensor

    for number, file in enumerate(files, 1):
        shard = _called(number, len(files))
        here = [name for name in wanted if stored.home[name] == file]
        shapes = {name: (stored.info[name].dtype, stored.info[name].shape) for name in here}
        write_tensors(folder / shard, shapes, filled)
        shards |= dict.fromkeys(here, shard)
    if len(files) > 1:
        _write_index(folder, shards, pair.tuned)


def _places(side: Checkpoint) -> dict[str, Where]:
    """Parameter, as `Checkpoint.weights` names it -> where it lies in the stored tensors."""
    plain = {own: name for name, own in unwrapped(side.stored).items()}
    shapes = {own: side.stored.info[name].shape for own, name in plain.items()}
    return {
        name: where._replace(name=plain[where.name]) if isinstance(where, Cut) else plain[where]
        for name, where in apart(shapes, side.config).items()
    }


def _called(number: int, of: int) -> str:
    return "model.safetensors" if of == 1 else f"model-{number:05}-of-{of:05}.safetensors"


def _write_index(folder: Path, shards: Mapping[str, str], side: Checkpoint) -> None:
    info = side.stored.info
    size = sum(_bytes(info[name].shape, info[name].dtype) for name in shards)
    index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": dict(shards)}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _bytes(shape: Iterable[int], dtype: torch.dtype | None) -> int:
    return torch.empty(tuple(shape), dtype=dtype, device="meta").nbytes
