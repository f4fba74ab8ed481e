"""Where a model's parts lie: on one device, or spread by accelerate over GPUs, memory and disk.

A device is a name ("cpu", "cuda:1"), or what accelerate calls a device map: "auto" fills the GPUs,
then memory, then reads the rest from the checkpoint's files whenever it runs; a mapping from
modules to GPU numbers, "cpu" and "disk" says it part by part. A part that lies elsewhere is brought
to where it runs for the time of its run, so the numbers are those of a model in one place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError

Device = str | torch.device | Mapping[str, Any]


def spread(device: Device) -> bool:
    """Whether accelerate places the parts."""
    return device == "auto" or isinstance(device, Mapping)


def entry(device: Device) -> torch.device:
    """Where inputs are put and single tensors are held; the first GPU of a spread model.

    Raises WorkbenchError for what names no device, or one that is not on this machine.
    """
    if isinstance(device, str | torch.device) and device != "auto":
        return _there(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(device, Mapping)
    gpus = [place for place in device.values() if place not in ("cpu", "disk")]
    if gpus and isinstance(gpus[0], int):
        return torch.device("cuda", gpus[0])
    return torch.device(gpus[0] if gpus else "cpu")


def _there(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise WorkbenchError(
            f"Expected a device such as cpu, cuda, cuda:1, mps or auto, found {str(device)!r}."
        ) from error
    counts = {
        "cuda": torch.cuda.device_count if torch.cuda.is_available() else int,
        "mps": lambda: int(torch.backends.mps.is_available()),
    }
    if found.type not in counts:
        return found
    count = counts[found.type]()
    if (found.index or 0) >= count:
        raise WorkbenchError(
            f"Expected a device of this machine, found {str(device)!r}, where there "
            f"{'is none' if not count else f'are {count}'} of that kind; give cpu, or auto."
        )
    return found


def home(model: nn.Module) -> torch.device:
    """Where a model's inputs are put; offloaded parameters lie nowhere between their runs."""
    places = (parameter.device for parameter in model.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_spread(load: Callable[..., nn.Module], device: Device, offload: Path) -> nn.Module:
    """load(device_map=, offload_folder=). offload: a folder for weights that must be converted,
    of which each model gets its own part for as long as it lives."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise WorkbenchError(
            "To spread a model over devices, accelerate is needed: pip install accelerate."
        ) from error
    offload.mkdir(parents=True, exist_ok=True)
    own = tempfile.mkdtemp(dir=offload)
    placing = dict(device) if isinstance(device, Mapping) else device
    try:
        model = load(device_map=placing, offload_folder=own)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, own, True)
    return model


def offloaded(module: nn.Module) -> bool:
    """Whether a module's own parameters are brought to it when it runs."""
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def instead(module: Any, name: str, tensor: Tensor) -> Callable[[], None]:
    """An offloaded module runs with this tensor as one of its parameters, until what is returned
    is called."""
    hook = module._hf_hook
    before = hook.weights_map
    hook.weights_map = ChainMap({name: tensor}, before)

    def undo() -> None:
        hook.weights_map = before

    return undo


def settle(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give LoRA layers over offloaded matrices these factors (parameter -> tensor) beside where the
    matrices run. Raises WorkbenchError for a factor that has no such place."""
    for name, tensor in tensors.items():
        above, _, last = name.rpartition(".")
        module = model.get_submodule(above)
        layer: Any = model.get_submodule(above.rpartition(".lora_")[0])
        hook = getattr(layer.base_layer, "_hf_hook", None)
        where = getattr(hook, "execution_device", None) or home(layer)
        old = module._parameters[last]
        assert old is not None
        module._parameters[last] = nn.Parameter(tensor.to(where, old.dtype), old.requires_grad)
    lost = [name for name, p in model.named_parameters() if "lora_" in name and p.is_meta]
    if lost:
        raise WorkbenchError(f"The adapter has no tensor for {lost[0]}; give a complete one.")
