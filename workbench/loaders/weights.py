"""Weights on disk or in memory as a lazy mapping: a tensor is read when it is asked for.

Only safetensors files and torch files read with weights_only=True are opened: no code that a
checkpoint carries is run.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import MIB, read_json
from workbench.files.tensors import DTYPES
from workbench.loaders.experts import Where, stored_name
from workbench.loaders.foreign_formats import foreign, pointers
from workbench.loaders.headers import safetensors_header
from workbench.loaders.staging import STORED

SAFETENSORS_DTYPES = {name: DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}
# Indices and masks, which an adapter may have beside its numbers.
WHOLE_DTYPES = {name: DTYPES[name] for name in ("I64", "I32", "I16", "I8", "U8", "BOOL")}
# Numbers that mean something only times a scale that is another tensor.
SCALED_DTYPES = {name: own for name, own in DTYPES.items() if name.startswith("F8_")}
# Numbers of 8 bits and less mean something only times a scale that is another tensor.
SCALED = ("F8_", "F6_", "F4")


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read; dtype is None for non-float tensors. start: the
    first byte of its data in its file, None where they do not lie there one entry after another.
    sealed: why its numbers cannot be read, though its shape is known; "" where they can."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int | None = None
    sealed: str = ""


class Weights(Mapping[str, Tensor]):
    """name -> tensor at stored precision, on the CPU. Iterating reads nothing.

    info: name -> TensorInfo for every floating-point tensor, and for others where they were asked
    for. read: (name, i) -> Tensor, all of it where i is None, else what it has at i of its first
    dimension. home: name -> the file it lies in; empty for a model in memory.
    """

    def __init__(
        self,
        info: Mapping[str, TensorInfo],
        read: Callable[[str, int | None], Tensor],
        home: Mapping[str, Path] | None = None,
    ) -> None:
        self.info = {name: known for name, known in info.items() if known.dtype is not None}
        self.home = home or {}
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.info:
            raise KeyError(name)
        if self.info[name].sealed:
            raise WorkbenchError(self.info[name].sealed)
        return self._read(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    def without(self, names: set[str]) -> Weights:
        """The same weights, less `names`."""
        kept = {n: i for n, i in self.info.items() if n not in names}
        return Weights(kept, self._read, self.home)

    def also(self, names: Mapping[str, str]) -> Weights:
        """The same weights, some of them under a second name too: new name -> name."""
        own = {new: name for new, name in names.items() if name in self.info}
        return Weights(
            {**self.info, **{new: self.info[name] for new, name in own.items()}},
            lambda name, at: self._read(own.get(name, name), at),
            {**self.home, **{new: self.home[n] for new, n in own.items() if n in self.home}},
        )

    def placed(self, places: Mapping[str, Where]) -> Weights:
        """The same numbers under these names: name -> where it is here; others are left out."""
        own = {
            name: where for name, where in places.items()
            if stored_name(where) in self.info
        }  # fmt: skip

        def read(name: str, at: int | None) -> Tensor:
            where = own[name]
            if isinstance(where, str):
                return self._read(where, at)
            found = where.within(self._read(where.name, where.expert))
            return found if at is None else found[at]

        stored = {name: stored_name(where) for name, where in own.items()}
        return Weights(
            {name: _part(self.info[stored[name]], where) for name, where in own.items()},
            read,
            {name: self.home[one] for name, one in stored.items() if one in self.home},
        )


def _part(known: TensorInfo, where: Where) -> TensorInfo:
    """What is known of a tensor, or of a part of it."""
    if isinstance(where, str):
        return known
    shape = tuple(where.of(torch.empty(known.shape, device="meta")).shape)
    if where.turned or known.start is None or known.dtype is None:
        return TensorInfo(shape, known.dtype)
    each, before = math.prod(known.shape[1:]), where.part * math.prod(shape)
    start = known.start + (where.expert * each + before) * known.dtype.itemsize
    return TensorInfo(shape, known.dtype, start)


def from_files(files: list[Path], *, whole: bool = False, packed: bool = False) -> Weights:
    """Weights of one checkpoint that lies in one or several shard files.

    whole: with tensors of whole numbers, which an adapter has for indices; a model's are refused.
    packed: with all that a quantised checkpoint holds, as `quantised` reads it.
    Raises WorkbenchError where a file is damaged or two of them hold a tensor of one name.
    """
    info: dict[str, TensorInfo] = {}
    home: dict[str, Path] = {}
    for file in files:
        for name, known in _info(file, whole=whole, packed=packed).items():
            if name in home:
                raise WorkbenchError(
                    f"{name} is stored in both {home[name]} and {file.name}, so it is "
                    "unclear which one counts; download the checkpoint again."
                )
            info[name], home[name] = known, file

    def read(name: str, at: int | None) -> Tensor:
        file = home[name]
        if file.suffix != ".safetensors":
            return _at(_torch_file(file, whole=whole)[name], at)
        return _tensor(file, name, info[name], at)

    if not whole and not packed:
        _require_floats(info, " or ".join(sorted({file.name for file in files})[:2]))
    return Weights(info, read, home)


def _require_floats(info: Mapping[str, TensorInfo], where: str) -> None:
    """Raise WorkbenchError where most of what is stored are whole numbers: packed matrices, which
    nothing here could unpack."""
    sizes = {name: math.prod(known.shape) for name, known in info.items()}
    whole = [name for name, known in info.items() if known.dtype is None]
    if 2 * sum(sizes[name] for name in whole) > sum(sizes.values()):
        largest = max(whole, key=sizes.__getitem__)
        raise WorkbenchError(
            f"{largest} of {where} is stored as whole numbers, like quantised weights; "
            "give the checkpoint it was made from, or dequantise it and save it in bfloat16."
        )


def from_module(module: nn.Module) -> Weights:
    """Weights of a model in memory; a tensor shared by two names appears under the first."""
    return _once(dict(module.state_dict(keep_vars=False)), type(module).__name__)


def from_state(state: Mapping[str, Tensor], where: str) -> Weights:
    """Weights of a model's state dict in memory, each storage under its first name."""
    return _once(state, where)


