"""Strategies that damage bytes and JSON: what a broken download and a hostile author write."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
TEXTS = (
    "", " ", "../../etc/passwd", "/etc/passwd", "..", "~", "a\x00b", "\x1b[31mred", "one\ntwo",
    "<script>alert(1)</script>", "'\"><img src=x>", "{{ 7 * 7 }}", "{% for x in y %}", "$\\frac{$",
    "\u202eevil", "\ud800", "😀", "שלום", "A" * 70_000, "(a+)+$", "(.*)*$", "[", "os.system",
    "evil/kernel", "http://127.0.0.1:9/x", "nan", "1e999", "F8_E4M3", "I64", "pissa", "float128",
)  # fmt: skip
NUMBERS = (
    0, -0.0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64,
    10**30, 1e-320, 1e308, 0.5, math.nan, math.inf, -math.inf, True, False, None,
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([[], {}, [[]], DEEP, [None], ["a", 1], {"a": {}}, [2**62, 2**62], [-1]]).map(
        copy.deepcopy
    ),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Every path into a JSON value, the containers' own among them."""
    found = [path]
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for name, part in list(items)[:40]:
            found += places(part, (*path, name))
    return found


@st.composite
def json_bytes(draw: st.DrawFn, content: Any, keys: tuple[str, ...] = ()) -> bytes:
    """`content` as JSON with one to three of its values changed, removed, repeated or added.

    keys: names that a hostile author would add to the outermost object.
    """
    content = copy.deepcopy(content)
    repeated = None
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(content)))
        kind = draw(st.sampled_from(["value", "value", "value", "key", "remove", "repeat"]))
        if kind == "key" and keys and isinstance(content, dict):
            content[draw(st.sampled_from(keys))] = draw(VALUES)
        elif not path:
            content = draw(VALUES) if draw(st.integers(0, 9)) == 0 else content
        else:
            inside = content
            for step in path[:-1]:
                inside = inside[step]
            if kind == "remove":
                del inside[path[-1]]
            elif kind == "repeat" and isinstance(inside, dict):
                repeated = str(path[-1])
            else:
                inside[path[-1]] = draw(VALUES)
        if not isinstance(content, dict | list):
            break
    text = json.dumps(content)
    if repeated is not None and text.startswith("{") and len(text) > 2:
        text = "{" + json.dumps(repeated) + ": " + json.dumps(draw(VALUES)) + ", " + text[1:]
    raw = text.encode()
    return draw(broken(raw)) if draw(st.integers(0, 7)) == 0 else raw


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes cut short, with some of them changed, put in, taken out or said twice."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "flip", "put", "take", "twice", "eight"]))
        if kind == "cut":
            del raw[at:]
        elif kind == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "put":
            raw[at:at] = draw(st.binary(max_size=12))
        elif kind == "take":
            del raw[at : at + draw(st.integers(1, 40))]
        elif kind == "twice":
            raw[at:at] = raw[at : at + 64]
        else:
            number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
            raw[at : at + 8] = number.to_bytes(8, "little")
    return bytes(raw)
