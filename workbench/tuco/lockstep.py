"""Base and tuned blocks on one residual stream, layer by layer: the step all of TuCo shares.

The tuned model runs; behind each of its blocks the base's block is run on the same input (mask,
rotary positions and position ids included). What a block adds to the stream is f(x) = block(x) - x.
Where the block is x and its sublayers' outputs it is taken from these, in float32, as the
difference would cancel in bfloat16 where the stream holds massive activations; where it does
something else to the stream as well (scales it, norms it) it is the difference. A block that
fine-tuning left alone is not run twice.
"""

from __future__ import annotations

import contextlib
import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models import Layout, Sides
from workbench.models.sides import WithoutAdapters
from workbench.models.watching import first_tensor

Visit = Callable[["Step"], Tensor | None]


class Block(NamedTuple):
    """What one block did to the stream x. out: x after it, as the model computes it, (batch, token,
    width). added: f(x) = out - x, float32; of a plain block A(x) + M(x + A(x))."""

    out: Tensor
    added: Tensor


class Step(NamedTuple):
    """One layer. stream: x, (batch, token, width). base is `tuned` itself where the block did not
    change."""

    layer: int
    stream: Tensor
    tuned: Block
    base: Block

    @property
    def changed(self) -> bool:
        return self.base is not self.tuned


# A key-value cache of the tuned model -> the base's own.
Twins = WeakKeyDictionary[Any, Any]


@contextlib.contextmanager
def lockstep(sides: Sides, visit: Visit, twins: Twins | None = None) -> Iterator[None]:
    """While the block lasts, every forward of `sides.tuned` calls visit(step) behind each block.

    A tensor that visit returns takes the place of the block's output. Generation works: the base's
    blocks keep keys and values of their own, in `twins`, which must be handed in again where a
    cache lives longer than the block. Raises WorkbenchError for a cache that was filled elsewhere.
    """
    walk = _Walk(sides, visit, WeakKeyDictionary() if twins is None else twins)
    with contextlib.ExitStack() as stack:
        for module in _sublayers(sides):
            stack.callback(module.register_forward_hook(walk.keep).remove)
        for layer in range(sides.layout.layers):
            block = sides.layout.block(layer)
            handle = block.register_forward_hook(walk.behind(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@dataclass
class _Walk:
    sides: Sides
    visit: Visit
    twins: Twins

    def __post_init__(self) -> None:
        self._latest: dict[nn.Module, Tensor] = {}
        self._inside = False
        # layer -> whether its sublayers' outputs are all that it adds.
        self._sums: dict[int, bool] = {}
        self._states: dict[int, Any] = {}

    def keep(self, module: nn.Module, _args: Any, output: Any) -> None:
        self._latest[module] = output[0] if isinstance(output, tuple | list) else output

    def behind(self, layer: int) -> Callable[..., Any]:
        def after(_module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
            # The base's block may be these very modules with the adapters off.
            if self._inside:
                return None
            if layer == 0:
                self._states.clear()
            stream = first_tensor(args, kwargs)
            assert stream is not None
            tuned = base = self._block(self.sides.layout, layer, stream, output)
            if layer in self.sides.changed:
                base = self._base(layer, stream, args, kwargs)
            new = self.visit(Step(layer, stream, tuned, base))
            if new is None:
                return None
            new = new.to(tuned.out.dtype)
            return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

        return after

    def _block(self, layout: Layout, layer: int, stream: Tensor, output: Any) -> Block:
        out = output[0] if isinstance(output, tuple | list) else output
        change = out.float() - stream.float()
        part = layout.parts(layer)
        if not self._sums.get(layer, part.whole and not part.gain):
            return Block(out, change)
        added = torch.zeros_like(change)
        for module, scale in added_by(layout, layer):
            added += scale * self._latest[module].reshape(out.shape).float()
        if layer not in self._sums:
            self._sums[layer] = _is_a_sum(change, added, out)
            return self._block(layout, layer, stream, output)
        return Block(out, added)

    def _base(self, layer: int, stream: Tensor, args: Any, kwargs: Mapping[str, Any]) -> Block:
        self._inside = True
        try:
            seen = stream.shape[1]
            own_args = tuple(self._own_state(value, layer, seen) for value in args)
            own = {name: self._own_state(value, layer, seen) for name, value in kwargs.items()}
            layout = self._base_layout(layer)
            return self._block(layout, layer, stream, self.sides.base_block(layer)(own_args, own))
        finally:
            self._inside = False

    def _base_layout(self, layer: int) -> Layout:
        """Whose modules the base's block is made of: the tuned model's, with other weights in them,
        where the base is no model of its own."""
        if self.sides.base is None or isinstance(self.sides.base, WithoutAdapters):
            return self.sides.layout
        return Layout(self.sides.base)

    def _own_state(self, value: Any, layer: int, seen: int) -> Any:
        """What the base's blocks keep for each other where the tuned model's blocks do so in
        `value`: keys and values of earlier tokens, or of earlier blocks; anything else as it is."""
        from transformers import Cache, DynamicCache

        if isinstance(value, dict | UserDict):
            own = self._states.setdefault(id(value), copy.copy(value))
            for key in [key for key in value if key not in own]:
                own[key] = value[key]  # of a block that fine-tuning left alone
            return own
        if not isinstance(value, Cache):
            return value
        if type(value) is not DynamicCache:
            raise WorkbenchError(
                f"Base and tuned blocks run with a DynamicCache, not a {type(value).__name__}."
            )
        if value not in self.twins:
            if value.get_seq_length(layer) > seen:
                raise WorkbenchError(
                    "This key-value cache was filled by another model; the base's "
                    "blocks cannot use it; start from the whole text."
                )
            self.twins[value] = DynamicCache(config=self.sides.layout.root.config)
        return self.twins[value]


def _is_a_sum(change: Tensor, added: Tensor, out: Tensor) -> bool:
    """Whether what the sublayers gave is the block's change of the stream, up to rounding."""
    apart = (change - added).abs().max() / out.float().abs().max().clamp(min=1e-20)
    return bool(apart <= (1e-3 if out.dtype == torch.float32 else 0.1))


def added_by(layout: Layout, layer: int) -> list[tuple[nn.Module, float]]:
    """The modules of a block whose outputs are added to the stream, and with which factor."""
    part, block = layout.parts(layer), layout.block(layer)
    found = (one for one in (part.attn, part.mixer, part.mlp, part.other) if one is not None)
    return [(block.get_submodule(one.path), one.scale) for one in found]


def _sublayers(sides: Sides) -> list[nn.Module]:
    """Every module whose output is added to the stream, of both sides, once."""
    layouts = [sides.layout]
    if sides.base is not None:
        layouts.append(Layout(sides.base))
    found = [
        module
        for layout in layouts
        for layer in range(layout.layers)
        for module, _ in added_by(layout, layer)
    ]
    return list(dict.fromkeys(found))