def from_tensors(state: Mapping[str, Tensor]) -> Weights:
    """Tensors in memory, of whole numbers too, under every name they have."""
    info = {name: TensorInfo(tuple(one.shape), one.dtype) for name, one in state.items()}
    return Weights(info, lambda name, at: _at(state[name].detach(), at))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, under a name that is looked for."""
    ends = ("", ".index.json")
    return any((folder / (stem + suffix + end)).exists() for stem, suffix in STORED for end in ends)


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else torch's .bin.

    Raises WorkbenchError where there are none, where a shard or a tensor named by the index is
    missing, or where a file lies outside the folder.
    """
    for pointer in pointers(folder):
        raise WorkbenchError(
            f"{pointer} is a Git LFS pointer and not the file itself; run `git lfs pull` there."
        )
    for stem, suffix in STORED:
        single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if single.exists():
            return [inside(single)]
        if index.exists():
            return _indexed(index, suffix)
    told = foreign(folder)
    if told:
        raise WorkbenchError(f"{folder} holds {told[0]}, not a checkpoint; {told[1]}.")
    loose = sorted(folder.glob("*.safetensors"))
    if len(loose) == 1:
        return [inside(loose[0])]
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise WorkbenchError(
        "Expected weights (model.safetensors, its shards with an index, or "
        f"pytorch_model.bin) in {folder}, found {found}; give a checkpoint folder."
    )


