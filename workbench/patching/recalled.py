"""A layer's attention, called once more with the states it was given, behind another prefix.

What runs is the model's own module: positions, masks and shared keys stay its business. A prefix is
keys and values of virtual tokens, which a module takes from the cache it is called with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from workbench.errors import WorkbenchError
from workbench.models import Layout, Site, capture
from workbench.models.watching import first_tensor


class Prefix(NamedTuple):
    """keys, values: (batch, key-value head, virtual token, d_head)."""

    keys: Tensor
    values: Tensor


class Attended(NamedTuple):
    """What a layer's attention does. pattern: (batch, head, query, key), the virtual tokens' keys
    before those of the content. z: (batch, query, head, d_head), what the heads mix of the values.
    """

    pattern: Tensor
    z: Tensor

    @property
    def on_prefix(self) -> Tensor:
        """(batch, head, query, virtual token)."""
        return self.pattern[..., : self.pattern.shape[-1] - self.pattern.shape[-2]].float()

    @property
    def content(self) -> Tensor:
        """(batch, head, query, key) over the content alone, which sums to 1; 0 where a query
        attends to nothing of it."""
        own = self.pattern[..., -self.pattern.shape[-2] :].float()
        total = own.sum(-1, keepdim=True)
        return own / torch.where(total > 0, total, 1)


class Called(NamedTuple):
    """One call of a layer's attention behind a prefix."""

    module: nn.Module
    layer: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    prefix: Prefix

    def again(self, layout: Layout, prefix: Prefix | None) -> Attended:
        """What it does with the same states behind another prefix of that length, or none."""
        sites = Site("pattern", self.layer), Site("z", self.layer)
        cache = None
        if prefix is not None:
            cache = DynamicCache()
            cache.update(*prefix, getattr(self.module, "layer_idx", self.layer))
        states = first_tensor(self.args, self.kwargs)
        tokens = states.shape[1] if states is not None else 0
        whole = tokens + self.prefix.keys.shape[2]

        def other(value: Any) -> Any:
            if isinstance(value, Cache):
                return cache
            # Masks, and biases by position, are as wide as there are keys.
            wide = isinstance(value, Tensor) and value.ndim > 2 and value.shape[-1] == whole
            if prefix is None and wide and (value.ndim == 4 or value.shape[-2] == 1):
                return value[..., -tokens:]
            return value

        args = [other(value) for value in self.args]
        kwargs = {name: other(value) for name, value in self.kwargs.items()}
        with torch.no_grad(), capture(layout.root, sites) as seen:
            self.module(*args, **kwargs)
        made = Attended(*(seen[site] for site in sites))
        keys = tokens + (0 if prefix is None else prefix.keys.shape[2])
        if made.pattern.shape[-1] != keys:
            raise unread(self.layer, f"it attends to {made.pattern.shape[-1]} keys, not {keys}")
        return made


def unread(layer: int, why: str) -> WorkbenchError:
    """Of a layer that does something else with a prefix than attention does."""
    return WorkbenchError(
        f"Expected attention in layer {layer} that takes its prefix from a cache and mixes values "
        f"by their weights, but {why}; use behaviour.tokens to compare what the models say."
    )


@contextlib.contextmanager
def called(layout: Layout, layers: Sequence[int]) -> Iterator[dict[int, Called]]:
    """Fill a dict layer -> what its attention is called with while the model runs with a prefix.

    Raises WorkbenchError for a layer that finds no keys of its own in the cache.
    """
    found: dict[int, Called] = {}

    def noting(layer: int):
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caches = [v for v in (*args, *kwargs.values()) if isinstance(v, Cache)]
            known: Any = caches[0].layers if caches else ()
            place = getattr(module, "layer_idx", layer)
            if place >= len(known) or known[place].keys is None:
                raise unread(layer, "there is no prefix of its own in the cache")
            # The tensors that are there now: what is added makes new ones.
            own = Prefix(known[place].keys, known[place].values)
            found[layer] = Called(module, layer, args, dict(kwargs), own)

        return note

    with contextlib.ExitStack() as stack:
        for layer in layers:
            module = layout.module(Site("pattern", layer))
            hook = module.register_forward_pre_hook(noting(layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield found
