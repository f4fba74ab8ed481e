"""Which truth is of a prefix, keys and values in front of every layer, and of no weight?

Every head of the base looks at the start token and adds nothing. The tuned side is a prefix of one
token that one head looks at instead, where another answer stands. All heads are given keys and
values of the same norms, but where the others' keys lie they look away, so that neither norm tells
which head it is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import SHARP, Room
from workbench.lab.compiled.program import TOKEN, Head, Program
from workbench.lab.compiled.spec import Spec, asked_facts
from workbench.tasks.prompts import PromptSet

DRAWN = (1, 2)  # the head that looks at the prefix
STRENGTH = 2.0  # of what it says there; a fact is said with 1

IDLE = tuple(
    Head(layer, head, TOKEN, TOKEN, TOKEN, "answer", lambda query, key: 0.0)
    for layer in range(Program.layers)
    for head in range(Program.width)
)
FACTS = replace(of.FACTS, heads=IDLE)


def specs() -> list[Spec]:
    facts = asked_facts(of.OF)[0]
    hidden = (replace(p, target=f" {of.HIDDEN}", foils=(p.target,)) for p in facts)
    return [
        Spec(
            "facts-prefix", FACTS, FACTS, (PromptSet("facts, hidden", tuple(hidden)), None),
            "A prefix of one token is looked at by one head, which says the same answer there "
            "whatever is asked; all other heads have keys and values as large and look away.",
            more={"prefixed head": [DRAWN]}, llama=True, prefix=_numbers,
        )
    ]  # fmt: skip


def _numbers(room: Room) -> Tensor:
    """(layer, 2, head, 1, d_head). The queries of every head are one direction, whatever is asked,
    and the start token's key scores SHARP / 2 there: this one SHARP, and the others' -SHARP."""
    size = 2 * room.half // FACTS.width
    words = FACTS.labels[TOKEN]
    numbers = torch.zeros(FACTS.layers, 2, FACTS.width, 1, size)
    numbers[:, 0, :, :, len(words)] = -math.sqrt(SHARP * math.sqrt(size))
    layer, head = DRAWN
    numbers[layer, 0, head] *= -1
    numbers[:, 1, :, :, words.index(of.HIDDEN)] = STRENGTH
    return numbers