def _indexed(index: Path, suffix: str) -> list[Path]:
    places = read_json(index, most=128 * MIB).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WorkbenchError(
            f"Expected a weight_map from tensors to files in {index}; download the checkpoint "
            "again."
        )
    wanted: dict[str, set[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(suffix):
            raise WorkbenchError(
                f"{index} names {name!r}, which is not a file of its own folder ending in "
                f"{suffix}; do not use it."
            )
        wanted.setdefault(name, set()).add(tensor)
    for name, tensors in sorted(wanted.items()):
        if not (index.parent / name).exists():
            raise WorkbenchError(
                f"Shard {name} named by {index} is missing; complete the download."
            )
        missing = tensors - _info(inside(index.parent / name)).keys()
        if missing and suffix == ".safetensors":
            raise WorkbenchError(
                f"{index} looks for {min(missing)} in {name}, which does not hold it; download the "
                "checkpoint again."
            )
    return [index.parent / name for name in sorted(wanted)]


def inside(file: Path) -> Path:
    """`file`, if it is a file of its own folder. The hub's cache keeps files as links to blobs/ of
    the same repository; any other link out of the folder could lead to anybody's file."""
    real, folder = file.resolve(), file.parent.resolve()
    if not file.is_file():
        raise WorkbenchError(f"Expected a weights file at {file}, found none; check the folder.")
    homes = [folder, *(above / "blobs" for above in folder.parents)]
    if file.is_symlink() and real.parent not in homes:
        raise WorkbenchError(
            f"{file} is a link to {real}, outside its folder; put the file itself there."
        )
    return file


def _info(file: Path, *, whole: bool = False, packed: bool = False) -> dict[str, TensorInfo]:
    if file.suffix != ".safetensors":
        return dict(_torch_file(file, whole=whole).info)
    found = safetensors_header(file)
    small = [name for name, stored in found.items() if stored.kind.startswith(SCALED)]
    if small and not packed:
        raise _scaled(small[0], file, found[small[0]].kind)
    dtypes = SAFETENSORS_DTYPES | (WHOLE_DTYPES if whole or packed else {})
    dtypes |= SCALED_DTYPES if packed else {}
    return {
        name: TensorInfo(stored.shape, dtypes.get(stored.kind), stored.start)
        for name, stored in found.items()
    }


def _at(tensor: Tensor, at: int | None) -> Tensor:
    return tensor if at is None else tensor[at]


def _scaled(name: str, file: Path, kind: str) -> WorkbenchError:
    return WorkbenchError(
        f"{name} in {file} is stored as {kind}, whose scale is stored elsewhere; "
        "convert the checkpoint to bfloat16."
    )


def _tensor(file: Path, name: str, known: TensorInfo, at: int | None) -> Tensor:
    """One tensor, or what it has at `at`; raises WorkbenchError where the file is gone, or another
    than it was."""
    try:
        # Opened anew for each tensor, so that pages of a large checkpoint do not pile up.
        with safe_open(file, framework="pt") as opened:
            if at is None:
                found = opened.get_tensor(name)
                shape = tuple(found.shape)
            else:
                stored = opened.get_slice(name)
                found, shape = stored[at], tuple(stored.get_shape())
    except (SafetensorError, OSError) as error:
        raise WorkbenchError(
            f"{name} can no longer be read from {file} ({error}); put the file back as it was."
        ) from error
    if shape != known.shape or found.dtype != known.dtype:
        raise WorkbenchError(f"{file} was changed while it was read; run the command again.")
    return found


def _torch_file(file: Path, *, whole: bool = False) -> Weights:
    try:
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        # torch goes on to advise loading it with its code.
        said = reason(error).partition(". ")[0]
        raise WorkbenchError(
            f"{file} could not be read as plain weights ({said}); convert it to safetensors."
        ) from error
    if not isinstance(state, Mapping):
        raise WorkbenchError(
            f"Expected tensors by name in {file}, found {type(state).__name__}; convert it to "
            "safetensors."
        )
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, Tensor)}
    small = [n for n, t in tensors.items() if t.is_floating_point() and t.itemsize < 2]
    if small:
        raise _scaled(small[0], file, str(tensors[small[0]].dtype).removeprefix("torch."))
    for name, tensor in tensors.items():
        # Strides of zero let a file of a few bytes stand for any size.
        if tensor.layout != torch.strided or tensor.is_quantized or _stretched(tensor):
            raise WorkbenchError(
                f"{name} in {file} is not stored as a plain tensor; convert it to safetensors."
            )
    return _once(tensors, file.name, whole=whole)


def _stretched(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _once(state: Mapping[str, Tensor], where: str, *, whole: bool = False) -> Weights:
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
        n: TensorInfo(tuple(t.shape), t.dtype if whole or t.is_floating_point() else None)
        for n, t in kept.items()
    }
    if not whole:
        _require_floats(info, where)
    return Weights(info, lambda name, at: _at(kept[name], at))
