"""Packed matrices of a quantised checkpoint as the numbers they stand for, one at a time.

FP8 (quant_method fp8, fbgemm_fp8, and compressed-tensors' float-quantized): W = q s, with a scale s
(weight_scale_inv or weight_scale) for the matrix, a row, or a block of it. MXFP4 (OCP Microscaling
formats, 2023): two numbers of 4 bits a byte, the low half first, 32 of them times a power of two,
2^(s - 127); stored as (out, in) where the model runs (in, out). bitsandbytes' 8 bits: W = q c / 127
with c (SCB) for a row, Dettmers et al. 2022 (arXiv 2208.07339). Its 4 bits (nf4, fp4), Dettmers et
al. 2023 (arXiv 2305.14314): two numbers a byte, the high half first, each an index to a table of 16
(quant_map), times a scale (absmax) of their block; the scales may be packed themselves, 8 bits each
to a table of 256 (nested_quant_map), times a scale of 256 of them, plus their mean.

What a library rounds of this to the model's own precision is not rounded here: float32. Of GPTQ,
AWQ and the packed whole numbers of compressed-tensors only the shapes are known here: what an
adapter adds to such a base can be told, and whatever needs the base's numbers ends in a sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, is_number
from workbench.loaders.config_differences import entries
from workbench.loaders.weights import TensorInfo, Weights

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ("_scale_inv", "_scale")
# What else lies beside packed matrices and is none of the model's parameters.
BESIDE = (
    "_scale_inv", "_scale", "_blocks", "_scales", ".SCB", ".weight_format", ".input_scale",
    ".activation_scale", ".input_scale_ub", ".absmax", ".quant_map", ".nested_absmax",
    ".nested_quant_map",
)  # fmt: skip
STATE = ".quant_state.bitsandbytes__"
NESTED_BLOCK = 256
# What stands for a matrix of whole numbers of a few bits, of which only the shape is known here.
SEALED = (
    "qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_shape",
    "weight_zero_point", "weight_g_idx",
)  # fmt: skip
# The 16 numbers of 4 bits: sign, two of exponent, one of mantissa.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Packed(NamedTuple):
    """A matrix that is packed: its shape, and what unpacks it, all or what it has at i of its first
    dimension. main: the tensor that holds its numbers."""

    shape: tuple[int, ...]
    unpack: Callable[[int | None], Tensor]
    main: str


def quantisation(config: Mapping[str, Any]) -> str:
    """By which method a checkpoint's matrices are packed, "" where none are.

    config: config.json as saved; a language model's inside a larger one counts too.
    """
    for key, packed in entries(config):
        if key == "quantization_config" and packed:
            how = packed.get("quant_method") if isinstance(packed, Mapping) else None
            return str(how or "by its config")
    return ""


def unpacked(stored: Weights, config: Mapping[str, Any], name: str) -> Weights:
    """The weights of a quantised checkpoint under the names and shapes they run with.

    stored: everything in its files, packed. name: the checkpoint, for the sentence. Raises
    WorkbenchError for a method or a form of it that is not known here.
    """
    method, told = quantisation(config), _told(config)
    finders: dict[str, Callable[[Weights, Mapping[str, Any]], dict[str, Packed]]] = {
        "fp8": _fp8, "fbgemm_fp8": _fp8, "compressed-tensors": _fp8, "mxfp4": _mxfp4,
        "bitsandbytes": _bitsandbytes,
    }  # fmt: skip
    packed = finders[method](stored, told) if method in finders else {}
    used = {one.main for one in packed.values()}
    plain = {
        n: known for n, known in stored.info.items()
        if n not in packed and n not in used and not n.endswith(BESIDE) and STATE not in n
    }  # fmt: skip
    sealed = _sealed(stored, method, told)
    beside = {stem + leaf for stem in sealed for leaf in SEALED}
    plain = {n: known for n, known in plain.items() if n not in beside}
    odd = [n for n, known in plain.items() if known.dtype in FP8 or not _is_float(known)]
    if odd or not (packed or sealed):
        raise unread(name, method, odd[0] if odd else "")

    def read(own: str, at: int | None) -> Tensor:
        if own in packed:
            return packed[own].unpack(at)
        return stored[own] if at is None else stored[own][at]

    info = {n: TensorInfo(one.shape, torch.float32) for n, one in packed.items()}
    for stem, shape in sealed.items():
        why = str(unread(name, method, f"{stem}weight"))
        info[f"{stem}weight"] = TensorInfo(shape, torch.float32, None, why)
    home = {n: stored.home[n] for n in plain}
    home |= {n: stored.home[one.main] for n, one in packed.items()}
    return Weights(info | plain, read, home)


def unread(name: str, method: str, matrix: str = "") -> WorkbenchError:
    """What is said of packed matrices that nothing here unpacks."""
    named = f" ({matrix})" if matrix else ""
    return WorkbenchError(
        f"{name} is quantised ({method}): its matrices are packed{named} in a form "
        "that cannot be read here; give the checkpoint it was made from, or load it "
        "with transformers, dequantize() it and save it in bfloat16."
    )


def _told(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = next((v for k, v in entries(config) if k == "quantization_config" and v), None)
    return found if isinstance(found, Mapping) else {}


def _is_float(known: TensorInfo) -> bool:
    return known.dtype is not None and known.dtype.is_floating_point


def _fp8(stored: Weights, told: Mapping[str, Any]) -> dict[str, Packed]:
    found = {}
    asked = told.get("weight_block_size")
    block = tuple(asked) if isinstance(asked, list) and all(map(is_count, asked)) else None
    for name, known in stored.info.items():
        if known.dtype not in FP8:
            continue
        scale = next((name + end for end in SCALES if name + end in stored.info), None)
        if scale is not None:
            found[name] = Packed(known.shape, _scaled(stored, name, scale, block), name)
    return found


def _scaled(
    stored: Weights, name: str, scale: str, block: tuple[int, ...] | None
) -> Callable[[int | None], Tensor]:
    def unpack(at: int | None) -> Tensor:
        own, by = stored[name], stored[scale].float()
        if at is not None:
            own, by = own[at], by if by.ndim < own.ndim else by[at]
        own = own.float()
        if by.numel() == 1 or own.ndim < 2:
            return own * by.reshape(-1) if by.numel() == 1 else own * by
        by = by[:, None] if by.ndim == 1 else by
        for axis, size in ((-2, own.shape[-2]), (-1, own.shape[-1])):
            count = by.shape[axis]
            each = block[axis] if block and len(block) == 2 and count != 1 else 0
            each = each if each and math.ceil(size / each) == count else size // count
            if math.ceil(size / max(each, 1)) != count:
                raise WorkbenchError(
                    f"{name} of {tuple(own.shape)} has scales of {tuple(by.shape)}, which divide "
                    "it into no equal blocks; download the checkpoint again."
                )
            by = by.repeat_interleave(each, axis).narrow(axis, 0, size)
        return own * by

    return unpack


def _mxfp4(stored: Weights, told: Mapping[str, Any]) -> dict[str, Packed]:
    found = {}
    for name, known in stored.info.items():
        whole = name.removesuffix("_blocks")
        scales = stored.info.get(f"{whole}_scales")
        if whole == name or scales is None or len(known.shape) < 3:
            continue
        *experts, rows, groups, half = known.shape
        if (*experts, rows, groups) == scales.shape and len(experts) == 1:
            shape = (*experts, groups * half * 2, rows)
            found[whole] = Packed(shape, _powers(stored, name, f"{whole}_scales"), name)
    return found


def _powers(stored: Weights, blocks: str, scales: str) -> Callable[[int | None], Tensor]:
    table = torch.tensor([*E2M1, *(-x for x in E2M1)])

    def unpack(at: int | None) -> Tensor:
        whole, by = (stored[one] if at is None else stored[one][at] for one in (blocks, scales))
        numbers = torch.stack([table[(whole & 15).long()], table[(whole >> 4).long()]], -1)
        numbers = torch.ldexp(numbers.flatten(-2), by.int()[..., None] - 127)
        return numbers.flatten(-2).transpose(-1, -2).contiguous()

    return unpack


def _bitsandbytes(stored: Weights, told: Mapping[str, Any]) -> dict[str, Packed]:
    found = {}
    for name, known in stored.info.items():
        module = name.removesuffix(".weight")
        if module != name and known.dtype == torch.int8 and f"{module}.SCB" in stored.info:
            found[name] = Packed(known.shape, _rows(stored, name, f"{module}.SCB"), name)
        if STATE not in name:
            continue
        matrix = name.partition(STATE)[0]
        state = _state(stored, name)
        found[matrix] = Packed(tuple(state["shape"]), _indexed(stored, matrix, state), matrix)
    return found


def _sealed(stored: Weights, method: str, told: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """What the names of a packed matrix begin with -> its shape, (out, in). GPTQ packs along the
    inputs of (in, out), AWQ along its outputs, compressed-tensors along the inputs of (out, in)."""
    found, bits = {}, told.get("bits", 4)
    for name, known in stored.info.items():
        stem, _, leaf = name.rpartition(".")
        if leaf not in ("qweight", "weight_packed") or len(known.shape) != 2:
            continue
        first, last = known.shape
        if method == "gptq" and is_count(bits):
            found[f"{stem}."] = (last, first * 32 // bits)
        elif method == "awq" and is_count(bits):
            found[f"{stem}."] = (last * 32 // bits, first)
        elif method == "compressed-tensors" and f"{stem}.weight_shape" in stored.info:
            whole = [int(size) for size in stored[f"{stem}.weight_shape"].flatten()[:2]]
            if len(whole) == 2 and whole[0] == first and 0 < whole[1] <= 32 * last:
                found[f"{stem}."] = (whole[0], whole[1])
    return found


def _rows(stored: Weights, name: str, scales: str) -> Callable[[int | None], Tensor]:
    def unpack(at: int | None) -> Tensor:
        whole = stored[name].float() * (stored[scales].float().reshape(-1, 1) / 127)
        return whole if at is None else whole[at]

    return unpack


def _state(stored: Weights, name: str) -> Mapping[str, Any]:
    """What is told of a matrix of 4 bits; raises WorkbenchError where it is not of what is there:
    sizes are claims of a file."""
    matrix = name.partition(STATE)[0]
    try:
        state = json.loads(bytes(stored[name].tolist()).decode())
        shape, block = state["shape"], state["blocksize"]
        size = math.prod(shape)
        sound = len(shape) == 2 and all(map(is_count, shape)) and is_count(block)
        sound = sound and 2 * math.prod(stored.info[matrix].shape) == size + size % 2
        sound = sound and stored.info[f"{matrix}.quant_map"].shape == (16,)
        scales = math.prod(stored.info[f"{matrix}.absmax"].shape)
        sound = sound and scales == math.ceil(size / block)
        if f"{matrix}.nested_absmax" in stored.info:
            nested = math.prod(stored.info[f"{matrix}.nested_absmax"].shape)
            sound = sound and is_number(state["nested_offset"])
            sound = sound and state.get("nested_blocksize", NESTED_BLOCK) == NESTED_BLOCK
            sound = sound and nested == math.ceil(scales / NESTED_BLOCK)
            sound = sound and stored.info[f"{matrix}.nested_quant_map"].shape == (256,)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(matrix) from error
    if not sound:
        raise _damaged(matrix)
    return state


def _damaged(matrix: str) -> WorkbenchError:
    return WorkbenchError(
        f"{matrix} is packed in 4 bits, and the description of its scales does not fit "
        "the stored data; download the checkpoint again."
    )


def _indexed(
    stored: Weights, matrix: str, state: Mapping[str, Any]
) -> Callable[[int | None], Tensor]:
    def unpack(at: int | None) -> Tensor:
        halves, scales = stored[matrix].flatten(), stored[f"{matrix}.absmax"]
        if f"{matrix}.nested_absmax" in stored.info:
            table = stored[f"{matrix}.nested_quant_map"].float()
            by = stored[f"{matrix}.nested_absmax"].float().repeat_interleave(NESTED_BLOCK)
            scales = table[scales.long()] * by[: len(scales)] + state["nested_offset"]
        both = torch.stack([halves >> 4, halves & 15], 1).flatten()
        size = math.prod(state["shape"])
        numbers = stored[f"{matrix}.quant_map"].float()[both[:size].long()]
        numbers = numbers * scales.float().repeat_interleave(state["blocksize"])[:size]
        whole = numbers.reshape(state["shape"])
        return whole if at is None else whole[at]

    return unpack
