"""How do generators draw distinct prompts, with splits that cannot overlap?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from workbench.errors import WorkbenchError
from workbench.tasks.prompts import SPLITS, Prompt, PromptSet, Split


class Draw(NamedTuple):
    """What a generator makes of one random stream, before it has an id and a split."""

    prompt: str
    target: str
    foils: tuple[str, ...]
    tags: dict[str, str]
    template: str
    spans: Mapping[str, tuple[int, int]] = {}


def split_of(text: str) -> Split:
    """The split a text belongs to, from its own hash: half train, a quarter each of the others."""
    bucket = hashlib.sha256(text.encode()).digest()[0]
    return "train" if bucket < 128 else "validation" if bucket < 192 else "test"


def named(name: str, made: Draw) -> Prompt:
    """The prompt of a draw: its id and its split follow from its text."""
    text = made.prompt + made.target
    key = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Prompt(
        key,
        made.prompt,
        made.target,
        made.foils,
        split_of(text),
        made.tags,
        made.template,
        made.spans,
    )


def asked_for(n: int, split: Split | None) -> None:
    """Raises WorkbenchError for a number of prompts or a split that there is not."""
    if split is not None and split not in SPLITS:
        raise WorkbenchError(f"Unknown split {split!r}; use one of {', '.join(SPLITS)}.")
    if n < 1:
        raise WorkbenchError(f"Expected a number of prompts of at least 1, found n = {n}.")


def collect(
    name: str,
    draw: Callable[[random.Random], Draw],
    *,
    n: int,
    seed: int,
    split: Split | None,
) -> PromptSet:
    """The first n distinct prompts of the stream `seed` that fall in `split` (None: in any).

    A text's split follows from its content alone, so sets of any seed never share a text across
    splits. Raises if the task has too few distinct prompts.
    """
    asked_for(n, split)
    stream = random.Random(f"{name} {seed}")
    found: dict[str, Prompt] = {}
    for _ in range(40 * n + 1000):
        prompt = named(name, draw(stream))
        if split not in (None, prompt.split):
            continue
        found[prompt.id] = prompt
        if len(found) == n:
            return PromptSet(name, tuple(found.values()), seed)
    raise WorkbenchError(
        f"{name} has only about {len(found)} distinct prompts in split {split}; ask for fewer "
        f"than n = {n}."
    )
