"""Places marked in the text: "the [[Eiffel Tower]] is in", "[[city|Paris]] is in [[France]]".

A set is marked if every prompt has a mark. Marks are taken out before anything is tokenised, and
what stood in them is a span of the prompt: "marked" (further ones "marked 2", "marked 3"), or the
name before the bar.
"""

from __future__ import annotations

import re
from dataclasses import replace

from workbench.errors import WorkbenchError
from workbench.tasks.prompts import Prompt, PromptSet

MARK = re.compile(r"\[\[(?:([^\[\]|]+)\|)?([^\[\]|]+)\]\]")
NAME = "marked"


def are_marked(prompts: PromptSet) -> bool:
    """Whether every prompt has a mark."""
    return len(prompts) > 0 and all(MARK.search(prompt.prompt) for prompt in prompts)


def marked(prompts: PromptSet) -> PromptSet:
    """The prompts without their marks, what was marked as spans; other spans move with the text.

    Every analysis does this with marked prompts by itself. Raises WorkbenchError for a prompt
    without a mark, and for a name that a prompt has already.
    """
    return replace(prompts, prompts=tuple(map(_unmarked, prompts)))


def _unmarked(prompt: Prompt) -> Prompt:
    found = list(MARK.finditer(prompt.prompt))
    if not found:
        raise WorkbenchError(
            f"Expected a mark such as [[Eiffel Tower]] in every prompt, found none in "
            f"{prompt.id!r}; mark it, or mark no prompt."
        )
    text, end, kept = "", 0, []  # kept: (first, last + 1, taken out before) of what stays
    spans: dict[str, tuple[int, int]] = {}
    for number, mark in enumerate(found, 1):
        text += prompt.prompt[end : mark.start()]
        name = mark[1] or (NAME if number == 1 else f"{NAME} {number}")
        if name in spans or name in prompt.spans:
            raise WorkbenchError(
                f"Prompt {prompt.id!r} has two places called {name!r}; give each a name of its "
                "own, as in [[city|Paris]]."
            )
        spans[name] = (len(text), len(text) + len(mark[2]))
        kept.append((mark.start(2), mark.end(2), mark.start(2) - len(text)))
        text += mark[2]
        end = mark.end()
    text += prompt.prompt[end:]

    def moved(place: int) -> int:
        """Where a character of the marked text is now; of a mark itself, where its text is."""
        shift = 0
        for first, last, taken in kept:
            if place < first:
                return min(place - shift, first - taken)
            if place <= last:
                return place - taken
            shift = taken + 2
        return place - shift

    own = {name: (moved(a), moved(b)) for name, (a, b) in prompt.spans.items()}
    messages = prompt.messages
    if messages and messages[-1]["content"] == prompt.prompt:
        messages = (*messages[:-1], {**messages[-1], "content": text})
    return replace(prompt, prompt=text, spans=own | spans, messages=messages)
