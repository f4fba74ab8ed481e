"""Functions attached to the places of a model, as plain forward hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.models.sites import Layout, Site, end

Change = Callable[[Tensor], Tensor]


class _Softmax(TorchFunctionMode):
    """Passes the result of every softmax through the given functions while it is active."""

    def __init__(self, changes: list[Change]) -> None:
        super().__init__()
        self.changes = changes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in (nn.functional.softmax, torch.softmax, Tensor.softmax):
            for change in self.changes:
                found = change(found)
        return found


@contextlib.contextmanager
def attached(layout: Layout, changes: Mapping[Site, Change]) -> Iterator[None]:
    """Every change hooked to its module; patterns run with eager attention."""
    with contextlib.ExitStack() as stack:
        if any(site.kind == "pattern" for site in changes):
            stack.enter_context(_eager(layout.root))
        for site, change in changes.items():
            for undo in _hooked(layout.module(site), end(site), change):
                stack.callback(undo)
        yield


def _hooked(module: nn.Module, where: str, change: Change) -> list[Callable[[], None]]:
    """Hook the change to one end of a module; returns what takes it away again."""
    if where == "input":

        def before(_module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        return [module.register_forward_pre_hook(before, with_kwargs=True).remove]
    if where == "output":

        def after(_module, _args, output):
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return [module.register_forward_hook(after).remove]
    entered: list[_Softmax] = []

    def enter(_module, _args) -> None:
        entered.append(_Softmax([change]))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    # Called once more at the end: an interrupt from the keyboard skips forward hooks.
    return [
        module.register_forward_pre_hook(enter).remove,
        module.register_forward_hook(leave, always_call=True).remove,
        leave,
    ]


@contextlib.contextmanager
def _eager(root: Any) -> Iterator[None]:
    """Attention that forms its pattern; fused kernels never do."""
    kept = root.config._attn_implementation
    if kept != "eager":
        root.set_attn_implementation("eager")
    try:
        yield
    finally:
        if kept != "eager":
            root.set_attn_implementation(kept)
