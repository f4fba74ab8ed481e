"""Both sides of a pair, ready to run, in as little memory as they need.

A LoRA pair is one copy of the weights whose adapters are switched off for the base; a full pair is
two models that share every parameter fine-tuning left alone. The base can also be read from disk
block by block, where two models do not fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from workbench.conveniences import provides
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.adapters import SoftPrompt
from workbench.loaders.devices import Device, spread
from workbench.loaders.names import align
from workbench.loaders.prompted import Prompted
from workbench.log import log
from workbench.models.edits import tensor_homes
from workbench.models.kept import KEPT, Kept, asked, written
from workbench.models.layout import Layout, plain
from workbench.models.memory import Where, announce, one_copy

Block = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]


@dataclass
class Sides:
    """base, tuned: transformers models to call, in eval mode. base is None if its blocks are read
    from disk; tuned is a `Prompted` if the adapter puts virtual tokens in front of a text, and then
    has no layout. weights: "unmerged" if adapters run next to the base's matrices, else "plain".
    Whatever needs the model's parts raises WorkbenchError if they cannot be found."""

    base: Any
    tuned: Any
    weights: Literal["unmerged", "plain"]
    # Names of what differs, parameters or adapted modules, as the tuned model has them.
    _differ: Sequence[str] = field(repr=False)
    _block: Callable[[Sides, int], Block] = field(repr=False)

    @cached_property
    def layout(self) -> Layout:
        """Of the tuned model."""
        return Layout(self.tuned)

    @cached_property
    def changed(self) -> frozenset[int]:
        """Layers in which any parameter differs."""
        return frozenset(int(name.split(".")[0]) for name in self._inside())

    @cached_property
    def elsewhere(self) -> tuple[str, ...]:
        """What differs outside the blocks (embedding, final norm, head), as the tuned model names
        it."""
        prefix = self.layout.structure.layers + "."
        return tuple(name for name in self._differ if not name.startswith(prefix))

    def _inside(self, layer: int | None = None) -> list[str]:
        """What differs in the blocks as named below their list, or in one block below it."""
        layers = self.layout.structure.layers
        prefix = f"{layers}." if layer is None else f"{layers}.{layer}."
        return [name.removeprefix(prefix) for name in self._differ if name.startswith(prefix)]

    @property
    def described(self) -> str:
        """Which weights are run, for the report."""
        if self.weights == "unmerged":
            return "runs with its adapters unmerged, next to the base's matrices."
        return "runs with its weights as they are stored."

    def base_block(self, layer: int) -> Block:
        """The base's block: (args, kwargs) of a call of the tuned block -> the base's output."""
        return self._block(self, layer)


class WithoutAdapters(nn.Module):
    """A PEFT model seen as its base: calls and `generate` run with the adapters switched off. Its
    modules called on their own (`get_base_model()`) run with them, but inside `as_run()`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._switches = switches(model)

    def as_run(self) -> contextlib.AbstractContextManager[None]:
        """Its modules run without adapters inside this block."""
        return off(self._switches)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with off(self._switches):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with off(self._switches):
            return self.model.generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def switches(module: nn.Module) -> list[Any]:
    """The modules below `module` in which PEFT's adapters can be switched off."""
    return [m for m in module.modules() if _switch(m)]


@contextlib.contextmanager
def off(modules: list[Any]) -> Iterator[None]:
    """These modules without their adapters."""
    before = [m._disable_adapters for m in modules]
    # PEFT's public switch also changes requires_grad and walks all adapters: 23 ms per model.
    try:
        for module in modules:
            module._disable_adapters = True
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module._disable_adapters = was


def named_dtype(name: str | None) -> torch.dtype | None:
    """ "float32" or "bfloat16" as torch's; None stays None (as stored)."""
    known = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise WorkbenchError(f"Expected dtype float32 or bfloat16, found {name!r}.")
    return known[name]


