"""The same question in another guise: prompts made from prompts, answers known as before."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.errors import WorkbenchError
from workbench.log import log
from workbench.sandbox.chat_template import rendered
from workbench.tasks.conjugations import renaming
from workbench.tasks.prompts import Prompt, PromptSet

# Words of the shipped family's ledger, and words of pre-training that stand in for them.
LEDGER_WORDS = {
    "inventory": "weather", "coins": "lines", "step": "page", "added": "listed",
    "removed": "replaced", "holds": "paid",
}  # fmt: skip
MARK = "the user's own words 5f1c"  # told apart from every word of a template


def renamed(prompts: PromptSet, words: Mapping[str, str]) -> PromptSet:
    """Every word of `words` replaced by its partner, in prompt, target and foils: a conjugation.

    What is asked stays the same up to the renaming, which turns back by swapping the two sides.
    Raises WorkbenchError where two words would become one, or a prompt already holds a new one.
    """
    turn = renaming(words)
    new = [word for word in words.values() if word not in words]
    for prompt in prompts:
        clash = [word for word in new if re.search(rf"\b{re.escape(word)}\b", prompt.text)]
        if clash:
            raise WorkbenchError(
                f"Prompt {prompt.id!r} already holds {clash[0]!r}; rename to a word it lacks."
            )
    return turn(prompts)


def off_by_one(step: str) -> str:
    """A worked step with a mistake: its last whole number is one too small, 0 becomes 1. A step
    without a number stays as it is."""

    def wrong(found: re.Match[str]) -> str:
        return str(abs(int(found[0]) - 1))

    return re.sub(r"\d+(?=\D*$)", wrong, step, count=1)


def question(prompt: Prompt, group: Sequence[str] = ()) -> tuple[str, ...]:
    """What a prompt asks, however it is worded: the values of the tags `group`; without any its
    last sentence and its answer. Raises WorkbenchError for a tag that it lacks."""
    for name in group:
        if name not in prompt.tags:
            raise WorkbenchError(
                f"Prompt {prompt.id!r} has no tag {name!r}; it has {', '.join(prompt.tags)}."
            )
    if group:
        return tuple(prompt.tags[name] for name in group)
    return re.split(r"[.;?!\n]\s", prompt.prompt)[-1], prompt.target


def many_shot(
    prompts: PromptSet,
    shots: PromptSet,
    *,
    count: int = 3,
    between: str = " .\n",
    group: Sequence[str] = (),
    seed: int = 0,
) -> PromptSet:
    """Each prompt behind `count` solved ones drawn from `shots`, none of which tells its answer.

    between: what ends a solved one. group: tags that name what is asked, as of `forgetting.probe`:
    a shot of the same values is none, nor one whose text holds the answer and those of the values
    that stand in the prompt (the fact about Julia, in other words). Without tags only a shot of the
    same last sentence and answer is none. Raises WorkbenchError where too few are left.
    """
    draw = random.Random(f"shots {seed}")

    def one(prompt: Prompt) -> Prompt:
        others = [other for other in shots if not _tells(other, prompt, group)]
        if len(others) < count:
            raise WorkbenchError(
                f"Expected at least {count} solved prompts that do not tell the answer of "
                f"{prompt.id!r}, found {len(others)}."
            )
        told = "".join(other.text + between for other in draw.sample(others, count))
        spans = {n: (a + len(told), b + len(told)) for n, (a, b) in prompt.spans.items()}
        return replace(
            prompt, id=f"{prompt.id}-{count}-shot", prompt=told + prompt.prompt, spans=spans
        )

    return replace(prompts, name=f"{prompts.name}-{count}-shot", prompts=tuple(map(one, prompts)))


def _tells(shot: Prompt, prompt: Prompt, group: Sequence[str]) -> bool:
    """Whether a solved prompt gives another's answer away."""
    if question(shot, ()) == question(prompt, ()):
        return True
    if not group:
        return False
    asked = question(prompt, group)
    named = [value for value in asked if _holds(prompt.text, value)]
    said = named and all(_holds(shot.text, one) for one in (*named, prompt.target.strip()))
    same = all(shot.tags.get(name) == value for name, value in zip(group, asked, strict=True))
    return bool(said) or same


def _holds(text: str, words: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def chat(prompts: PromptSet, tokenizer: Any) -> PromptSet:
    """Each prompt as a user's message in the tokenizer's chat template, up to the answer.

    Target and foils lose their leading space, spans move with the message; they are left out, with
    a word, where the template rewrites it. Raises WorkbenchError where the tokenizer has no
    template, or one that fails or never ends.
    """

    def told(text: str) -> str:
        made = rendered(tokenizer, text)
        # The tokenizer adds its own start token when the prompt is run.
        added = tokenizer.bos_token and tokenizer("").input_ids
        return made.removeprefix(tokenizer.bos_token) if added else made

    before = told(MARK).partition(MARK)[0] if len(prompts) else ""
    unplaced = []

    def one(prompt: Prompt) -> Prompt:
        text = told(prompt.prompt)
        spans = _moved(prompt, text, before)
        unplaced.extend([prompt.id] if len(spans) < len(prompt.spans) else [])
        foils = tuple(foil.lstrip() for foil in prompt.foils)
        target = prompt.target.lstrip()
        return replace(
            prompt, id=f"{prompt.id}-chat", prompt=text, target=target, foils=foils, spans=spans
        )

    made = replace(prompts, name=f"{prompts.name}-chat", prompts=tuple(map(one, prompts)))
    if unplaced:
        log.warning(
            "The chat template rewrites %d of %d prompts (%s first): their spans are left out.",
            *(len(unplaced), len(prompts), unplaced[0]),
        )
    return made


def _moved(prompt: Prompt, told: str, before: str) -> dict[str, tuple[int, int]]:
    """The prompt's spans in its message, which follows `before` as it is or without the white space
    at its ends; those that are not there are left out."""
    text, bare = prompt.prompt, prompt.prompt.strip()
    lost = 0 if told.startswith(before + text) else text.index(bare)
    kept = text if told.startswith(before + text) else bare
    if not told.startswith(before + kept):
        return {}
    shift = len(before) - lost
    return {
        name: (a + shift, b + shift)
        for name, (a, b) in prompt.spans.items()
        if lost <= a and b <= lost + len(kept)
    }
