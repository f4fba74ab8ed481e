"""The same question in another guise: prompts made from prompts, answers known as before."""

from __future__ import annotations

import json
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
from workbench.tasks.scorers import Loss

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


def scrambled(prompts: PromptSet, texts: PromptSet, *, times: int = 1, seed: int = 0) -> PromptSet:
    """Texts of as many words as each prompt, drawn at random from the words of `texts`, as often as
    each stands there: of the prompts' lengths, unlikely to any model, and never trained on.

    Words are what blanks separate. times: how many texts each prompt gets. Every answer stays its
    prompt's own, which asks nothing here. Raises WorkbenchError where the texts hold no word.
    """
    words = [word for one in texts for word in one.text.split()]
    if not words:
        raise WorkbenchError(
            f"Expected words to draw from, found none in the {len(texts)} texts of {texts.name!r}; "
            "give texts with words."
        )
    draw = random.Random(f"scrambled {seed}")
    made = tuple(
        Prompt(
            f"{p.id}-scrambled-{i}",
            " ".join(draw.choices(words, k=len(p.prompt.split()))),
            p.target,
        )
        for p in prompts
        for i in range(times)
    )
    return PromptSet(f"{prompts.name}-scrambled", made, prompts.seed)


def shuffled(prompts: PromptSet, *, seed: int = 0) -> PromptSet:
    """Every answer given to another question of the same wording: the questions and the answers
    there were, and nothing that leads from one to the other.

    Answers are the targets, and those that stand in a prompt (its spans "answer 1" and so on);
    prompts of one `template` exchange theirs, so that each gets one of its kind. Foils are left
    out, and ids end in "-shuffled". Some answer comes back to its own question, as often as chance
    has it. Raises WorkbenchError for conversations, whose answers are not shuffled.
    """
    if any(prompt.messages for prompt in prompts):
        raise WorkbenchError(
            f"Expected plain prompts with answers, found conversations in {prompts.name!r}; "
            "their answers cannot be shuffled."
        )
    wordings: dict[str, list[str]] = {}
    for prompt in prompts:
        own = wordings.setdefault(prompt.template, [])
        own += [prompt.prompt[a:b] for a, b in _answers(prompt).values()] + [prompt.target]
    draw = random.Random(f"shuffled {seed}")
    for own in wordings.values():
        draw.shuffle(own)
    drawn = {template: iter(own) for template, own in wordings.items()}

    def one(prompt: Prompt) -> Prompt:
        text, spans = prompt.prompt, dict(prompt.spans)
        for name in _answers(prompt):
            (first, end), new = spans[name], next(drawn[prompt.template]).strip()
            text = text[:first] + new + text[end:]
            longer = len(new) - (end - first)
            spans = {
                other: (a + longer * (a >= end), b + longer * (b >= end))
                for other, (a, b) in spans.items()
            }
        space = prompt.target[: len(prompt.target) - len(prompt.target.lstrip())]
        target = space + next(drawn[prompt.template]).strip()
        return replace(
            prompt, id=f"{prompt.id}-shuffled", prompt=text, target=target, foils=(), spans=spans
        )

    return replace(prompts, name=f"{prompts.name}-shuffled", prompts=tuple(map(one, prompts)))


