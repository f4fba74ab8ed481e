"""Reads an adapter from its folder, or out of a model in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.files.reading import read_json
from workbench.loaders.adapters.adapter import PREFIX, Adapter
from workbench.loaders.adapters.kinds import KINDS, kind_of
from workbench.loaders.adapters.lora import Lora, require_lora
from workbench.loaders.adapters.other_tools import in_peft_form, other_files
from workbench.loaders.adapters.soft_prompt import SoftPrompt, require_soft_prompt
from workbench.loaders.foreign_formats import pointers
from workbench.loaders.weights import Weights, from_files, from_state, from_tensors, inside

# Where peft keeps what it has put something on.
BENEATH = ("base_layer.", "original_module.")
FILES = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter's weights that are there, the one to read first."""
    own = [folder / name for name in FILES if (folder / name).exists()]
    return own or other_files(folder)


def read_adapter(folder: Path, base: Mapping[str, Any] | None = None) -> Adapter:
    """An adapter folder of peft, mlx-lm or torchtune; raises WorkbenchError for what is not a
    readable adapter. base: config.json of the model it stands on, which torchtune's needs."""
    for pointer in pointers(folder):
        raise WorkbenchError(
            f"{pointer} is a Git LFS pointer and not the file itself; run `git lfs pull` there."
        )
    config = read_json(folder / "adapter_config.json", remedy="save the adapter again")
    files = adapter_files(folder)
    if not files:
        raise WorkbenchError(
            f"Expected {' or '.join(FILES)} in {folder}, found neither; give the "
            "folder that the training tool wrote."
        )
    if files[0].name not in FILES:
        config, weights = in_peft_form(files[0], config, base or {})
        return _checked(str(folder), config, weights, translated=True)
    kind_of(config, str(folder))
    return _checked(str(folder), config, from_files([inside(files[0])], whole=True))


def adapter_in(model: nn.Module) -> Adapter | None:
    """The adapter with which a model in memory runs now, None for one without adapters.

    Raises WorkbenchError where `model(...)` computes anything but its base and one adapter of the
    strength its config says.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    where = type(model).__name__
    if len(configs) == 1:  # one of a prompt has no layers to be found in
        (only,) = configs.values()
        own = KINDS[kind_of({"peft_type": getattr(only.peft_type, "value", only.peft_type)}, where)]
        if own.virtual:
            raise WorkbenchError(
                f"{where} is in memory with an adapter of {own.name}, which changes no "
                "weight and can only be read from a folder; save it with "
                "save_pretrained and give that folder."
            )
    name = _running(model)
    config = {k: getattr(v, "value", v) for k, v in vars(configs[name]).items()}
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    held = _added(model, name, KINDS[kind_of(config, where)].prefix)
    found = _checked(where, config, from_tensors(held))
    if isinstance(found, Lora):
        _require_strength(model, found, name)
    return found


def _added(model: nn.Module, name: str, prefix: str) -> dict[str, Tensor]:
    """What an adapter adds to a model in memory, by the names with which it would be saved. peft's
    own function for it takes an adapter that is called as a module of the model for that."""
    shared = prefix.partition("_")[0] + "_"
    found = {}
    for key, tensor in model.state_dict().items():
        of_module = key.startswith(PREFIX) or not key.startswith("base_model.")
        parts = rf"{prefix if of_module else shared}\w+|modules_to_save|trainable_tokens_delta"
        own = re.search(rf"\.({parts})(?P<name>\.{re.escape(name)})(?=\.|$)", key)
        if own:
            found[key[: own.start("name")] + key[own.end("name") :]] = tensor
    return found


def _running(model: Any) -> str:
    """The name of the one adapter that is active in every layer and merged into none."""
    layers = [
        m for m in model.modules() if hasattr(m, "_disable_adapters") and hasattr(m, "merged")
    ]
    if any(layer.merged for layer in layers):
        raise WorkbenchError(
            "An adapter of this model is merged into its weights, so the base is no "
            "longer in memory; call unmerge_adapter(), or give base and merged weights as folders."
        )
    if any(layer.disable_adapters for layer in layers):
        raise WorkbenchError(
            "The adapters of this model are switched off, so it runs as its base; "
            "call enable_adapter_layers() or set_adapter(...)."
        )
    active = {name for layer in layers for name in layer.active_adapters}
    alike = all(set(layer.active_adapters) == active for layer in layers)
    if len(active) != 1 or not alike:
        raise WorkbenchError(
            f"Expected one adapter that is active in all layers, found {sorted(active)}; choose "
            "one with set_adapter(...), or combine them with add_weighted_adapter(...)."
        )
    return active.pop()


def _require_strength(model: nn.Module, adapter: Lora, name: str) -> None:
    """Raise WorkbenchError where a layer scales its factors by other than alpha / r."""
    for path, layer in model.named_modules():
        scaling = getattr(layer, "scaling", None)
        module = path.removeprefix(PREFIX)
        if not isinstance(scaling, dict) or name not in scaling or module not in adapter.parts:
            continue
        if not math.isclose(scaling[name], adapter.scale(module), rel_tol=1e-6):
            raise WorkbenchError(
                f"{module} runs with its adapter scaled by {scaling[name]:g}, but its "
                f"config states {adapter.scale(module):g}; set the scale back, or save "
                "the adapter as it runs."
            )


def base_weights_in(model: nn.Module) -> Weights:
    """The base weights inside a PeftModel, under the base's own names."""
    layers = [path for path, one in model.named_modules() if hasattr(one, "_disable_adapters")]
    is_peft = any(path.startswith(PREFIX) for path, _ in model.named_modules())
    plain: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        inside = [name.removeprefix(f"{path}.") for path in layers if name.startswith(f"{path}.")]
        shared = is_peft and not name.startswith(PREFIX)
        if shared or not all(rest.startswith(BENEATH) for rest in inside):
            continue
        own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        while ".base_layer." in own:  # one of several on a module
            own = own.replace(".base_layer.", ".")
        plain[own.replace(".original_module.", ".")] = tensor
    return from_state(plain, type(model).__name__)