def load(
    pair: CheckpointPair,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    base: Where = "memory",
) -> Sides:
    """Both sides of `pair`, loaded.

    dtype: None runs both sides as they are stored, or in the wider of two precisions. base: "disk"
    keeps only the tuned model in memory and reads the base's blocks from its safetensors when they
    are run (`Sides.base_block`); for a LoRA pair there is no second model in either case. Tells the
    memory plan; raises WorkbenchError, with the numbers, where it cannot fit.
    """
    dtype = dtype or _common_dtype(pair)
    announce(pair, device, dtype, base)
    made = _adapter_sides(pair, device, dtype)
    if made is None and spread(device):
        made = _spread_sides(pair, device, dtype, base)
    elif made is None:
        make = _streamed_sides if base == "disk" else _full_sides
        made = make(pair, device, dtype)
    return made


@provides("CheckpointPair.models")
@contextlib.contextmanager
def models(
    pair: CheckpointPair,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    base: Where = "memory",
    keep: bool = False,
) -> Iterator[Sides]:
    """As `load`, for as long as a block lasts; memory is given back behind it.

    keep: analyses of this pair that are called within the block, on the same device and in the same
    precision, run these models and load none of their own. Models that were written into since are
    not what the pair is: they are loaded anew.
    """
    known = KEPT.get()
    # What a pair is takes a reading of its files, which is spared where nothing is kept.
    key = asked(pair, device, dtype, base) if keep or known else None
    kept = known.get(key)
    if kept is not None and kept.written == written(kept.sides):
        yield kept.sides
        return
    made = load(pair, device, dtype, base=base)
    token = KEPT.set({**known, key: Kept(made, written(made))}) if keep else None
    try:
        yield made
    finally:
        if token is not None:
            KEPT.reset(token)
        made.base = made.tuned = None


def _common_dtype(pair: CheckpointPair) -> torch.dtype | None:
    """The wider of two precisions in which the sides are stored; None where it is one, which then
    runs. Two would be compared as much as the change."""
    kinds = {
        max((i.dtype for i in side.weights().info.values() if i.dtype), key=lambda d: d.itemsize)
        for side in (pair.base, pair.tuned)
    }
    if len(kinds) < 2:
        return None
    # float16 and bfloat16 hold each other's numbers only together.
    wider = max(kinds, key=lambda d: d.itemsize)
    dtype = torch.float32 if wider.itemsize == 2 else wider
    log.info(
        "%s: base and tuned model are stored in two precisions; both run in %s.", pair.name, dtype
    )
    return dtype


