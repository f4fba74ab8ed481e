"""May the tokenizer of a folder be used here? Its files say what is done to every text.

They can say anything: that a letter becomes a thousand, five times over, that two milliards of
tokens follow each text, that a pattern is searched for which takes for ever to miss. What texts can
grow to is read off tokenizer.json; then it is made, and reads what its own patterns ask for, in a
process with limits (`workbench.sandbox.process`), once for each content. Not proven is that no text
at all takes long: a pattern may wait for one that nobody tries.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import string
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import MIB, read_json
from workbench.loaders.side_files import beside_digest
from workbench.loaders.staging import handed, tokenizer_files
from workbench.results import cache
from workbench.sandbox.process import bounded

GROWTH = 1000  # characters that one may become; Unicode's own forms make 18 of one at most
ADDED = 1000  # tokens that may be put around a text
LONGEST = 10_000  # characters of one token
LOAD, READ = 120.0, 10.0  # seconds; the largest tokenizers take some twenty, and a fraction of one
ROOM = 4 << 30  # bytes
MADE_BY = ("transformers", "tokenizers")
TIMES = 400  # of every character that is tried
PLAIN = (
    "The quick brown fox isn't 1,234.50 years old: see https://a.b/c?d=e#f, (g) or \u4e2d\u6587. "
)
_BOUNDED: set[str] = set()


def require_bounded(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Raise WorkbenchError where texts could grow beyond measure, or where the tokenizer takes more
    than seconds and ROOM to make or to read a few texts with.

    config: that of the model beside it.
    """
    parts = [beside_digest(folder), *(f"{one} {version(one)}" for one in MADE_BY)]
    known = cache.digest(part.encode() for part in parts)
    memo = cache.folder("tokenizers", known[:32])
    if known in _BOUNDED or cache.kept_digest(memo) == known:
        return
    file = folder / "tokenizer.json"
    steps = read_json(file, most=128 * MIB) if file.is_file() else {}
    try:
        _require_modest(steps)
        limits = {"room": ROOM}
        with handed(tokenizer_files(folder, config), folder) as fresh:
            bounded("load", seconds=LOAD, **limits, folder=str(fresh))
            bounded("read", seconds=READ, **limits, texts=list(_tried(steps)))
    except (ValueError, RuntimeError, TimeoutError) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(
            f"No tokenizer can be loaded from {name} and used within safe limits "
            f"({reason(error)}); put its own files next to the weights."
        ) from error
    _BOUNDED.add(known)
    # A cache that cannot be written costs the next process the same again, no more.
    with contextlib.suppress(OSError, WorkbenchError):
        cache.keep_digest(memo, known)


def _require_modest(steps: dict[str, Any]) -> None:
    """Raise ValueError where tokenizer.json says that texts, or what is read back of tokens, may
    grow beyond measure."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for step in _steps(steps.get(part)):
            growth *= _growth(step)
            if growth > GROWTH:
                raise ValueError(f"its {part} turns one character into more than {GROWTH}")
    copies, added = 1, 0
    for step in _steps(steps.get("post_processor")):
        more, again = _around(step)
        copies, added = copies * max(1, again), (added + more) * max(1, again)
        if copies > 2 or added > ADDED:
            raise ValueError(f"its post_processor adds more than {ADDED} tokens to a text")
    padding = steps.get("padding")
    if isinstance(padding, dict) and any(
        isinstance(one, int) and one > MIB
        for one in (padding.get("pad_to_multiple_of"), *_values(padding.get("strategy")))
    ):
        raise ValueError("it pads texts to more than a million tokens")
    model = steps.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if any(isinstance(word, str) and len(word) > LONGEST for word in words or ()):
        raise ValueError(f"it has a token of more than {LONGEST} characters")


def _steps(found: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of tokenizer.json, those inside sequences one by one."""
    if isinstance(found, list):
        for one in found:
            yield from _steps(one)
    elif isinstance(found, dict):
        inner = [part for part in found.values() if _nested(part)]
        if found.get("type") == "Sequence" and inner:
            yield from _steps(inner)
        else:
            yield found


def _nested(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(one, dict) for one in part)


def _growth(step: dict[str, Any]) -> int:
    """How many characters a step may make of one."""
    if step.get("type") == "Precompiled":
        return _longest(step.get("precompiled_charsmap"))
    put = step.get("content") if step.get("type") == "Replace" else step.get("replacement")
    if not isinstance(put, str):
        return 1
    pattern = step.get("pattern")
    plain = pattern.get("String") if isinstance(pattern, dict) else None
    long = len(plain) if isinstance(plain, str) else 1
    between = not long or (plain is None and len(put) > 1)  # of any two characters, which stay
    return max(1, -(-len(put) // max(1, long))) + between


def _longest(charsmap: Any) -> int:
    """Characters that a table of sentencepiece puts in a place of one at most."""
    if not isinstance(charsmap, str):
        return 1
    try:
        raw = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # its reader refuses it
    trie = int.from_bytes(raw[:4], "little")
    return max(1, *map(len, raw[4 + trie :].split(b"\0"))) if len(raw) > 4 else 1


def _around(step: dict[str, Any]) -> tuple[int, int]:
    """(tokens that a post-processor puts around a text, how often the text stands in it)."""
    tokens = step.get("special_tokens")
    ids = {
        name: len(one["ids"])
        for name, one in (tokens.items() if isinstance(tokens, dict) else ())
        if isinstance(one, dict) and isinstance(one.get("ids"), list)
    }
    pieces = [one for one in _values(step.get("single")) if isinstance(one, dict)]
    added = [one["SpecialToken"] for one in pieces if isinstance(one.get("SpecialToken"), dict)]
    return sum(ids.get(one.get("id"), 1) for one in added), sum("Sequence" in p for p in pieces)


def _values(found: Any) -> list[Any]:
    return list(found.values()) if isinstance(found, dict) else found if _nested(found) else []


def _tried(steps: dict[str, Any]) -> Iterator[str]:
    """Texts to try a tokenizer with: plain ones; of every character, pair with a space, and word of
    its own patterns more in a row than any pattern that searches on and on could bear."""
    yield from ("", PLAIN, PLAIN * 20)
    units = [*string.printable, *(f"{letter} " for letter in string.ascii_letters + "1.-"), "aA1-"]
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(steps.get(part)):
            for pattern in _values(step.get("pattern")):
                units += [pattern, *re.findall(r"\w+|[^\W\x00-\x7f]", str(pattern))][:100]
    for unit in dict.fromkeys(str(unit)[:100] for unit in units if unit):
        # Behind it all that a pattern may end with: one whose end is nowhere is not searched for.
        yield unit * max(2, TIMES // len(unit)) + f"\x01{string.printable}"
