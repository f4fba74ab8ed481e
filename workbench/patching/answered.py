"""Prompts with the answers that patches are measured by, teacher-forced: what their scorer calls
right, as far as one run's logits tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workbench.errors import WorkbenchError
from workbench.tasks.batching import Row, encode, rows
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Choices, Generation, Loss


def answered(tokenizer: Any, prompts: PromptSet | Sequence[Prompt | str]) -> list[Row]:
    """Rows of prompts with their answers. Of choices, each of which must be one token, the answer
    is right where it is the likeliest of them, and the margin is the logit difference: what all
    choices share cancels.

    Raises WorkbenchError for choices of several tokens, which one run does not tell, and for
    answers that are written, or texts without any.
    """
    made = rows(tokenizer, prompts, answers=True)
    scorer = prompts.scorer if isinstance(prompts, PromptSet) else None
    if isinstance(scorer, Generation | Loss):
        raise WorkbenchError(
            f"Patches are measured by the logits of a given answer, and {prompts!r} is scored by "
            f"{scorer.name}; give prompts with fixed answers (--scorer continuation, or choices "
            "with --letters)."
        )
    if not isinstance(scorer, Choices):
        return made
    for prompt, row in zip(prompts, made, strict=True):
        _require_tokens(tokenizer, prompt, row)
    return [replace(row, choice=True) for row in made]


def _require_tokens(tokenizer: Any, prompt: Any, row: Row) -> None:
    """Raise WorkbenchError unless every choice is another single token."""
    longest = [prompt.target] if len(row.answer) > 1 else []
    for foil in prompt.foils:
        other = encode(tokenizer, Prompt(prompt.id, prompt.prompt, foil))
        longest += [foil] if len(other.ids) - other.start > 1 else []
    if longest or len(row.foils) < len(prompt.foils) or not prompt.foils:
        what = (
            f"{longest[0]!r} has several"
            if longest
            else "two answers are the same, or there is only one"
        )
        raise WorkbenchError(
            f"Patches choose among answers of one token each, and of prompt {prompt.id!r} {what}; "
            "read the file with letters=True (--letters), or score it as a continuation."
        )