def _adapter_sides(pair: CheckpointPair, device: Device, dtype: torch.dtype | None) -> Sides | None:
    if not one_copy(pair):
        if isinstance(pair.tuned.lora, SoftPrompt):
            raise WorkbenchError(
                f"Adapter {pair.tuned.lora.told}, of another model than this base; "
                "give the base it was trained on."
            )
        return None
    tuned: Any = pair.tuned.load(device, dtype)
    if isinstance(tuned, Prompted):
        return Sides(tuned.bare, tuned, "unmerged", (), _in_memory)
    root: Any = tuned.get_base_model()

    def block(sides: Sides, layer: int) -> Block:
        own = sides.layout.block(layer)
        adapted = switches(own)

        def run(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            with off(adapted):
                return own(*args, **kwargs)

        return run

    adapted = [name for name, module in root.named_modules() if _switch(module)]
    return Sides(WithoutAdapters(tuned), tuned, "unmerged", adapted, block)


def _full_sides(pair: CheckpointPair, device: Device, dtype: torch.dtype | None) -> Sides:
    base: Any = pair.base.load("cpu", dtype)
    tuned: Any = pair.tuned.load("cpu", dtype)
    in_memory = isinstance(pair.base.reference, nn.Module) or isinstance(
        pair.tuned.reference, nn.Module
    )
    differ = _share(plain(base), plain(tuned), only_look=in_memory)
    weights = "plain" if pair.tuned.lora is None else "unmerged"
    assert isinstance(device, str | torch.device)
    return Sides(base.to(device), tuned.to(device), weights, differ, _in_memory)


def _in_memory(sides: Sides, layer: int) -> Block:
    """The base's own block, or the tuned one where nothing in it differs."""
    layout = Layout(sides.base) if layer in sides.changed else sides.layout
    block = layout.block(layer)
    return lambda args, kwargs: block(*args, **kwargs)


def _spread_sides(
    pair: CheckpointPair, device: Device, dtype: torch.dtype | None, base: Where
) -> Sides:
    """Two models that accelerate placed; what changed is read from the files."""
    if isinstance(pair.base.reference, nn.Module) or pair.tuned.lora is not None:
        raise WorkbenchError(
            "Expected a full fine-tune, or an adapter on exactly this base, to spread "
            "over devices, found another; merge the adapter, or save the model and give its folder."
        )
    if base == "disk":
        raise WorkbenchError(
            'base="disk" needs the tuned model on one device; give one device, or a '
            'device map without base="disk".'
        )
    ours: Any = pair.base.load(device, dtype)
    theirs: Any = pair.tuned.load(device, dtype)
    same = [site.name for site in pair.sites("all") if not pair.delta(site).changed]
    own = [name for name, _ in plain(theirs).named_parameters()]
    known = align(own, same)
    return Sides(ours, theirs, "plain", [n for n in own if n not in known], _in_memory)


def _streamed_sides(pair: CheckpointPair, device: Device, dtype: torch.dtype | None) -> Sides:
    """The base's changed blocks run inside the tuned modules, on parameters read from disk."""
    if isinstance(pair.base.reference, nn.Module) or pair.tuned.lora is not None:
        raise WorkbenchError(
            'base="disk" reads a full fine-tune\'s base from its files; give a base '
            "on disk and a fine-tuned model without an adapter (merge it first)."
        )
    tuned: Any = pair.tuned.load(device, dtype)
    layout, stored = Layout(tuned), pair.base.weights()
    own = dict(layout.root.named_parameters())
    named = align(list(own), list(stored))
    inside = [name for name in own if name.startswith(layout.structure.layers + ".")]
    _require_as_stored(pair, inside, named)
    differ = [n for n in own if n not in named or not _same(stored[named[n]], own[n])]

    def block(sides: Sides, layer: int) -> Block:
        prefix = f"{layout.structure.layers}.{layer}."

        def run(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            names = [prefix + short for short in sides._inside(layer)]
            read = {n.removeprefix(prefix): stored[named[n]].to(own[n]) for n in names}
            return functional_call(layout.block(layer), read, args, dict(kwargs))

        return run

    return Sides(None, tuned, "plain", differ, block)


def _require_as_stored(pair: CheckpointPair, own: Sequence[str], named: Mapping[str, str]) -> None:
    """Raise WorkbenchError where a parameter that runs is made of several stored ones."""
    made = [name for name in own if name not in named]
    if made:
        raise WorkbenchError(
            f'base="disk" reads parameters of {pair.name} as they are stored, and '
            f'{made[0]} is combined from several; use base="memory".'
        )


def _share(base: nn.Module, tuned: nn.Module, *, only_look: bool) -> list[str]:
    """Give both models one copy of every parameter that is equal; returns what of the tuned model
    differs, saved buffers included."""
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    named = align([*theirs], [*ours])
    homes = tensor_homes(tuned)
    differ = []
    for name, parameter in theirs.items():
        match = ours.get(named.get(name, ""))
        if match is None or not _same(match, parameter):
            differ.append(name)
        elif not only_look:
            for module, attribute in homes[id(parameter)]:
                module._parameters[attribute] = match
    ours, theirs = (_saved_buffers(model) for model in (base, tuned))
    named = align([*theirs], [*ours])
    for name, buffer in theirs.items():
        if name not in named or not _same(ours[named[name]], buffer):
            differ.append(name)
    return differ


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _same(base: Tensor, tuned: Tensor) -> bool:
    return base.shape == tuned.shape and torch.equal(base.to(tuned), tuned)


def _switch(module: nn.Module) -> bool:
    return hasattr(module, "_disable_adapters")