def _answers(prompt: Prompt) -> dict[str, tuple[int, int]]:
    """The spans of the answers that stand in a prompt."""
    return {name: span for name, span in prompt.spans.items() if name.startswith("answer ")}


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
    """Each prompt after `count` solved ones drawn from `shots`, none of which states its answer.

    between: what ends a solved one. group: tags that name what is asked, as of `forgetting.probe`:
    a prompt of the same values is never used as a shot, nor one whose text holds the answer and
    those of the values that are in the prompt (the fact about Julia, in other words). Without tags,
    only a prompt with the same last sentence and answer is excluded. Raises WorkbenchError if too
    few are left.
    """
    draw = random.Random(f"shots {seed}")

    def one(prompt: Prompt) -> Prompt:
        others = [other for other in shots if not _tells(other, prompt, group)]
        if len(others) < count:
            raise WorkbenchError(
                f"Expected at least {count} solved prompts that do not contain the "
                f"answer of {prompt.id!r}, found {len(others)}."
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
    """Each prompt in the tokenizer's chat template, up to the answer: its messages where it has
    some (a system's, several turns), else as one message of the user.

    Target and foils lose their leading space, spans move with the message; they are left out, with
    a word, where the template rewrites it. Names and ids get "-chat". Raises WorkbenchError where
    the tokenizer has no template, or one that fails or never ends.
    """
    made = _chatted(prompts, tokenizer)
    own = tuple(replace(prompt, id=f"{prompt.id}-chat") for prompt in made)
    return replace(made, name=f"{prompts.name}-chat", prompts=own)


def told(prompts: PromptSet, base: Any, tuned: Any) -> tuple[PromptSet, tuple[str, ...]]:
    """Prompts as they are run, and what a Result says of that: rendered by the chat template of the
    tokenizer that their `template` names, under the names and ids they had.

    base, tuned: tokenizers. Prompts without messages stay as they are where no template is named,
    and in any case by "plain"; texts that are scored by their loss stay so too. Raises
    WorkbenchError where that tokenizer has no template.
    """
    if not is_chat(prompts):
        return replace(prompts, template=None) if prompts.template else prompts, ()
    if prompts.template == "plain":
        note = (
            f'{prompts.name}: messages are written as plain lines ("user: ..."), without a '
            "chat template."
        )
        return _plain(prompts), (note,)
    sides = {"base": base, "tuned": tuned}
    have = [side for side, words in sides.items() if getattr(words, "chat_template", None)]
    side = prompts.template or next(iter(have), None)
    if side not in have:
        raise WorkbenchError(
            f"Expected a chat template in the tokenizer of the {side or 'base or the tuned'} model "
            f"for {prompts.name!r}, found none; give template="
            + (f'"{have[0]}" or ' if have else "")
            + '"plain" (--template plain), which writes them as "user: ..." lines.'
        )
    notes = [f"{prompts.name}: rendered by the {side} model's chat template."]
    if base.chat_template != tuned.chat_template:
        notes.append(
            "the chat templates of the base and of the tuned model differ; "
            f'template="{"tuned" if side == "base" else "base"}" takes the other, if it has one.'
        )
    return _chatted(prompts, sides[side]), tuple(notes)


def is_chat(prompts: PromptSet) -> bool:
    """Whether prompts are rendered before they are run."""
    messages = any(prompt.messages for prompt in prompts)
    named = prompts.template in ("base", "tuned") and not isinstance(prompts.scorer, Loss)
    return messages or named


def _plain(prompts: PromptSet) -> PromptSet:
    """Messages as lines "role: ...", the answer behind "assistant:"."""

    def one(prompt: Prompt) -> Prompt:
        if not prompt.messages:
            return prompt
        *earlier, last = ("{role}: {content}\n".format(**m) for m in prompt.messages)
        before = "".join(earlier) + last.partition(": ")[0] + ": "
        text = "".join([*earlier, last]) + "assistant:"
        foils = tuple(f" {foil.lstrip()}" for foil in prompt.foils)
        target, spans = f" {prompt.target.lstrip()}", _moved(prompt, text, before)
        return replace(prompt, prompt=text, target=target, foils=foils, spans=spans, messages=())

    return replace(prompts, prompts=tuple(map(one, prompts)), template=None)


def _chatted(prompts: PromptSet, tokenizer: Any) -> PromptSet:
    """In the tokenizer's chat template, the names as they were."""

    def made(messages: Sequence[Mapping[str, str]]) -> str:
        text = rendered(tokenizer, messages)
        # The tokenizer adds its own start token when the prompt is run.
        added = tokenizer.bos_token and tokenizer("").input_ids
        return text.removeprefix(tokenizer.bos_token) if added else text

    def before(messages: Sequence[Mapping[str, str]]) -> str:
        """What comes before the last message's own words."""
        *earlier, last = messages
        key = json.dumps([*earlier, last["role"]])
        if key not in known:
            known[key] = made([*earlier, {**last, "content": MARK}]).partition(MARK)[0]
        return known[key]

    known: dict[str, str] = {}
    unplaced = []

    def one(prompt: Prompt) -> Prompt:
        messages = prompt.messages or ({"role": "user", "content": prompt.prompt},)
        text = made(messages)
        spans = _moved(prompt, text, before(messages)) if prompt.spans else {}
        unplaced.extend([prompt.id] if len(spans) < len(prompt.spans) else [])
        foils = tuple(foil.lstrip() for foil in prompt.foils)
        target = prompt.target.lstrip()
        return replace(prompt, prompt=text, target=target, foils=foils, spans=spans, messages=())

    found = replace(prompts, prompts=tuple(map(one, prompts)), template=None)
    if unplaced:
        log.warning(
            "The chat template rewrites %d of %d prompts (the first is %s), so their "
            "spans are left out.",
            *(len(unplaced), len(prompts), unplaced[0]),
        )
    return found


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
