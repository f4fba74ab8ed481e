"""Prompts with known answers, and how a model scores on them."""

from workbench.tasks.conjugations import (
    Conjugation,
    leetspeak,
    permutation,
    pig_latin,
    renaming,
    rescaling,
    rewording,
)
from workbench.tasks.desiderata import (
    Counterfactual,
    Counterfactuals,
    corrupt,
    desiderata,
    whole_words,
)
from workbench.tasks.english import in_context, instructions, prose
from workbench.tasks.entity_tracking import boxes, boxes_prompts, moves
from workbench.tasks.family_tasks import arithmetic, copying, facts, ledger, narration, reversal
from workbench.tasks.formats import read
from workbench.tasks.groups import likeness
from workbench.tasks.known_circuits import greater_than, indirect_object
from workbench.tasks.marks import marked
from workbench.tasks.measurements import own_samples, read_text
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import answers, text_loss
from workbench.tasks.scorers import GSM8K, Choices, Continuation, Generation, Loss
from workbench.tasks.transforms import chat, many_shot, off_by_one, renamed, scrambled, shuffled

__all__ = [
    "GSM8K",
    "Choices",
    "Conjugation",
    "Continuation",
    "Counterfactual",
    "Counterfactuals",
    "Generation",
    "Loss",
    "Prompt",
    "PromptSet",
    "answers",
    "arithmetic",
    "boxes",
    "boxes_prompts",
    "chat",
    "copying",
    "corrupt",
    "desiderata",
    "facts",
    "greater_than",
    "in_context",
    "indirect_object",
    "instructions",
    "ledger",
    "leetspeak",
    "likeness",
    "many_shot",
    "marked",
    "moves",
    "narration",
    "off_by_one",
    "own_samples",
    "permutation",
    "pig_latin",
    "prose",
    "read",
    "read_text",
    "renamed",
    "renaming",
    "rescaling",
    "reversal",
    "rewording",
    "scrambled",
    "shuffled",
    "text_loss",
    "whole_words",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
