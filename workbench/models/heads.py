"""Which modules of a block make its attention: q, k, v and the output projection.

v is the projection whose numbers the softmax is multiplied with, q and k those whose product it is
taken of, at the first token, where a rotation by position is none; o is the first projection behind
it whose output is the sublayer's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from workbench.models.structure import Order, Projection
from workbench.models.watching import ROWS, TOKENS, Call, Softmax, equal, is_norm, projections

# Where no number tells which projection is which (q and k behind a norm of single heads).
NAMED = {
    "q": re.compile(r"^(w?q|query|q_b)(_|$)|^q_"),
    "k": re.compile(r"^(w?k|key)(_|$)|^k_"),
    "v": re.compile(r"^(w?v|value)(_|$)|^v_"),
}

FUSED = ("blocks", "heads", "groups")  # layouts of one projection for q, k and v


@dataclass(frozen=True)
class Attention:
    """The calls inside one block, whose own call is `block`, and the softmax in it; paths are
    relative to the block but the softmax's, which begins with `prefix`."""

    block: Call
    calls: Sequence[Call]
    softmax: Softmax
    prefix: str

    def found(self) -> dict[str, Any]:
        """Its fields of a `Block`, as far as they are told."""
        soft = self.softmax
        path = soft.path.removeprefix(self.prefix)
        heads, keys = soft.shape[1], soft.shape[3]
        found: dict[str, Any] = {"attention": path, "heads": heads, "sinks": keys - TOKENS}
        after = [call for call in projections(self.calls) if call.begun > soft.when]
        after = [call for call in after if self._ends(call)] or after
        before = [
            call for call in projections(self.calls)
            if call.done < soft.when and (not path or call.path.startswith(path + "."))
        ]  # fmt: skip
        if not after or after[0].given is None or after[0].given.shape[-1] % heads:
            return found
        found |= {"o": after[0].path, "width": after[0].given.shape[-1] // heads}
        found |= self._parts(before, heads, found["width"])
        read = found.get("q")
        first = "" if read is None else read.source or read.path
        given = next((call.given for call in before if call.path == first), None)
        norms = [
            call for call in self.calls
            if equal(call.given, self.block.given) and given is not None
            and equal(call.made, given)
        ]  # fmt: skip
        bare = "" if equal(given, self.block.given) else None
        found["norm1"] = norms[0].path if norms else bare
        return found

    def _ends(self, call: Call) -> bool:
        """Whether a projection gives what a sublayer does: a gate beside it does not."""
        above = [
            other for other in self.calls
            if call.path.startswith(other.path + ".") and other.begun < call.begun
        ]  # fmt: skip
        return any(equal(other.made, call.made) for other in above)

    def _parts(self, before: Sequence[Call], heads: int, width: int) -> dict[str, Any]:
        """q, k and v among the projections before the softmax; how many key-value heads."""
        value = self._value(before, heads, width)
        kv_heads = value.heads if value is not None else heads
        found: dict[str, Any] = {"v": value, "kv_heads": kv_heads}
        for kind, count in (("q", heads), ("k", kv_heads)):
            if value is not None and value.order in FUSED:
                found[kind] = replace(value, heads=count)
            else:
                rest = [call for call in before if value is None or call.path != value.path]
                found[kind] = self._asking(kind, rest, count, (heads, kv_heads), width)
        return found

    def _value(self, before: Sequence[Call], heads: int, width: int) -> Projection | None:
        """The projection whose numbers the softmax is multiplied with, as they are or behind a norm
        of single heads; where neither is found, by its name."""
        used = self.softmax.mixed
        divisors = [n for n in range(heads, 0, -1) if heads % n == 0]
        if used is not None and used.shape[-1] == width:
            plain = [_fitting(call, used, "v", heads, keys) for call in before for keys in divisors]
            if any(plain):
                return next(one for one in plain if one is not None)
            norms = [call for call in self.calls if is_norm(call.module)]
            for norm in norms:
                fits = [_fitting(norm, used, "v", heads, keys) for keys in divisors]
                own = next((one for one in fits if one is not None and one.order == "own"), None)
                source = next((call for call in before if equal(call.made, norm.given)), None)
                if own is not None and source is not None:
                    return replace(own, path=source.path, norm=norm.path)
        for call in before:
            total = 0 if call.made is None else call.made.shape[-1]
            if _named("v", call) and total >= width and total % width == 0:
                return Projection(call.path, "own", total // width, width)
        return None

    def _asking(
        self, kind: str, rest: Sequence[Call], count: int, heads: tuple[int, int], width: int
    ) -> Projection | None:
        """The projection of q or k: what the product under the softmax is made of, at the first
        token, which no position rotates; behind a norm of single heads, by its name."""
        asked = self.softmax.asked
        used = None if asked is None else asked["qk".index(kind)]
        # A norm over all heads at once (OLMo 2) makes q and k of what the projections give.
        wide = [call for call in self.calls if call.begun < self.softmax.when and _is_wide(call)]
        for call in [*rest, *wide]:
            own = None if used is None else _fitting(call, used, kind, *heads, first=True)
            if own is not None:
                return replace(own, source=_source(call, rest))
        size = width if used is None else used.shape[-1]
        # Of two in a row (latent attention) the last is meant.
        for call in reversed(rest):
            total = 0 if call.made is None else call.made.shape[-1]
            if _named(kind, call) and total and total % count == 0:
                gated = total // count == 2 * size
                return Projection(
                    call.path, "first" if gated else "own", count, min(size, total // count)
                )
        return None


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


def _named(kind: str, call: Call) -> bool:
    return bool(NAMED[kind].match(call.path.rpartition(".")[2]))


def _source(call: Call, projections: Sequence[Call]) -> str:
    """The projection whose output a norm over all heads is given; "" where it is none itself."""
    if not is_norm(call.module):
        return ""
    return next((one.path for one in projections if equal(one.made, call.given)), "")


def _is_wide(call: Call) -> bool:
    """Whether it is a norm over more than single heads."""
    return is_norm(call.module) and call.made is not None and call.made.ndim < 4
