"""What do both sides of a pair take in memory, and is there room? Told before they are loaded."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import Device, entry, spread
from workbench.log import log

Where = Literal["memory", "disk"]
MEBI = 2**20


def one_copy(pair: CheckpointPair) -> bool:
    """Whether the base is the tuned model with its adapters off."""
    lora = pair.tuned.lora
    if lora is None or not pair.shared_base or pair.resized:
        return False
    return lora.config.get("bias", "none") == "none" and not lora.overwrites


def plan(
    pair: CheckpointPair, dtype: torch.dtype | None, base: Where = "memory"
) -> tuple[int, str]:
    """(bytes of weights at most, one sentence), from the files' headers alone."""
    ours, theirs = _bytes(pair.base, dtype), _bytes(pair.tuned, dtype)
    factors = pair.tuned.lora.weights.info.values() if pair.tuned.lora else ()
    adapter = sum(4 * math.prod(info.shape) for info in factors)
    if one_copy(pair):
        return ours + adapter, "one copy of the weights, with adapters switched off for the base"
    if base == "disk":
        return theirs + adapter, "the tuned model, with the base read from disk block by block"
    return ours + theirs + adapter, "two models, less every parameter that did not change"


def free(device: Device) -> int | None:
    """Bytes that can still be allocated on `device`; None where nothing tells."""
    if not isinstance(device, str | torch.device) or spread(device):
        return None
    device = entry(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available
    return None


def announce(pair: CheckpointPair, device: Device, dtype: torch.dtype | None, base: Where) -> None:
    needed, how = plan(pair, dtype, base)
    advice = 'use a smaller dtype, another device, or base="disk" for a full fine-tune'
    tell(pair.name, needed, how, device, advice)


def tell_base_again(pair: CheckpointPair, device: Device, dtype: torch.dtype | None) -> None:
    """Tell what the base takes beside both sides, which are loaded; raises WorkbenchError, with the
    numbers, where it cannot fit."""
    tell(
        pair.name, _bytes(pair.base, dtype), "the base once more", device,
        "use a smaller dtype or another device",
    )  # fmt: skip


def tell(name: str, needed: int, how: str, device: Device, advice: str) -> None:
    """Say what is loaded and what it takes, or that it does not fit."""
    room = free(device)
    told = f"{needed / MEBI:,.0f} MiB" + (
        "" if room is None else f" of {room / MEBI:,.0f} MiB free on {device}"
    )
    if room is not None and needed > room:
        raise WorkbenchError(f"{name} needs {told} ({how}); {advice}.")
    log.info("%s: %s: %s", name, how, told)


def _bytes(checkpoint: Any, dtype: torch.dtype | None) -> int:
    return sum(
        math.prod(info.shape) * (dtype or info.dtype or torch.float32).itemsize
        for info in checkpoint.weights().info.values()
    )
