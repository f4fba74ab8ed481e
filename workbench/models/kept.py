"""Models that stay for all analyses within a block: which blocks can run the same ones, and whether
these are still what was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from workbench.loaders import CheckpointPair
from workbench.loaders.devices import Device
from workbench.models.memory import Where

if TYPE_CHECKING:
    from workbench.models.sides import Sides


class Kept(NamedTuple):
    """Models of a block that is open, and what tells whether they are still what was loaded."""

    sides: Sides
    written: Any


KEPT: ContextVar[Mapping[Any, Kept]] = ContextVar("kept", default=MappingProxyType({}))


def asked(pair: CheckpointPair, device: Device, dtype: torch.dtype | None, base: Where) -> Any:
    """What two blocks that can run the same models have in common. To name the precision that all
    numbers of the files have is to name none."""
    lora = pair.tuned.lora
    read = [pair.base.weights(), pair.tuned.weights(), *([] if lora is None else [lora.weights])]
    stored = {info.dtype for one in read for info in one.info.values()}
    wanted = None if stored == {dtype} else dtype
    return pair.base.identity, pair.tuned.identity, str(device), wanted, base


def written(sides: Sides) -> Any:
    """Which tensors the models have, and how often each was written into; which hooks."""
    told = []
    for model in (sides.base, sides.tuned):
        for module in () if model is None else model.modules():
            held = (*module._parameters.items(), *module._buffers.items())
            told.append([(name, id(own), own._version) for name, own in held if own is not None])
            told.append([*module._forward_hooks, *module._forward_pre_hooks])
    return told
