"""How analyses are run, said once for several calls.

with wb.running(device="cuda", dtype="bfloat16", batch_size=8):
    wb.patching.activation(pair, prompts)
    wb.forgetting.retention(pair, [prompts], seed=1)
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from workbench.loaders.devices import Device, entry

_GIVEN: ContextVar[Mapping[str, Any]] = ContextVar("running", default=MappingProxyType({}))


@contextmanager
def running(
    *,
    device: Device | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Iterator[None]:
    """What every analysis in the block takes where its own arguments do not say, and where it has
    such an argument; None leaves the analysis's default. A block inside another adds to it.

    device: "cpu", "cuda", "cuda:1", "mps" or "auto". dtype: "float32" or "bfloat16". batch_size:
    rows of a forward pass. seed: of everything drawn at random. Results name what they ran with.
    Raises WorkbenchError for a device that is not there.
    """
    if device is not None:
        entry(device)
    said = {"device": device, "dtype": dtype, "batch_size": batch_size, "seed": seed}
    given = {name: value for name, value in said.items() if value is not None}
    token = _GIVEN.set({**_GIVEN.get(), **given})
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Nothing of the blocks around: what runs here is told by its own arguments."""
    token = _GIVEN.set({})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given(names: Container[str]) -> dict[str, Any]:
    """What the blocks around this call say of arguments of these names."""
    return {name: value for name, value in _GIVEN.get().items() if name in names}
