"""What was found of a model: once a model, or once for all models of one make."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Found = TypeVar("Found")


class Known(Generic[Found]):
    """A memory of one question asked of models."""

    def __init__(self) -> None:
        self._models: WeakKeyDictionary[nn.Module, Found] = WeakKeyDictionary()
        self._makes: dict[str, Found] = {}

    def of(self, root: nn.Module, find: Callable[[], tuple[Found, bool]]) -> Found:
        """What is known of this model. find: gives it, and whether it is so of all of its make."""
        if root not in self._models:
            make = make_of(root)
            if make and make in self._makes:
                self._models[root] = self._makes[make]
            else:
                self._models[root], shared = find()
                if make and shared:
                    self._makes[make] = self._models[root]
        return self._models[root]


def make_of(root: Any) -> str:
    """What two models have in common that run the same code: config, precision, attention, classes
    and places of all modules. "" for a model in which somebody changed how a module runs."""
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
