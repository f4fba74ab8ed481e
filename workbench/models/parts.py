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

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.models.structure import Added, Block, Order, Projection, Structure
from workbench.models.watching import (
    ROWS,
    TOKENS,
    Call,
    Softmax,
    Watch,
    equal,
    is_embedding,
    is_norm,
    runnable,
    slack,
)

SAMPLE = 512  # entries by which a sum is looked for, before it is held against all of them
# Where no number tells which projection is which (q and k behind a norm of heads).
NAMED = {
    "q": re.compile(r"^(w?q|query|q_b)(_|$)|^q_"),
    "k": re.compile(r"^(w?k|key)(_|$)|^k_"),
    "v": re.compile(r"^(w?v|value)(_|$)|^v_"),
}


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
        self.softmax = next(
            (s for s in watch.softmaxes if self.own.begun < s.when < self.own.done), None
        )

    def block(self) -> Block:
        steps, whole = self._steps()
        found: dict[str, Any] = {"whole": whole, "gives": self.own.gives}
        found |= self._attention() if self.softmax is not None else {}
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
            else:
                return steps, False
            steps.append(_Step(terms, reader, stream))
            stream, now = target, until
            if reader is None:
                break
        return steps, True

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
        if abs(seen - 1) < 5e-3:
            return 1.0
        known = [
            float(value)
            for module in self.own.module.modules()
            for value in vars(module).values()
            if isinstance(value, float)
        ]
        near = [value for value in known if abs(value - seen) < 5e-3 * abs(seen)]
        return near[0] if near else seen

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

    def _attention(self) -> dict[str, Any]:
        soft = self.softmax
        assert soft is not None
        path = soft.path.removeprefix(self.prefix)
        heads, keys = soft.shape[1], soft.shape[3]
        found: dict[str, Any] = {"attention": path, "heads": heads, "sinks": keys - TOKENS}
        after = [call for call in self._projections() if call.begun > soft.when]
        after = [call for call in after if self._ends(call)] or after
        before = [
            call for call in self._projections()
            if call.done < soft.when and (not path or call.path.startswith(path + "."))
        ]  # fmt: skip
        if not after or after[0].given is None or after[0].given.shape[-1] % heads:
            return found
        found |= {"o": after[0].path, "width": after[0].given.shape[-1] // heads}
        found |= self._parts(soft, before, heads, found["width"])
        read = found.get("q")
        given = next((c.given for c in before if read is not None and c.path == read.path), None)
        norms = [
            call for call in self.calls
            if equal(call.given, self.own.given) and given is not None
            and equal(call.made, given)
        ]  # fmt: skip
        bare = "" if equal(given, self.own.given) else None
        found["norm1"] = norms[0].path if norms else bare
        return found

    def _ends(self, call: Call) -> bool:
        """Whether a projection gives what a sublayer does: a gate beside it does not."""
        above = [
            other for other in self.calls
            if call.path.startswith(other.path + ".") and other.begun < call.begun
        ]  # fmt: skip
        return any(equal(other.made, call.made) for other in above)

    def _projections(self) -> list[Call]:
        """Calls of linear maps, the outermost where one wraps another."""
        linear = [call for call in self.calls if is_linear(call.module)]
        return [
            call for call in linear
            if not any(call.path.startswith(other.path + ".") for other in linear)
        ]  # fmt: skip

    def _parts(
        self, soft: Softmax, before: Sequence[Call], heads: int, width: int
    ) -> dict[str, Any]:
        """q, k and v among the projections before the softmax."""
        found: dict[str, Any] = {}
        kv_heads = heads
        if soft.mixed is not None and soft.mixed.shape[-1] == width:
            for call in before:
                for keys in _divisors(heads):
                    projection = _fitting(call, soft.mixed, "v", heads, keys)
                    if projection is not None and "v" not in found:
                        found["v"], kv_heads = projection, keys
            if "v" not in found:
                found |= self._normed_values(soft.mixed, before, heads)
                kv_heads = found["v"].heads if "v" in found else heads
        if "v" not in found:
            kv_heads = self._named_kv_heads(before, heads, width)
        found["kv_heads"] = kv_heads
        value = found.get("v")
        if value is not None and value.order in ("blocks", "heads", "groups"):
            for kind, count in (("q", heads), ("k", kv_heads)):
                found[kind] = Projection(value.path, value.order, count, value.width)
            return found
        # A norm over all heads at once (OLMo 2) makes q and k of what the projections give.
        rest = [
            *(call for call in before if value is None or call.path != value.path),
            *(call for call in self.calls if call.begun < soft.when and _is_wide_norm(call)),
        ]
        asked = dict(zip("qk", soft.asked, strict=True)) if soft.asked is not None else {}
        for kind, count in (("q", heads), ("k", kv_heads)):
            own = [
                projection
                for call in rest
                if kind in asked
                and (projection := _fitting(call, asked[kind], kind, heads, kv_heads, first=True))
            ]
            # Of two in a row (latent attention) the last is meant.
            wide = asked[kind].shape[-1] if kind in asked else width
            named = [p for call in before if (p := self._by_name(kind, call, count, wide))]
            if own or named:
                found[kind] = own[0] if own else named[-1]
        if value is None:
            own = [p for call in before if (p := self._by_name("v", call, kv_heads, width))]
            if own:
                found["v"] = own[0]
        return found

    def _normed_values(
        self, used: Tensor, before: Sequence[Call], heads: int
    ) -> dict[str, Projection]:
        """v where a norm of single heads stands behind it."""
        for norm in self.calls:
            if not is_norm(norm.module):
                continue
            for keys in _divisors(heads):
                own = _fitting(norm, used, "v", heads, keys)
                for call in before if own is not None and own.order == "own" else ():
                    assert own is not None
                    if equal(call.made, norm.given):
                        return {"v": replace(own, path=call.path, norm=norm.path)}
        return {}

    def _by_name(self, kind: str, call: Call, heads: int, width: int) -> Projection | None:
        assert call.made is not None
        if not NAMED[kind].match(call.path.rpartition(".")[2]) or call.made.shape[-1] % heads:
            return None
        own = call.made.shape[-1] // heads
        return Projection(call.path, "first" if own == 2 * width else "own", heads, min(own, width))

    def _named_kv_heads(self, before: Sequence[Call], heads: int, width: int) -> int:
        for call in before:
            if call.made is not None and NAMED["v"].match(call.path.rpartition(".")[2]):
                return max(1, call.made.shape[-1] // width)
        return heads

    def _feed_forward(self, within: Call, step: _Step) -> dict[str, Any]:
        """The projection that gives what it adds, its norm, and what chooses its experts."""
        inside = [
            call for call in self._projections() if _related(call.path, within.path)
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


def _fitting(
    call: Call, used: Tensor, kind: str, heads: int, keys: int, *, first: bool = False
) -> Projection | None:
    """The layout in which what a projection gave is what attention used, (batch, head, token,
    width). first: hold the first token alone, up to a factor, where positions do not rotate."""
    made = call.made
    if made is None or made.numel() % (ROWS * TOKENS):
        return None
    made = made.reshape(ROWS, TOKENS, -1)
    width, total = used.shape[-1], made.shape[-1]
    count = heads if kind == "q" else keys
    orders: list[Order] = []
    if total == count * width:
        orders.append("own")
    if total == (heads + 2 * keys) * width:
        if heads == keys:
            orders.append("heads")
        orders.extend(("blocks", "groups"))
    if total > count * width and total % count == 0:
        orders.extend(("first", "last"))
    wanted = used.transpose(1, 2)
    for order in orders:
        projection = Projection(call.path, order, count, width)
        own = projection.cut(kind, made, (heads, keys))
        if wanted.shape[2] % own.shape[2]:
            continue
        own = own.repeat_interleave(wanted.shape[2] // own.shape[2], dim=2)
        a, b = (own[:, 0], wanted[:, 0]) if first else (own, wanted)
        if equal(a, b) or (first and _proportional(a, b)):
            return projection
    return None


def _proportional(one: Tensor, other: Tensor) -> bool:
    a, b = one.double().flatten(), other.double().flatten()
    scale = (a @ b) / (a @ a)
    return abs(float(scale)) > 1e-6 and equal((scale * a).to(other.dtype), b.to(other.dtype))


def _divisors(number: int) -> list[int]:
    return [n for n in range(number, 0, -1) if number % n == 0]


def _streamlike(value: Tensor | None, stream: Tensor) -> bool:
    """Whether it is of the stream's width, and one for every token."""
    if value is None or value.shape[-1:] != stream.shape[-1:]:
        return False
    return value.numel() == stream.numel()


def is_linear(module: Any) -> bool:
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not is_embedding(module)


def _is_wide_norm(call: Call) -> bool:
    return is_norm(call.module) and call.made is not None and call.made.ndim < 4


def _related(one: str, other: str) -> bool:
    """Whether one module is the other, or lies within it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
