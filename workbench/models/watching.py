"""One run of a few tokens with random numbers for the weights, in which every call is noted.

Every module with weights inside the blocks gives random numbers in place of its own: what is then
found to be equal is so by the model's code, whatever its weights and their precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.errors import WorkbenchError, reason
from workbench.models.trial import eager, scalars_moved, tried

ROWS, TOKENS, SIZE = 2, 5, 1.5
MATMULS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm)
SOFTMAXES = (nn.functional.softmax, torch.softmax, Tensor.softmax)


class Call(NamedTuple):
    """One call of a module: the first tensor it was given, what it made, and when."""

    path: str
    module: nn.Module
    given: Tensor | None
    made: Tensor | None
    begun: int
    done: int
    gives: int = 0
    chosen: bool = False  # whether it was given whole numbers too, as experts are


@dataclass
class Softmax:
    """One softmax over keys: within which module, when, and what stands before and
    behind it."""

    path: str
    when: int
    shape: tuple[int, ...]
    asked: tuple[Tensor, Tensor] | None = None  # queries, keys: (batch, head, token, width)
    mixed: Tensor | None = None  # values, (batch, head, token, width)


class Watch(TorchFunctionMode):
    """One run: every call of a module inside a list of modules, and every softmax over keys."""

    def __init__(self, root: Any) -> None:
        super().__init__()
        self.root = root
        self.calls: list[Call] = []
        self.softmaxes: list[Softmax] = []
        self.clock = 0
        self._routed: set[str] = set()
        self._open: list[tuple[str, Tensor | None, int]] = []
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []
        self._draws = torch.Generator().manual_seed(0)
        self._last: Softmax | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in SOFTMAXES and isinstance(made, Tensor) and self._is_pattern(made):
            self._softmax(made)
        elif func is nn.functional.scaled_dot_product_attention:
            self._fused(args, kwargs or {})
        elif func in MATMULS and isinstance(made, Tensor) and len(args) == 2:
            self._product(args[0], args[1], made)
        elif func in (torch.baddbmm, Tensor.baddbmm) and len(args) >= 3:
            self._product(args[1], args[2], made)
        return made

    def run(self) -> None:
        root, handles = self.root, []
        for path, module in root.named_modules():
            known = is_norm(module) or is_embedding(module)
            if path and (re.search(r"\.\d+(\.|$)", path) or known):
                handles += self._watched(path, module)
        try:
            with eager(root), scalars_moved(root), self:
                tried(root, ROWS, TOKENS)
        except Exception as error:  # whatever a model of unknown shape may raise
            raise WorkbenchError(
                f"The parts of {type(root).__name__} cannot be found: {TOKENS} tokens "
                f"do not run in it ({reason(error)}); fix the model, or use an "
                "analysis of weights or texts."
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _watched(self, path: str, module: nn.Module) -> list[Any]:
        leaf = not any(True for _ in module.children())
        random = leaf and any(True for _ in module.parameters())

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self.clock += 1
            self._open.append((path, _kept(first_tensor(args, kwargs)), self.clock))
            if routing(args, kwargs) is not None:
                self._routed.add(path)

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            self.clock += 1
            _, given, begun = self._open.pop()
            if random and isinstance(output, Tensor) and output.is_floating_point():
                # Of no unit size, as a norm would otherwise be no change in a coarse precision.
                drawn = SIZE * torch.randn(output.shape, generator=self._draws)
                output = drawn.to(output)
            made = output[0] if isinstance(output, tuple | list) and output else output
            made = _kept(made) if isinstance(made, Tensor) else None
            gives = len(output) if isinstance(output, tuple | list) else 0
            chosen = path in self._routed
            self.calls.append(Call(path, module, given, made, begun, self.clock, gives, chosen))
            return output if random else None

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def _is_pattern(self, made: Tensor) -> bool:
        shape = made.shape
        if not self._open or made.ndim not in (3, 4) or shape[-2] != TOKENS or shape[-1] < TOKENS:
            return False
        # A router's is no pattern: the first token sees itself alone.
        return shape[0] % ROWS == 0 and not bool(made[..., 0, 1:TOKENS].any())

    def _softmax(self, made: Tensor) -> None:
        self.clock += 1
        shape = tuple(made.shape if made.ndim == 4 else made.unflatten(0, (ROWS, -1)).shape)
        self._last = Softmax(self._open[-1][0], self.clock, shape)
        for one, other, product in reversed(self._products):
            if product.numel() == made[..., :TOKENS].numel():
                keys = other.transpose(-1, -2)
                self._last.asked = (_by_heads(one), _by_heads(keys))
                break
        self._products.clear()
        self.softmaxes.append(self._last)

    def _fused(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Attention that forms no pattern, where a model has no other."""
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        q, k, v = (named[name].detach().clone() for name in ("query", "key", "value"))
        if self._open and q.ndim == 4 and q.shape[-2] == k.shape[-2] == TOKENS:
            self.clock += 1
            shape = (*q.shape[:3], TOKENS)
            found = Softmax(self._open[-1][0], self.clock, shape, (q, k), v)
            self.softmaxes.append(found)

    def _product(self, one: Tensor, other: Tensor, made: Tensor) -> None:
        if one.ndim not in (3, 4) or other.ndim != one.ndim:
            return
        last = self._last
        if last is not None and last.mixed is None and one.shape[-2:] == (TOKENS, TOKENS):
            last.mixed = _by_heads(other)
            return
        if made.shape[-2:] == (TOKENS, TOKENS):
            self._products.append((one, other, made))

    def blocks(self) -> tuple[str, int]:
        """The list whose modules a stream passes, each given what the one before it made, and how
        many these are."""
        lists = [
            path for path, module in self.root.named_modules()
            if isinstance(module, nn.ModuleList) and len(module)
        ]  # fmt: skip
        best = ("", 0)
        for path in lists:
            inside = re.compile(re.escape(path) + r"\.(\d+)$")
            steps = [
                call for call in sorted(self.calls, key=lambda call: call.begun)
                if inside.match(call.path)
            ]  # fmt: skip
            chained = all(equal(a.made, b.given) for a, b in pairwise(steps))
            if not chained or not all(map(_is_step, steps)):
                continue
            numbers = [int(call.path.rpartition(".")[2]) for call in steps]
            if len(set(numbers)) < len(numbers):
                raise WorkbenchError(
                    f"{type(self.root).__name__} runs some of its blocks several "
                    "times, so a block is not a single place in it; use an analysis "
                    "of weights or texts."
                )
            # The outer of two lists comes first.
            inner = best[0] and path.startswith(best[0] + ".")
            if numbers == [*range(len(numbers))] and len(numbers) > best[1] and not inner:
                best = (path, len(numbers))
        if not best[1]:
            raise WorkbenchError(
                f"{type(self.root).__name__} has no list of blocks that a residual "
                "stream passes through; use an analysis of weights or texts."
            )
        return best

    def called(self, path: str) -> Call:
        """The last call of the module at this path."""
        return next(call for call in reversed(self.calls) if call.path == path)


