"""A file written tensor by tensor is what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from workbench.files.tensors import KINDS, write_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
FILES = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from([*KINDS]), SHAPES), max_size=5,
)  # fmt: skip


@given(FILES, st.integers(0, 2**31))
def test_any_tensors_are_read_again(shapes: dict[str, Any], seed: int):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (dtype, shape) in shapes.items():
        drawn = torch.randint(0, 2, shape, generator=generator).float()
        tensors[name] = (drawn * 3 - 1).to(dtype)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write_tensors(file, shapes, lambda name: tensors[name])
        found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(*(one.reshape(-1).view(torch.uint8) for one in (found[name], tensor)))


def test_each_is_made_when_it_is_written(tmp_path: Path):
    """In their order, one at a time; turned and bfloat16 as they are."""
    asked: list[str] = []
    turned = torch.arange(6.0).view(2, 3).T.to(torch.bfloat16)

    def made(name: str) -> torch.Tensor:
        asked.append(name)
        return turned

    shapes = dict.fromkeys("ba", (torch.bfloat16, (3, 2)))
    write_tensors(tmp_path / "a.safetensors", shapes, made)
    assert asked == ["b", "a"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("a"), turned)


def test_what_was_not_foretold_is_an_error(tmp_path: Path):
    with pytest.raises(TypeError, match=r"not torch\.float32"):
        write_tensors(tmp_path / "a", {"a": (torch.float32, (2,))}, lambda name: torch.zeros(3))
