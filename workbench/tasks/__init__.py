"""Prompts with known answers, and how a model scores on them."""

from workbench.tasks.desiderata import (
    Counterfactual,
    Counterfactuals,
    corrupt,
    desiderata,
    whole_words,
)
from workbench.tasks.english import in_context, instructions, prose
from workbench.tasks.family import arithmetic, copying, facts, ledger, narration, reversal
from workbench.tasks.measure import own_samples, read_text
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import answers, text_loss
from workbench.tasks.tracking import boxes, boxes_prompts, moves
from workbench.tasks.transform import chat, many_shot, renamed

__all__ = [
    "Counterfactual",
    "Counterfactuals",
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
    "in_context",
    "instructions",
    "ledger",
    "many_shot",
    "moves",
    "narration",
    "own_samples",
    "prose",
    "read_text",
    "renamed",
    "reversal",
    "text_loss",
    "whole_words",
]
