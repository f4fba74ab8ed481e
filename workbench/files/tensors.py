"""A safetensors file written tensor by tensor: its header tells where every one lies before the
first is made, so that memory holds one tensor and no file.

The format: the header's length in 8 bytes, little endian; the header, JSON, filled with spaces to a
multiple of 8; then the numbers of every tensor, one behind the other, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# By the format's names.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
KINDS = {dtype: name for name, dtype in DTYPES.items()}
Shape = tuple[Any, tuple[int, ...]]  # dtype, shape


def write_tensors(file: Path, shapes: Mapping[str, Shape], tensor: Callable[[str], Tensor]) -> None:
    """Write the tensors of these dtypes and shapes, in this order, each made when it is written."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with file.open("wb") as out:
        out.write(len(told).to_bytes(8, "little") + told)
        for name, (dtype, shape) in shapes.items():
            made = tensor(name).detach().cpu().contiguous()
            if made.dtype != dtype or tuple(made.shape) != shape:
                raise TypeError(f"{name} is {made.dtype} {tuple(made.shape)}, not {dtype} {shape}")
            # As bytes, since numpy has no bfloat16.
            out.write(made.reshape(-1).view(torch.uint8).numpy().data)
