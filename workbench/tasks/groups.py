"""Groups of prompts by what they are like: their answer, length, steps, and how common they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.tasks.prompts import Prompt, PromptSet

BANDS = 4
WORD = re.compile(r"\w+")
# Where a sentence, a clause of the shipped tasks or a line ends, with something behind it.
STEP = re.compile(r"(?:[.;!?]+|\n)\s*(?=\S)")
LIKE, UNLIKE = "like", "unlike"


def _length(prompts: Sequence[Prompt]) -> list[int]:
    return [len(WORD.findall(p.prompt)) for p in prompts]


def _steps(prompts: Sequence[Prompt]) -> list[int]:
    return [1 + len(STEP.findall(p.prompt)) for p in prompts]


def _turns(prompts: Sequence[Prompt]) -> list[int]:
    return [max(1, len(p.messages)) for p in prompts]


def _frequency(prompts: Sequence[Prompt]) -> list[int]:
    times = Counter(p.target for p in prompts)
    return [times[p.target] for p in prompts]


COUNTS: dict[str, Callable[[Sequence[Prompt]], list[int]]] = {
    "length": _length, "steps": _steps, "turns": _turns, "frequency": _frequency,
}  # fmt: skip
GROUPS = ("answer", *COUNTS)


def grouped(prompts: Sequence[Prompt], name: str) -> list[str] | None:
    """The group of each prompt by a name that needs no tag; None for any other name.

    "answer": its target. In four bands of about as many prompts: "length", the words of the prompt;
    "steps", its sentences and lines; "turns", its messages; "frequency", how many prompts of the
    set have the same answer.
    """
    if name == "answer":
        return [p.target.strip() for p in prompts]
    return banded(COUNTS[name](prompts)) if name in COUNTS else None


def banded(counts: Sequence[int], bands: int = BANDS) -> list[str]:
    """Numbers in bands of about as many items each, "3 to 5"; each number by itself where there are
    no more than bands."""
    values = np.asarray(counts)
    known = np.unique(values)
    edges = known
    if len(known) > bands:
        edges = np.unique(np.quantile(values, np.arange(bands) / bands, method="higher"))
        if len(edges) == 1:  # most have the smallest number
            edges = known[:2]
    ends = [*edges.tolist(), int(known[-1]) + 1] if len(known) else []
    names = []
    for first, after in pairwise(ends):
        last = int(known[known < after][-1])
        names.append(str(first) if first == last else f"{first} to {last}")
    place = np.searchsorted(edges, values, side="right") - 1
    return [names[i] for i in place]


def likeness(prompts: PromptSet, texts: Sequence[str] | PromptSet, *, words: int = 3) -> PromptSet:
    """Prompts with the tag likeness, "like" or "unlike" the texts of a fine-tuning.

    texts: what was trained on. words: the length of the runs of words that are compared. The half
    of the prompts with the larger share of runs that stand in the texts is "like"; all with the
    median share are "unlike". Raises WorkbenchError where every prompt has the same share.
    """
    given = texts if isinstance(texts, Sequence) else texts.texts
    seen = {run for text in given for run in _runs(text, words)}
    own = [_runs(p.text, words) for p in prompts]
    shares = np.array([np.mean([run in seen for run in runs]) if runs else 0.0 for runs in own])
    like = shares > np.median(shares) if len(shares) else shares > 0
    if not like.any():
        raise WorkbenchError(
            f"Expected prompts of {prompts.name!r} more and less like the texts, but at least half "
            f"of them share the same {shares.max(initial=0.0):.0%} of their runs of {words} words "
            "with them; give other prompts, or another number of words."
        )
    made = [
        replace(p, tags={**p.tags, "likeness": LIKE if one else UNLIKE})
        for p, one in zip(prompts, like, strict=True)
    ]
    return replace(prompts, prompts=tuple(made))


def _runs(text: str, words: int) -> set[tuple[str, ...]]:
    found = WORD.findall(text.casefold())
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}
