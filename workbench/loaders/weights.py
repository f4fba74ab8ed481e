"""Weights on disk or in memory as a lazy mapping: a tensor is read when it is asked for.

Only safetensors files and torch files read with weights_only=True are opened: no code that a
checkpoint carries is run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.errors import WorkbenchError

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read; dtype is None for non-float tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


class Weights(Mapping[str, Tensor]):
    """name -> tensor at stored precision, on the CPU. Iterating reads nothing.

    info: name -> TensorInfo for every floating-point tensor. read: name -> Tensor.
    """

    def __init__(self, info: Mapping[str, TensorInfo], read: Callable[[str], Tensor]) -> None:
        self.info = {name: known for name, known in info.items() if known.dtype is not None}
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.info:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    def without(self, names: set[str]) -> Weights:
        """The same weights, less `names`."""
        return Weights({n: i for n, i in self.info.items() if n not in names}, self._read)


def from_files(files: list[Path]) -> Weights:
    """Weights of one checkpoint that lies in one or several shard files."""
    read_headers = {".safetensors": _safetensors_info, ".bin": _torch_info, ".pt": _torch_info}
    info: dict[str, TensorInfo] = {}
    home: dict[str, Path] = {}
    for file in files:
        for name, known in read_headers[file.suffix](file).items():
            info[name], home[name] = known, file

    def read(name: str) -> Tensor:
        file = home[name]
        if file.suffix != ".safetensors":
            return _torch_file(file)[name]
        # Opened anew for each tensor, so that pages of a large checkpoint do not pile up.
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    return Weights(info, read)


def from_module(module: nn.Module) -> Weights:
    """Weights of a model in memory; a tensor shared by two names appears under the first."""
    return _once(dict(module.state_dict(keep_vars=False)))


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else torch's .bin.

    Raises WorkbenchError where there are none, where a shard is missing, or where an index names
    a file outside the folder.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if single.exists():
            return [single]
        if index.exists():
            return _indexed(index)
    loose = sorted(folder.glob("*.safetensors"))
    if len(loose) == 1:
        return loose
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise WorkbenchError(
        f"Expected weights (model.safetensors, its shards with an index, or "
        f"pytorch_model.bin) in {folder}, found {found}; name a checkpoint folder."
    )


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WorkbenchError(
            f"{index} is not a readable shard index ({error!r}); download the checkpoint again."
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WorkbenchError(
                f"{index} names {name!r}, which is not a file of its own folder; do not use it."
            )
        if not (index.parent / name).exists():
            raise WorkbenchError(
                f"Shard {name} named by {index} is missing; complete the download."
            )
    return [index.parent / name for name in names]


def _safetensors_info(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, framework="pt") as opened:
            info = {}
            for name in opened.keys():  # noqa: SIM118 - safe_open is not iterable
                part = opened.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
                info[name] = TensorInfo(tuple(part.get_shape()), dtype)
            return info
    except (SafetensorError, OSError) as error:
        raise WorkbenchError(
            f"{file} is not a whole safetensors file ({error}); download or save it again."
        ) from error


def _torch_file(file: Path) -> Weights:
    try:
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        reason = str(error).splitlines()[0]
        raise WorkbenchError(
            f"{file} could not be read as plain weights ({reason}); convert it to safetensors."
        ) from error
    return _once(state)


def _torch_info(file: Path) -> dict[str, TensorInfo]:
    return _torch_file(file).info


def _once(state: Mapping[str, Tensor]) -> Weights:
    """A state dict in memory as Weights, each storage once."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() == 0 or tensor.is_meta or place not in seen:
            kept[name] = tensor.detach()
            seen.add(place)
    info = {
        n: TensorInfo(tuple(t.shape), t.dtype if t.is_floating_point() else None)
        for n, t in kept.items()
    }
    return Weights(info, kept.__getitem__)
