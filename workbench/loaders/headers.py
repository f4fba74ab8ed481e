"""What a weights file says of itself, checked against its size before any of it is believed.

A header is anyone's text: a shape in it decides how much memory a reader takes, a count how long it
loops. Here every length is compared with the bytes that are really there. The formats are those of
the safetensors and gguf libraries, which then read the tensors.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, parsed

MOST_HEADER = 100_000_000  # bytes, as the safetensors library allows
# Bits of one entry. None of the types below a byte is read, but their sizes must still add up.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
MOST_DIMENSIONS = 8
MOST_SIZE = 1 << 48  # of one dimension; products stay far from overflow of 64 bits in any reader

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
# Metadata of a GGUF model that a tensor must bear out: its loader makes matrices of these sizes.
SIZES = ("embedding_length", "feed_forward_length", "vocab_size", "head_count", "head_count_kv",
         "key_length", "value_length", "expert_count")  # fmt: skip
SAID = ("block_count", "embedding_length")


@dataclass(frozen=True)
class Stored:
    """One tensor by its header: shape, the name of its type, the first byte of it in the file."""

    shape: tuple[int, ...]
    kind: str
    start: int


def safetensors_header(file: Path) -> dict[str, Stored]:
    """name -> shape and type of every tensor, none of them read.

    Raises WorkbenchError where the file is shorter or longer than its header says, where tensors
    overlap or leave gaps, a size and its bytes disagree, or a name stands twice.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise ValueError(f"{size} bytes, but the header claims {length}")
            content = parsed(opened.read(length).decode())
        return _tensors(content, size, 8 + length)
    except OSError as error:
        raise WorkbenchError(
            f"{file} cannot be read ({error.strerror}); check the path."
        ) from error
    except ValueError as error:
        raise WorkbenchError(
            f"{file} is not a whole safetensors file ({error}); download or save it again."
        ) from error


def _tensors(content: Any, size: int, start: int) -> dict[str, Stored]:
    """The header's object checked against a file of `size` bytes whose data begin at `start`;
    raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    content.pop("__metadata__", None)
    found, ranges = {}, []
    for name, about in content.items():
        found[name] = _tensor(name, about, start)
        first, last = about["data_offsets"]
        ranges.append((first, last, name))
    end = 0
    for first, last, name in sorted(ranges):
        if first != end:
            raise ValueError(f"the data of {name!r} begin at byte {first}, not at {end}")
        end = last
    if end != size - start:
        raise ValueError(f"its tensors end at byte {end} of {size - start}")
    return found


def _tensor(name: str, about: Any, start: int) -> Stored:
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    kind, shape, place = about["dtype"], about["shape"], about["data_offsets"]
    if kind not in BITS if isinstance(kind, str) else True:
        raise ValueError(f"{name!r} has the unknown type {kind!r}")
    if not isinstance(shape, list) or not all(is_count(s, 0) and s <= MOST_SIZE for s in shape):
        raise ValueError(f"{name!r} has the shape {shape!r}")
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions")
    if not isinstance(place, list) or len(place) != 2 or not all(is_count(p, 0) for p in place):
        raise ValueError(f"{name!r} has the offsets {place!r}")
    if math.prod(shape) * BITS[kind] != 8 * (place[1] - place[0]):
        raise ValueError(
            f"{name!r} of shape {shape} and type {kind} has {place[1] - place[0]} bytes"
        )
    return Stored(tuple(shape), kind, start + place[0])


def require_gguf(file: Path) -> None:
    """Raise WorkbenchError where a GGUF file's counts, lengths or sizes are more than it holds."""
    try:
        with file.open("rb") as opened:
            _Gguf(opened, file.stat().st_size).check()
    except OSError as error:
        raise WorkbenchError(
            f"{file} cannot be read ({error.strerror}); check the path."
        ) from error
    except (ValueError, struct.error) as error:
        raise WorkbenchError(
            f"{file} could not be read as GGUF ({error}); download it again."
        ) from error


class _Gguf:
    """One pass over a GGUF file's header. Raises ValueError or struct.error."""

    def __init__(self, opened: BinaryIO, size: int) -> None:
        self.opened, self.size = opened, size

    def check(self) -> None:
        if self.opened.read(4) != b"GGUF" or self.number("I") not in (2, 3):
            raise ValueError("it does not begin like GGUF of version 2 or 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        # A tensor takes 24 bytes or more of the header, a pair 13.
        if 24 * tensors + 13 * pairs > self.size:
            raise ValueError(f"it claims {tensors} tensors and {pairs} entries")
        about: dict[str, Any] = {}
        for _ in range(pairs):
            name = self.text()
            if name in about:
                raise ValueError(f"the entry {name!r} occurs twice")
            about[name] = self.value(self.number("I"))
        alignment = about.get("general.alignment", 32)
        if not is_count(alignment) or alignment > 1 << 16:
            raise ValueError(f"an alignment of {alignment!r}")
        stored = [self.tensor() for _ in range(tensors)]
        self.require_inside(stored, -(-self.opened.tell() // alignment) * alignment)
        self.require_borne_out(about, [shape for shape, _, _ in stored])

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.opened.read(struct.calcsize("<" + kind)))[0]

    def bounded(self, count: int, each: int = 1) -> int:
        """`count`, if so many items of `each` bytes are left."""
        if count * each > self.size - self.opened.tell():
            raise ValueError(f"{count} items are claimed, but the file ends at {self.size} bytes")
        return count

    def text(self) -> str:
        return self.opened.read(self.bounded(self.number("Q"))).decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value; of arrays only the length, of nested ones None."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            # A vocabulary may hold bytes that are no text; only names must be.
            return self.opened.read(self.bounded(self.number("Q")))
        if kind != ARRAY or depth > 2:
            raise ValueError(f"a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            each = struct.calcsize("<" + SCALARS[inner])
            self.opened.seek(self.bounded(count, each) * each, 1)
        else:
            for _ in range(self.bounded(count, 8)):
                self.value(inner, depth + 1)
        return None

    def tensor(self) -> tuple[list[int], int, int]:
        """(shape, type, offset) of the next tensor."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        if any(s > MOST_SIZE for s in shape):
            raise ValueError(f"{name!r} has the shape {shape}")
        return shape, self.number("I"), self.number("Q")

    def require_inside(self, stored: list[tuple[list[int], int, int]], start: int) -> None:
        from gguf.constants import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        for shape, kind, offset in stored:
            if kind not in sizes:
                raise ValueError(f"a tensor of the unknown type {kind}")
            block, each = sizes[kind]
            if start + offset + math.prod(shape) // block * each > self.size:
                raise ValueError(
                    f"a tensor of shape {shape} at byte {start + offset} of {self.size}"
                )

    def require_borne_out(self, about: dict[str, Any], shapes: list[list[int]]) -> None:
        """Layers need tensors, and widths a tensor that is as wide. What is not said at all, the
        loader would take from its default model of billions of weights."""
        kind = about.get("general.architecture")
        kind = kind.decode(errors="replace") if isinstance(kind, bytes) else kind
        missing = [f"{kind}.{part}" for part in SAID if not is_count(about.get(f"{kind}.{part}"))]
        if missing:
            raise ValueError(f"the entry {missing[0]} is missing")
        largest = max((size for shape in shapes for size in shape), default=0)
        for name, value in about.items():
            part = name.rpartition(".")[2]
            most = len(shapes) if part == "block_count" else largest if part in SIZES else None
            if most is not None and is_count(value, 0) and value > most:
                raise ValueError(
                    f"{name} is {value}, which does not agree with its {len(shapes)} tensors"
                )
