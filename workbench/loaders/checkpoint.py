"""Checkpoint: any way to name a model -> lazy weights, model, tokenizer and fingerprint."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.errors import WorkbenchError, visible
from workbench.files.reading import is_count, is_number, read_json
from workbench.loaders import loading
from workbench.loaders.adapters import (
    Adapter,
    adapter_files,
    adapter_in,
    base_weights_in,
    read_adapter,
)
from workbench.loaders.config_differences import require_own
from workbench.loaders.devices import Device
from workbench.loaders.experts import apart
from workbench.loaders.foreign_formats import STEP
from workbench.loaders.names import BEFORE, WRAPPED, embedding, heads, unwrapped
from workbench.loaders.quantised import quantisation, unpacked, unread
from workbench.loaders.side_files import beside_digest, require_files
from workbench.loaders.snapshots import dequantised, downloaded
from workbench.loaders.weights import Weights, from_files, from_module, has_weights, shard_files
from workbench.results import cache

# A factor of a LoRA by any tool's names.
FACTOR = re.compile(r"(^|[._])lora_|\.(alpha|dora_scale)$", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """One model, by reference; nothing is read until it is asked for.

    reference: a folder, a .gguf file, a hub id, or a model in memory.
    adapter: a PEFT adapter folder (or hub id) that is applied to it.
    revision: branch, tag or commit for a hub id.
    heads: output heads that are its embedding by a second name, listed because the other side of
    a pair has one of its own.
    """

    reference: str | nn.Module
    adapter: str | None = None
    revision: str | None = None
    heads: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, reference: str | Path | nn.Module | Checkpoint) -> Checkpoint:
        """Read "folder", "model.gguf", "org/name@revision", "base+adapter" or an adapter folder.

        An adapter folder alone stands on the base its own config names, if that is on this
        machine: a file that was passed on fetches nothing.
        """
        if isinstance(reference, Checkpoint):
            return reference
        if isinstance(reference, nn.Module):
            return cls(reference)
        text = str(reference)
        if os.path.exists(text):  # which, unlike Path's, bears any text
            return cls._adapter_folder(text) if is_adapter(text) else cls(text)
        base, plus, adapter = text.rpartition("+")
        if plus and base and adapter:
            own = cls.parse(base)
            return cls(own.reference, adapter, own.revision)
        if text.startswith((".", "/", "~")) or text.count("/") > 1:
            raise WorkbenchError(f"There is no file or folder {text}; check the path.")
        name, at, revision = text.partition("@")
        return cls(name, None, revision if at else None)

    @classmethod
    def _adapter_folder(cls, folder: str) -> Checkpoint:
        config = read_json(Path(folder) / "adapter_config.json")
        base = config.get("base_model_name_or_path") or config.get("model")  # mlx-lm's word
        if not isinstance(base, str) or not base:
            raise WorkbenchError(
                f"Adapter {folder} does not name its base; write the reference as BASE+{folder}."
            )
        beside = Path(folder) / base
        place = beside if os.path.exists(beside) else Path(base)
        if os.path.exists(place):
            if is_adapter(place):
                raise WorkbenchError(
                    f"Adapter {folder} names the adapter {place} as its base; merge that one first."
                )
            return cls(str(place), folder)
        own = cls.parse(base)
        try:
            downloaded(str(own.reference), own.revision, local=True)
        except WorkbenchError as error:
            raise WorkbenchError(
                f"Adapter {folder} belongs to the base {base!r}, which is not on this "
                f"machine; write the reference as {base}+{folder} to download it."
            ) from error
        return cls(own.reference, folder, own.revision)

    @property
    def name(self) -> str:
        """The reference as a person would write it: from here, or from home, where it can be."""
        if isinstance(self.reference, nn.Module):
            return f"{type(self.reference).__name__} in memory"
        at = f"@{self.revision}" if self.revision else ""
        own = _shortened(self.reference) + at
        return visible(f"{own}+{_shortened(self.adapter)}" if self.adapter else own)

    @property
    def bare(self) -> Checkpoint:
        """The same checkpoint without its adapter."""
        return Checkpoint(self.reference, None, self.revision, self.heads)

    @cached_property
    def folder(self) -> Path | None:
        """The local folder with weights, config and tokenizer; None for a model in memory."""
        if isinstance(self.reference, nn.Module):
            return None
        path = Path(os.path.expanduser(self.reference))
        if path.suffix == ".gguf":
            return dequantised(path)
        if os.path.isdir(path):
            require_files(path)
            return path
        if os.path.exists(path):
            raise WorkbenchError(
                f"Expected a checkpoint folder or a .gguf file, found the file {path}; "
                "give its folder."
            )
        return downloaded(self.reference, self.revision)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json as saved; empty where there is none."""
        if isinstance(self.reference, nn.Module):
            config: Any = getattr(self.reference, "config", None)
            return config.to_dict() if hasattr(config, "to_dict") else {}
        assert self.folder is not None
        file = self.folder / "config.json"
        return read_json(file) if file.exists() else {}

    def weights(self) -> Weights:
        """name -> tensor of the bare model (the adapter's factors are in `lora`); tied once."""
        return self._weights

    @cached_property
    def _weights(self) -> Weights:
        if isinstance(self.reference, nn.Module):
            if quantised := quantisation(self.config):
                raise unread(self.name, quantised)
            is_peft = adapter_in(self.reference) is not None
            found = (base_weights_in if is_peft else from_module)(self.reference)
        else:
            assert self.folder is not None
            found = self.stored
            if quantisation(self.config):
                found = unpacked(found, self.config, self.name)
            plain = unwrapped(found)
            if any(name != own for name, own in plain.items()) or len(plain) < len(found):
                found = found.placed({own: name for name, own in plain.items()})
        if not found:
            raise WorkbenchError(
                f"{self.name} holds no floating-point tensors; give a checkpoint of a model."
            )
        if all(FACTOR.search(name) for name in found):
            raise WorkbenchError(
                f"{self.name} holds only LoRA factors ({next(iter(found))}), without "
                "the config that states their modules and scale; save the adapter "
                "with peft's save_pretrained."
            )
        _require_filled(found, self.name)
        if self.folder is not None:
            require_own(self.config, sorted({*found.home.values()}), self.name)
        shapes = {name: info.shape for name, info in found.info.items()}
        found = found.placed(apart(shapes, self.config))
        found = found.without(self._second_names(found))
        shapes = {name: info.shape for name, info in found.info.items()}
        embeddings = embedding(shapes)
        return found.also({head: embeddings for head in self.heads if embeddings})

    @cached_property
    def stored(self) -> Weights:
        """Everything in the files, under the names it has there; packed where it is."""
        assert self.folder is not None
        packed = bool(quantisation(self.config))
        return from_files(shard_files(self.folder), packed=packed)

    def _second_names(self, found: Weights) -> set[str]:
        """Output heads that are only a second name of an embedding; one that the config ties but
        that is stored with other numbers runs, and counts, as a parameter of its own."""
        if not self.config.get("tie_word_embeddings"):
            return set()
        shapes = {name: info.shape for name, info in found.info.items()}
        return {
            head
            for head, embeddings in heads(shapes).items()
            if any(torch.equal(found[head], found[other]) for other in embeddings)
        }

    @cached_property
    def lora(self) -> Adapter | None:
        """The adapter's factors, None for a checkpoint without one."""
        if isinstance(self.reference, nn.Module):
            return adapter_in(self.reference)
        if self.adapter is None:
            return None
        path = Path(os.path.expanduser(self.adapter))
        if not os.path.exists(path):
            path = downloaded(self.adapter, None)
        if not is_adapter(path):
            raise WorkbenchError(
                f"Expected an adapter (adapter_config.json) in {path}, found none; "
                "give the folder of an adapter."
            )
        return read_adapter(path, self.config)

    @cached_property
    def base_fingerprint(self) -> str:
        """sha256 over names and content of the bare weights and the config."""
        if self.folder is not None:
            config = self.folder / "config.json"
            files = [*shard_files(self.folder), *([config] if config.exists() else [])]
            parts = [f"{f.name}:{cache.file_digest(f)}" for f in files]
            return cache.digest(part.encode() for part in parts)
        return self.content

    @cached_property
    def content(self) -> str:
        """sha256 over names and numbers of the bare weights: one for a model in memory and for the
        files it was loaded from, at the precision they have."""
        found = self.weights()
        return _digest_of(found, sorted(found))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides this checkpoint's weights."""
        if self.lora is None:
            return self.base_fingerprint
        config = json.dumps(self.lora.config, sort_keys=True, default=str)
        parts = [self.base_fingerprint, config, _digest_of(self.lora.weights)]
        return cache.digest(part.encode() for part in parts)

    @cached_property
    def identity(self) -> str:
        """sha256 of everything that decides a number: the weights, and whatever else is read of
        the checkpoint's folders, its tokenizer, chat template and settings of generation."""
        parts = [self.fingerprint]
        if isinstance(self.reference, nn.Module):
            settings: Any = getattr(self.reference, "generation_config", None)
            more = settings.to_dict() if hasattr(settings, "to_dict") else {}
            parts.append(json.dumps([self.config, more], sort_keys=True, default=str))
        adapter = Path(self.lora.reference) if self.adapter and self.lora else None
        homes = [home for home in (self.folder, adapter) if home is not None]
        parts += [beside_digest(home) for home in homes]
        return cache.digest(part.encode() for part in parts)

    @property
    def as_sent(self) -> bool:
        """In another process than the one that named it: whether it finds the same content."""
        return vars(self).get("sent", self.identity) == self.identity

    @cached_property
    def about(self) -> dict[str, Any]:
        """reference, fingerprint, kind ("full" or the adapter's), where known rank, alpha, step,
        seed and recipe (how it was trained but for the seed, in words); of a phantom, a member that
        learned nothing, what it keeps (`workbench.lab.phantom`); of a whole model also its
        architecture (model) and number of parameters."""
        found: dict[str, Any] = {"reference": self.name, "fingerprint": self.fingerprint}
        if self.lora is None:
            found |= {"kind": "full"} | self._size
        else:
            config, kind = self.lora.config, self.lora.type
            found["kind"] = kind.lower()
            keys = {"rank": "r", "alpha": "lora_alpha"} if kind == "LORA" else {"rank": "r"}
            found |= {key: config[own] for key, own in keys.items() if is_number(config.get(own))}
        if (drawn := self._told("phantom.json")) is not None:
            found["phantom"] = visible(str(drawn.get("keep")))
        training = self.training
        if (step := self._step()) is not None:
            found["step"] = step
        if training is not None:
            known = {key: training[key] for key in ("step", "seed") if key in training}
            found |= {key: value for key, value in known.items() if is_count(value, 0)}
            if isinstance(training.get("recipe"), dict):
                found["recipe"] = _recipe(training)
        return found

    def _step(self) -> int | None:
        """The training step, of what a Trainer wrote beside the weights or of the folder's name."""
        step: Any = (self._told("trainer_state.json") or {}).get("global_step")
        if is_count(step, 0):
            return int(step)
        home = Path(self.adapter) if self.adapter else self.folder
        named = STEP.fullmatch(home.name) if home is not None else None
        return int(named.group(1)) if named else None

    @property
    def _size(self) -> dict[str, Any]:
        """The architecture that config.json names, and how many parameters the files hold."""
        kind = self.config.get("model_type")
        named = {"model": kind} if isinstance(kind, str) else {}
        # A quantised model in memory tells no shapes; what needs them says so.
        with contextlib.suppress(WorkbenchError):
            shapes = [info.shape for info in self.weights().info.values()]
            return named | {"parameters": sum(math.prod(shape) for shape in shapes)}
        return named

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """training.json beside the member's weights, as `lab.train` writes it; None without."""
        return self._told("training.json")

    def _told(self, name: str) -> dict[str, Any] | None:
        """What a file beside the member's weights tells; None without it."""
        home = Path(self.adapter) if self.adapter else self.folder
        if home is None or not os.path.exists(home / name):
            return None
        return read_json(home / name)

    def __getstate__(self) -> dict[str, Any]:
        # What was read stays behind: another process reads its own, and may lie on another machine.
        # It tells of the checkpoint as this one does, whatever the folders are called there.
        named = {"reference": self.reference, "adapter": self.adapter, "revision": self.revision}
        named["heads"] = self.heads
        return named | {"about": self.about, "sent": self.identity}

    def load(self, device: Device = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The model to run, in eval mode, adapter attached unmerged; dtype None = as stored.

        device: a name, or "auto" or a device map, see `workbench.loaders.devices`. A model in
        memory is returned itself, not a copy; one with virtual tokens in front of its texts gives
        logits of the texts alone, see `prompted`. It is made of the files that were fingerprinted
        and of nothing else, see `staging`: no code of the checkpoint is run, nothing is fetched,
        and of its settings for writing texts it keeps only where they begin and end. Raises
        WorkbenchError where transformers cannot make a model of what is there.
        """
        return loading.model_of(self, device, dtype)

    @cached_property
    def wrappers(self) -> dict[str, str]:
        """For transformers: pattern -> what stands for it, to read names without what a training
        tool put into them."""
        stored = self.stored
        found = {rf"^{re.escape(p)}": "" for p in BEFORE if any(n.startswith(p) for n in stored)}
        inside = {match for name in stored for match in WRAPPED.findall(name)}
        for word in sorted(inside):
            found |= {rf"^{re.escape(word)}": "", rf"\.{re.escape(word)}": "."}
        return found

    def tokenizer(self) -> Any:
        """The tokenizer beside the weights, which knows how many places the model has; raises
        WorkbenchError where there is none."""
        return loading.tokenizer_of(self)


# Of a recipe: what is another run's, what is told by itself, and what changes no weight.
_APART = {"seed", "method", "rank", "alpha", "checkpoints", "evaluate_every"}


def _recipe(training: Mapping[str, Any]) -> str:
    """How a model was trained but for the seed: "lr 0.0025, steps 1000, ..., texts ae6be041"."""
    entries = training["recipe"].items()
    told = {name: value for name, value in entries if name not in _APART and value is not None}
    data = training.get("texts")
    told |= {"texts": data[:8]} if isinstance(data, str) else {}
    return visible(", ".join(f"{name} {value}" for name, value in told.items()))


def _require_filled(weights: Weights, name: str) -> None:
    """Raise WorkbenchError where tensors have no entries, as ZeRO-3 leaves those kept elsewhere."""
    empty = [own for own, known in weights.info.items() if 0 in known.shape]
    if empty:
        raise WorkbenchError(
            f"{len(empty)} tensors of {name} are empty, the first is {empty[0]}: it "
            "was saved under DeepSpeed ZeRO-3 without gathering; save it with "
            "stage3_gather_16bit_weights_on_model_save, or gather the run with zero_to_fp32.py."
        )


def _shortened(reference: str) -> str:
    """A path without what is only true of this machine; a hub id as it is."""
    path = Path(os.path.expanduser(reference))
    if path.is_absolute():
        for root, sign in ((Path.cwd(), ""), (Path.home(), "~/")):
            if path.is_relative_to(root):
                return sign + str(path.relative_to(root))
    return reference


def is_adapter(path: str | Path) -> bool:
    """Whether the folder is to be read as an adapter: it has one, or nothing else."""
    folder = Path(path)
    if not os.path.exists(folder / "adapter_config.json"):
        return False
    return bool(adapter_files(folder)) or not has_weights(folder)


def _digest_of(weights: Mapping[str, torch.Tensor], names: Iterable[str] | None = None) -> str:
    def chunks():
        for name in weights if names is None else names:
            yield name.encode()
            yield tensor_bytes(weights[name])

    return cache.digest(chunks())


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's content as bytes, whatever its dtype."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