def _checked(
    where: str, config: Mapping[str, Any], weights: Weights, *, translated: bool = False
) -> Adapter:
    """The adapter, of which nothing is yet computed; raises WorkbenchError as `read_adapter`."""
    kind = kind_of(config, where)
    made = Lora if kind == "LORA" else SoftPrompt if KINDS[kind].virtual else Adapter
    adapter = made(where, config, weights, translated)
    if config.get("layer_replication"):
        raise WorkbenchError(
            f"Adapter {where} is of a model with replicated layers (layer_replication), which "
            "cannot be read; merge it into its base with peft and give the merged folder."
        )
    empty = [name for name, known in weights.info.items() if 0 in known.shape]
    if empty:
        raise WorkbenchError(
            f"{len(empty)} tensors of adapter {where} are empty, the first is "
            f"{empty[0]}: the adapter was saved under DeepSpeed ZeRO-3 without "
            "gathering; save it from the gathered model."
        )
    if not weights:
        raise WorkbenchError(f"Adapter {where} holds no tensors; save it again.")
    saved = config.get("modules_to_save") or []
    if not (isinstance(saved, list | set) and all(isinstance(name, str) for name in saved)):
        raise WorkbenchError(
            f"Expected adapter {where} to have modules_to_save as a list of names; save it again."
        )
    if config.get("sample_at_inference"):
        raise WorkbenchError(
            f"Adapter {where} draws a new random change each time it runs "
            "(sample_at_inference); set that to false to compare its mean."
        )
    if isinstance(adapter, Lora):
        require_lora(adapter)
    elif isinstance(adapter, SoftPrompt):
        require_soft_prompt(adapter)
    elif not any(f".{adapter.kind.prefix}" in name for name in weights):
        raise WorkbenchError(
            f"Adapter {where} of type {adapter.type} holds none of its tensors "
            f"({adapter.kind.prefix}...), the first tensor is {next(iter(weights))}; "
            "its config belongs to other weights."
        )
    return adapter
