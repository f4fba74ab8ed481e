"""Functions attached to the places of a model, as plain forward hooks.

A function is given a site's tensor, for all heads and tokens, shapes as in `Site`, and gives it
back, or another of that shape; what its module is then given or gives is `Layout`'s business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.models.layout import Layout
from workbench.models.sites import Site, end
from workbench.models.trial import eager
from workbench.models.watching import SOFTMAXES, first_tensor, routing

Change = Callable[[Tensor], Tensor]


class _Softmax(TorchFunctionMode):
    """Passes the result of every softmax through the given functions while it is active."""

    def __init__(self, changes: list[Change]) -> None:
        super().__init__()
        self.changes = changes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in SOFTMAXES:
            for change in self.changes:
                found = change(found)
        return found


@contextlib.contextmanager
def attached(layout: Layout, changes: Mapping[Site, Change]) -> Iterator[None]:
    """Every change hooked to its module; patterns run with eager attention."""
    with contextlib.ExitStack() as stack:
        if any(site.kind == "pattern" for site in changes):
            stack.enter_context(eager(layout.root))
        rows = _Rows(layout, stack) if changes else None
        for site, change in changes.items():
            assert rows is not None
            raw = rows.through(site, change)
            for undo in _hooked(layout.module(site), end(site), raw):
                stack.callback(undo)
        yield


class _Rows:
    """How many rows the batch has that runs, as the first block is given it."""

    def __init__(self, layout: Layout, stack: contextlib.ExitStack) -> None:
        self.layout, self.now = layout, 0
        first = layout.block(0).register_forward_pre_hook(self._note, with_kwargs=True)
        stack.callback(first.remove)

    def _note(self, _module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        stream = first_tensor(args, kwargs)
        self.now = 0 if stream is None else len(stream)

    def through(self, site: Site, change: Change) -> Change:
        """A change of a site as one of what its module takes or gives."""

        def changed(raw: Tensor) -> Tensor:
            seen = self.layout.view(site, raw, self.now)
            new = change(seen)
            return raw if new is seen else self.layout.put(site, raw, seen, new, self.now)

        return changed


def _routed(change: Change) -> Callable[..., Any]:
    """A change of every expert's weight, (tokens, experts), as one of what experts are called with:
    where it changes anything every expert is called, most with a weight of zero."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = routing(args, kwargs)
        if found is None:
            return None
        chosen, weights = found
        many = next(p.shape[0] for p in module.parameters() if p.ndim == 3)
        dense = weights.new_zeros(len(weights), many).scatter_add(1, chosen, weights)
        new = change(dense)
        if new is dense:
            return None
        every = torch.arange(many, device=chosen.device).to(chosen.dtype).repeat(len(chosen), 1)

        def other(value: Any) -> Any:
            return every if value is chosen else new if value is weights else value

        return tuple(map(other, args)), {name: other(value) for name, value in kwargs.items()}

    return before


def _hooked(module: nn.Module, where: str, change: Change) -> list[Callable[[], None]]:
    """Hook the change to one end of a module; returns what takes it away again."""
    if where == "input":

        def before(_module, args, kwargs):
            given = first_tensor(args, kwargs)
            if given is None:
                return args, kwargs
            new = change(given)
            args = tuple(new if value is given else value for value in args)
            return args, {n: new if value is given else value for n, value in kwargs.items()}

        return [module.register_forward_pre_hook(before, with_kwargs=True).remove]
    if where == "output":

        def after(_module, _args, output):
            if isinstance(output, tuple | list):
                return type(output)((change(output[0]), *output[1:]))
            return change(output)

        return [module.register_forward_hook(after).remove]
    if where == "routing":
        return [module.register_forward_pre_hook(_routed(change), with_kwargs=True).remove]
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
