"""Whose chat template are prompts rendered by, before an analysis runs them?

Base and member often have different ones, and what the other never saw is another question. A set
of prompts says which it wants (`PromptSet.template`), and the Result which it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from workbench.loaders import Checkpoint, CheckpointPair, Family
from workbench.loaders.tokenizer_files import chat_template
from workbench.results.result import Result
from workbench.tasks.marks import MARK, are_marked, marked
from workbench.tasks.prompts import PromptSet
from workbench.tasks.transforms import is_chat, told

R = TypeVar("R")


def rendered(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Every set of prompts among the arguments, also in lists, mappings and tuples with names, as
    it is run, put in its place; what was done, in sentences.

    The tokenizers are those of the pair among the arguments, or of a family's base and its first
    member. Marks in the text become places first (`tasks.marked`). Raises WorkbenchError where the
    template that is asked for is not there.
    """
    notes: list[str] = []

    def unmarked(prompts: PromptSet) -> PromptSet:
        if not are_marked(prompts):
            some = sum(bool(MARK.search(prompt.prompt)) for prompt in prompts)
            if some:
                notes.append(
                    f"{prompts.name}: {some} of {len(prompts)} prompts hold [[...]]; marks count "
                    "only if every prompt has one, so these are run with their brackets."
                )
            return prompts
        notes.append(f"{prompts.name}: what [[...]] marks is a place of each prompt, without them.")
        return marked(prompts)

    for name, value in arguments.items():
        arguments[name] = _each(value, unmarked)
    sets = list(_sets(list(arguments.values())))
    if not any(prompts.template or is_chat(prompts) for prompts in sets):
        return tuple(dict.fromkeys(notes))
    by_template = any(is_chat(prompts) and prompts.template != "plain" for prompts in sets)
    base, tuned = _sides(arguments) if by_template else (None, None)

    def made(prompts: PromptSet) -> PromptSet:
        found, said = told(prompts, base, tuned)
        notes.extend(said)
        return found

    for name, value in arguments.items():
        arguments[name] = _each(value, made)
    return tuple(dict.fromkeys(notes))


def noted(made: R, notes: tuple[str, ...]) -> R:
    """A Result with these notes before its own; anything else as it is."""
    if not notes or not isinstance(made, Result):
        return made
    provenance = made.provenance.with_notes((*notes, *made.provenance.notes))
    return replace(made, provenance=provenance)


def _sides(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The tokenizers of base and member."""
    for value in arguments.values():
        if isinstance(value, CheckpointPair):
            return value.base.tokenizer(), _member(value.tuned)
        if isinstance(value, Family) and value.members:
            return value.base.tokenizer(), _member(next(iter(value.members.values())))
    return None, None


def _member(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a member, with the chat template that an adapter brings."""
    words = checkpoint.tokenizer()
    if checkpoint.adapter is not None and checkpoint.lora is not None:
        own = chat_template(Path(checkpoint.lora.reference))
        words.chat_template = own if isinstance(own, str) else words.chat_template
    return words


def _sets(value: Any) -> Iterator[PromptSet]:
    if isinstance(value, PromptSet):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for part in value.values() for one in _sets(part))
    elif isinstance(value, list | tuple):
        yield from (one for part in value for one in _sets(part))


def _each(value: Any, made: Any) -> Any:
    """`value` with every set of prompts in it as `made` makes it; what has none is itself."""
    if isinstance(value, PromptSet):
        return made(value)
    if not any(True for _ in _sets(value)):
        return value
    if isinstance(value, Mapping):
        return {name: _each(part, made) for name, part in value.items()}
    parts = [_each(part, made) for part in value]
    if isinstance(value, list):
        return parts
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
