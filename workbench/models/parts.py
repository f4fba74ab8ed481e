"""What a decoder is made of, found by following numbers through one run of it.

No list of module names tells a decoder's parts. A few tokens are run, and every module with weights
inside the blocks gives random numbers in place of its own, so that what is found hangs neither on
the weights nor on their precision. Then whatever equals something else comes from there:

- the blocks are the list of modules that the run walks, each given what the one before it made;
- a block is x -> x + a1 m1 -> ... : which modules' outputs, with which factors, are added in turn
  to get from what a block is given to what it gives, and what reads the stream in between;
- attention is what a softmax over keys is taken in; v is the projection whose numbers that softmax
  is multiplied with, q and k those whose product it is taken of (at the first token, where a
  rotation by position is none), o the first projection behind it;
- a feed-forward's neurons are the input of the projection that gives what it adds.

What no equation tells is left out, and the sites that need it are refused by name. That the parts
found do what their names say is proved apart, with the model's own weights (`site_verification`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.models.heads import Attention
from workbench.models.known import Known
from workbench.models.structure import Added, Block, Structure
from workbench.models.trial import GAIN, runnable
from workbench.models.watching import Call, Watch, equal, is_norm, projections, slack

_STRUCTURES: Known[Structure] = Known()
SAMPLE = 512  # entries by which a sum is looked for, before it is held against all of them


def structure(root: Any) -> Structure:
    """As `find`, found once a model, or once for all of its make."""
    return _STRUCTURES.of(root, lambda: (find(root), True))


def find(root: Any) -> Structure:
    """The structure of a transformers model, from one run of a few tokens in eager attention.

    Raises WorkbenchError where the model does not run, or has no list of blocks.
    """
    watch = Watch(runnable(root))
    watch.run()
    layers, count = watch.blocks()
    blocks = tuple(_Reader(watch, f"{layers}.{number}").block() for number in range(count))
    last = watch.called(f"{layers}.{count - 1}")
    assert last.made is not None
    behind = [
        call for call in watch.calls
        if call.begun > last.done and equal(call.given, last.made) and is_norm(call.module)
    ]  # fmt: skip
    return Structure(layers, blocks, last.made.shape[-1], behind[0].path if behind else "")


@dataclass
class _Step:
    """One addition to the stream: terms (call, factor), and what reads the sum afterwards."""

    terms: list[tuple[Call, float]]
    reader: Call | None
    stream: Tensor


class _Reader:
    """One block, read from what was watched."""

    def __init__(self, watch: Watch, path: str) -> None:
        self.own = watch.called(path)
        self.prefix = path + "."
        self.calls = sorted(
            (
                call._replace(path=call.path.removeprefix(self.prefix))
                for call in watch.calls
                if call.path.startswith(self.prefix) and self.own.begun < call.begun < self.own.done
            ),
            key=lambda call: call.begun,
        )
        # The buffer that scales the whole block in the end, once that is told.
        self.gain = ""
        self.softmax = next(
            (s for s in watch.softmaxes if self.own.begun < s.when < self.own.done), None
        )

    def block(self) -> Block:
        steps, whole = self._steps()
        found: dict[str, Any] = {"whole": whole, "gives": self.own.gives, "gain": self.gain}
        if self.softmax is not None:
            found |= Attention(self.own, self.calls, self.softmax, self.prefix).found()
        for number, step in enumerate(steps):
            for call, scale in step.terms:
                within = self._sublayer(call)
                role = self._role(within, number, steps, found.get("o", ""))
                role = "other" if role in found else role
                if role in found:
                    found["whole"] = False
                    continue
                found[role] = Added(call.path, within.path, scale)
                if role == "mlp":
                    found |= self._feed_forward(within, step)
                if role in ("attn", "mixer") and step.reader is not None:
                    found["mid"] = step.reader.path
        mixes = "attn" in found or "mixer" in found
        found["parallel"] = whole and len(steps) == 1 and mixes and "mlp" in found
        return Block(**found)

    def _steps(self) -> tuple[list[_Step], bool]:
        """How the stream comes from what the block is given to what it gives, as far as it is told;
        whether that is all of it."""
        assert self.own.given is not None
        assert self.own.made is not None
        stream, goal, now = self.own.given, self.own.made, self.own.begun
        steps: list[_Step] = []
        while not equal(stream, goal):
            readers = [
                call for call in self.calls
                if call.begun > now and _streamlike(call.given, goal)
                and not equal(call.given, stream)
            ]  # fmt: skip
            for reader in (*readers, None):
                target = goal if reader is None else reader.given
                until = self.own.done if reader is None else reader.begun
                assert target is not None
                terms = self._terms(target, stream, now, until)
                if terms:
                    break
                if reader is None and self._scalars():
                    target = (goal.float() / GAIN).to(goal.dtype)
                    terms = self._terms(target, stream, now, until)
                    if terms or equal(target, stream):
                        self.gain = self._scalars()[0]
                        break
            else:
                return steps, False
            if not terms:
                break
            steps.append(_Step(terms, reader, stream))
            stream, now = target, until
            if reader is None:
                break
        return steps, True

    def _scalars(self) -> list[str]:
        """The block's own single numbers among its buffers."""
        named = self.own.module.named_buffers(recurse=False)
        return [n for n, b in named if b.numel() == 1 and b.is_floating_point()]

    def _terms(
        self, target: Tensor, stream: Tensor, since: int, until: int
    ) -> list[tuple[Call, float]]:
        """The modules, one or two, whose outputs times a factor are what was added."""
        made: list[Call] = []
        inside = [call for call in self.calls if since < call.begun and call.done <= until]
        for call in sorted(inside, key=lambda call: (call.path.count("."), call.begun)):
            known = any(equal(call.made, other.made) for other in made)
            if _streamlike(call.made, stream) and not known and not equal(call.made, stream):
                made.append(call)
        whole, start = target.double().flatten(), stream.double().flatten()
        tall = whole - start
        picked = torch.linspace(0, len(tall) - 1, min(SAMPLE, len(tall))).long()
        values = {call.path: call.made.double().flatten() for call in made if call.made is not None}
        for count in (1, 2):
            for chosen in combinations(made, count):
                parts = torch.stack([values[call.path] for call in chosen], 1)
                few = parts[picked]
                factors = torch.linalg.lstsq(few, tall[picked, None]).solution[:, 0]
                if not bool(factors.abs().gt(1e-4).all()):
                    continue
                for at in (picked, slice(None)):
                    size = whole[at].abs() + start[at].abs() + (parts[at] * factors).abs().sum(1)
                    off = (parts[at] @ factors - tall[at]).abs()
                    if not bool((off <= slack(target) * size).all()):
                        break
                else:
                    return [
                        (call, self._factor(float(factor)))
                        for call, factor in zip(chosen, factors, strict=True)
                    ]
        return []

    def _factor(self, seen: float) -> float:
        """The number that a model of this precision multiplies by: one of its own, or as seen."""
        known = [1.0] + [
            float(value)
            for module in self.own.module.modules()
            for value in vars(module).values()
            if isinstance(value, float)
        ]
        nearest = min(known, key=lambda value: abs(value - seen))
        return nearest if abs(nearest - seen) < 5e-3 * abs(seen) else seen

    def _sublayer(self, call: Call) -> Call:
        """Where what a norm behind a sublayer is given comes from."""
        while is_norm(call.module):
            before = [
                other for other in self.calls
                if other.done < call.begun and equal(other.made, call.given)
            ]  # fmt: skip
            if not before:
                return call
            call = min(before, key=lambda one: one.path.count("."))
        return call

    def _role(
        self, within: Call, number: int, steps: Sequence[_Step], output: str
    ) -> Literal["attn", "mixer", "mlp"]:
        if self.softmax is not None:
            attention = self.softmax.path.removeprefix(self.prefix)
            if _related(within.path, attention) or within.path == output:
                return "attn"
        if number == 0 and len(steps) > 1:
            return "mixer"
        mixes = any(isinstance(module, nn.Conv1d) for module in within.module.modules())
        return "mixer" if mixes and len(steps) == 1 else "mlp"

    def _feed_forward(self, within: Call, step: _Step) -> dict[str, Any]:
        """The projection that gives what it adds, its norm, and what chooses its experts."""
        inside = [
            call for call in projections(self.calls) if _related(call.path, within.path)
            and call.done <= within.done
        ]  # fmt: skip
        down = [call for call in inside if equal(call.made, within.made)]
        found: dict[str, Any] = {"down": down[-1].path if down else ""}
        norms = [
            call for call in self.calls
            if equal(call.given, step.stream) and equal(call.made, within.given)
            and is_norm(call.module)
        ]  # fmt: skip
        bare = "" if equal(within.given, step.stream) else None
        found["norm2"] = norms[0].path if norms else bare
        found["router"] = self._router(within)
        experts = [
            call for call in self.calls
            if call.chosen and call.path.startswith(within.path + ".") and _stacked(call.module)
        ]  # fmt: skip
        found["experts"] = experts[0].path if experts else ""
        return found

    def _router(self, within: Call) -> str:
        """The module that gives one number for every expert and token, "" for none: a linear map,
        or one that says itself that it gave the product with its weight."""
        parts = list(within.module.modules())
        lists = [len(part) for part in parts if isinstance(part, nn.ModuleList)]
        stacks = [p.shape[0] for p in within.module.parameters() if p.ndim == 3]
        for call in self.calls:
            inside = call.path.startswith(within.path + ".")
            if not inside or call.made is None or call.given is None or not (lists or stacks):
                continue
            if call.made.shape[-1] not in (*stacks[:1], *lists):
                continue
            weight = getattr(call.module, "weight", None)
            bias = getattr(call.module, "bias", None)
            if isinstance(call.module, nn.Linear):
                return call.path
            if isinstance(weight, Tensor) and weight.shape[-1:] == call.given.shape[-1:]:
                plain = nn.functional.linear(call.given, weight.to(call.given.dtype), bias)
                if plain.numel() == call.made.numel() and equal(call.made, plain):
                    return call.path
        return ""


def _stacked(module: nn.Module) -> int:
    """How many experts' matrices a module holds in one tensor, 0 for none."""
    stacks = [p.shape[0] for p in module.parameters() if p.ndim == 3]
    return stacks[0] if stacks else 0


def _streamlike(value: Tensor | None, stream: Tensor) -> bool:
    """Whether it is of the stream's width, and one for every token."""
    if value is None or value.shape[-1:] != stream.shape[-1:]:
        return False
    return value.numel() == stream.numel()


def _related(one: str, other: str) -> bool:
    """Whether one module is the other, or lies within it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