def _by_heads(tensor: Tensor) -> Tensor:
    """(batch, head, token, width) of a product's operand."""
    found = tensor.detach()
    return (found if found.ndim == 4 else found.unflatten(0, (ROWS, -1))).clone()


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first floating tensor that a module is called with: what it works on."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def routing(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Which experts a module is called with for each token, and with which weights, (tokens, k)
    each."""
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 2]
    numbers = [v for v in given if not v.is_floating_point() and v.dtype != torch.bool]
    for chosen in numbers:
        for weights in given:
            if weights.is_floating_point() and weights.shape == chosen.shape:
                return chosen, weights
    return None


def _kept(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def _is_step(call: Call) -> bool:
    given, made = call.given, call.made
    if given is None or made is None or given.ndim != 3 or given.shape != made.shape:
        return False
    return given.shape[:2] == (ROWS, TOKENS)


def is_embedding(module: nn.Module) -> bool:
    return isinstance(getattr(module, "base_layer", module), nn.Embedding)


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def slack(like: Tensor) -> float:
    return 8 * torch.finfo(like.dtype).eps


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal up to the rounding of a few operations, whatever the shape."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    a, b = one.float().flatten(), other.float().flatten()
    return bool(((a - b).abs() <= slack(other) * (a.abs() + b.abs())).all())


def is_linear(module: Any) -> bool:
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not is_embedding(module)


def projections(calls: Sequence[Call]) -> list[Call]:
    """Calls of linear maps, the outermost where one wraps another."""
    linear = [call for call in calls if is_linear(call.module)]
    return [
        call for call in linear
        if not any(call.path.startswith(other.path + ".") for other in linear)
    ]  # fmt: skip
