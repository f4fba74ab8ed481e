"""Base and tuned blocks on one residual stream, layer by layer: the step all of TuCo shares.

The tuned model runs; behind each of its blocks the base's block is run on the same input (mask,
rotary positions and position ids included). What a block adds to the stream is taken from its
sublayers' outputs, attention + MLP in float32: block(x) - x would cancel in bfloat16 where the
stream holds massive activations. A block that fine-tuning left alone is not run twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models import Layout, Sides, Site

Visit = Callable[["Step"], Tensor | None]


class Block(NamedTuple):
    """What one block did to the stream x. out: x after it, as the model computes it; attn, mlp:
    what its sublayers added; all (batch, token, width)."""

    out: Tensor
    attn: Tensor
    mlp: Tensor

    @property
    def added(self) -> Tensor:
        """f(x) = A(x) + M(x + A(x)), float32."""
        return self.attn.float() + self.mlp.float()


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
    cache lives longer than the block. Raises WorkbenchError for a cache that was filled elsewhere,
    and for a model whose stream is not x + attention + MLP.
    """
    walk = _Walk(sides, visit, WeakKeyDictionary() if twins is None else twins)
    with contextlib.ExitStack() as stack:
        for module, name in _sublayers(sides):
            handle = module.register_forward_hook(walk.keeper(name))
            stack.callback(handle.remove)
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
        self._latest: dict[str, Tensor] = {}
        self._inside = False
        self._checked = False

    def keeper(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._latest[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def behind(self, layer: int) -> Callable[..., Any]:
        def after(_module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
            # The base's block may be these very modules with the adapters off.
            if self._inside:
                return None
            stream = args[0] if args else kwargs["hidden_states"]
            tuned = base = self._block(output)
            if not self._checked:
                _is_a_sum(stream, tuned)
                self._checked = True
            if layer in self.sides.changed:
                base = self._base(layer, args, kwargs)
            new = self.visit(Step(layer, stream, tuned, base))
            if new is None:
                return None
            new = new.to(tuned.out.dtype)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return after

    def _block(self, output: Any) -> Block:
        out = output[0] if isinstance(output, tuple) else output
        return Block(out, self._latest["attn"], self._latest["mlp"])

    def _base(self, layer: int, args: Any, kwargs: Mapping[str, Any]) -> Block:
        self._inside = True
        try:
            seen = (args[0] if args else kwargs["hidden_states"]).shape[1]
            own_args = tuple(self._own_cache(value, layer, seen) for value in args)
            own = {name: self._own_cache(value, layer, seen) for name, value in kwargs.items()}
            return self._block(self.sides.base_block(layer)(own_args, own))
        finally:
            self._inside = False

    def _own_cache(self, value: Any, layer: int, seen: int) -> Any:
        """The base's keys and values for a cache of the tuned model, anything else as it is."""
        from transformers import Cache, DynamicCache

        if not isinstance(value, Cache):
            return value
        if type(value) is not DynamicCache:
            raise WorkbenchError(
                f"Base and tuned blocks run with a DynamicCache, not a {type(value).__name__}."
            )
        if value not in self.twins:
            if value.get_seq_length(layer) > seen:
                raise WorkbenchError(
                    "This key-value cache was filled by another model; the base's blocks know "
                    "nothing of it. Start from the whole text."
                )
            self.twins[value] = DynamicCache(config=self.sides.layout.root.config)
        return self.twins[value]


def _is_a_sum(stream: Tensor, block: Block) -> None:
    """Raise where a block does something else to the stream than adding its sublayers' outputs."""
    out = block.out.float()
    apart = (stream.float() + block.added - out).abs().max() / out.abs().max().clamp(min=1e-20)
    if apart > (1e-3 if stream.dtype == torch.float32 else 0.1):
        raise WorkbenchError(
            f"A block of this model does not add its attention and MLP to the stream (off by "
            f"{float(apart):.0%}); it needs a record of its own in workbench.models.sites."
        )


def _sublayers(sides: Sides) -> list[tuple[nn.Module, str]]:
    """Every module whose output is added to the stream, of both sides, once."""
    layouts = [sides.layout]
    if sides.base is not None:
        layouts.append(Layout(sides.base))
    found: dict[int, tuple[nn.Module, str]] = {}
    for layout in layouts:
        for layer in range(layout.layers):
            attn, mlp = Site("attn_out", layer), Site("mlp_out", layer)
            for site, name in ((attn, "attn"), (mlp, "mlp")):
                module = layout.module(site)
                found[id(module)] = (module, name)
    return list(found.values())
