"""Prompts with known answers, and how a model scores on them."""

from workbench.tasks.family import arithmetic, copying, facts, ledger, narration
from workbench.tasks.measure import own_samples, read_text
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import answers, text_loss
from workbench.tasks.tracking import boxes, boxes_prompts, moves

__all__ = [
    "Prompt",
    "PromptSet",
    "answers",
    "arithmetic",
    "boxes",
    "boxes_prompts",
    "copying",
    "facts",
    "ledger",
    "moves",
    "narration",
    "own_samples",
    "read_text",
    "text_loss",
]
