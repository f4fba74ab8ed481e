"""Does a config describe the weights beside it? Asked before a model of its sizes is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import is_count
from workbench.loaders.auto import auto_class
from workbench.loaders.config_differences import entries
from workbench.loaders.staging import config_file, handed
from workbench.loaders.weights import TensorInfo

# Counts of parts of a model, each of which holds a tensor at least. Lists of this length are made
# while a config is read, so that they are bounded before it is.
COUNTS = re.compile(r"(^|_)n?_?(layers?|blocks|experts|heads?)(_|$)")
MOST_PARTS = 10_000
# Modules beside one tensor: activations, dropout, rotary embeddings and the lists that hold them.
MODULES = 20
# Entries beyond twice the stored ones: of parameters, which are stored; of masks and tables of
# angles, which are not.
PARAMETERS, BUFFERS = 1 << 20, 1 << 28
# Code or weights that are fetched by name: never from a config.
FETCHES = ("attn_implementation", "_attn_implementation", "experts_implementation")


def require_loadable(
    folder: Path, config: Mapping[str, Any], info: Mapping[str, TensorInfo]
) -> None:
    """Raise WorkbenchError where transformers would make a model far larger than `info`, the
    stored tensors, or fetch a part of it by name."""
    for key, value in entries(config):
        if (key in FETCHES and "/" in str(value)) or (key == "use_pretrained_backbone" and value):
            raise WorkbenchError(
                f"config.json in {folder} has {key} = {value!r}, which would be fetched from the "
                "hub; remove it there."
            )
        if COUNTS.search(key) and is_count(value, MOST_PARTS + 1):
            raise WorkbenchError(
                f"config.json in {folder} has {key} = {value}, more than {MOST_PARTS}; give the "
                "config of these weights."
            )
    try:
        with handed(config_file(config), folder) as fresh:
            wanted = _shapes(fresh, folder, MODULES * len(info) + 1000)
    except WorkbenchError:
        raise
    except Exception as error:  # transformers raises many kinds for a wrong config
        raise WorkbenchError(
            f"config.json in {folder} describes no model that transformers can build "
            f"({reason(error)}); give a checkpoint that it loads."
        ) from error
    for shapes, room in zip(wanted, (PARAMETERS, BUFFERS), strict=True):
        _require_sizes(folder, shapes, info, room)


def running_order(
    folder: Path, config: Mapping[str, Any], info: Mapping[str, TensorInfo]
) -> list[str]:
    """Names of the parameters of the model that a config describes, one module after the other.
    Raises WorkbenchError as `require_loadable`."""
    require_loadable(folder, config, info)
    with handed(config_file(config), folder) as fresh:
        return list(_shapes(fresh, folder, MODULES * len(info) + 1000)[0])


Shapes = Mapping[str, torch.Size]


def _shapes(fresh: Path, folder: Path, most: int) -> tuple[Shapes, Shapes]:
    """Shapes of the parameters and of the buffers of the model whose config lies in `fresh`, made
    without memory; of `most` modules at most."""
    from torch.nn.modules.module import register_module_module_registration_hook
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise WorkbenchError(
                f"config.json in {folder} describes a model of many more parts than there are "
                "weights; give the config of these weights."
            )

    config = AutoConfig.from_pretrained(fresh, local_files_only=True, trust_remote_code=False)
    hook = register_module_module_registration_hook(count)
    try:
        # Numbers would be drawn one operation after another, of tensors that hold none.
        with torch.device("meta"), no_init_weights():
            model: nn.Module = auto_class(config.to_dict()).from_config(
                config, trust_remote_code=False
            )
    finally:
        hook.remove()
    named = (model.named_parameters(), model.named_buffers())
    parameters, buffers = ({name: one.shape for name, one in part} for part in named)
    return parameters, buffers


def _require_sizes(folder: Path, shapes: Shapes, info: Mapping[str, TensorInfo], room: int) -> None:
    wanted = sum(shape.numel() for shape in shapes.values())
    stored = sum(torch.Size(known.shape).numel() for known in info.values())
    # A head tied to the embedding is stored once.
    if wanted > 2 * stored + room:
        name = max(shapes, key=lambda one: shapes[one].numel())
        raise WorkbenchError(
            f"config.json in {folder} describes a model of {wanted} entries (the "
            f"largest is {name} of shape {tuple(shapes[name])}), but {stored} are "
            "stored; give the config of these weights."
        )
