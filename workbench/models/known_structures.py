"""The structure of every model seen so far: found once a model, and once for all of one make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from workbench.models.parts import find
from workbench.models.structure import Structure

_KNOWN: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()
_BY_MAKE: dict[str, Structure] = {}


def structure(root: nn.Module) -> Structure:
    """Found once a model, or once for all that are told to be of one make."""
    if root not in _KNOWN:
        make = make_of(root)
        found = _BY_MAKE.get(make) if make else None
        found = find(root) if found is None else found
        _KNOWN[root] = found
        if make:
            _BY_MAKE[make] = found
    return _KNOWN[root]


def make_of(root: Any) -> str:
    """What two models have in common that run the same code on the same shapes: config, classes and
    places of all modules. "" for a model in which somebody changed how a module runs."""
    modules: Sequence[tuple[str, nn.Module]] = list(root.named_modules())
    if any("forward" in vars(module) for _, module in modules):
        return ""
    if any(module._forward_hooks or module._forward_pre_hooks for _, module in modules):
        return ""
    config = root.config.to_dict()
    # Some classes choose their attention when they are made.
    config["attention"] = getattr(root.config, "_attn_implementation", None)
    first = next(root.parameters())
    config["numbers"] = f"{first.dtype}, {'none' if first.is_meta else 'its own'}"
    told = json.dumps(config, sort_keys=True, default=str)
    kinds = [f"{name}: {type(m).__module__}.{type(m).__qualname__}" for name, m in modules]
    return "\n".join([told, *kinds])
