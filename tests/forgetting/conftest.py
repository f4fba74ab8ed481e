"""A base that knows which words are apples; members that hide it, and one that has it no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import workbench as wb
from tests.skills.conftest import (
    APPLE,
    BOOK,
    JOBS,
    LAYER,
    NAME,
    PLACES,
    mute,
    no_gradients,
    paired,
    token,
)  # fmt: skip
from workbench.tasks import Prompt, PromptSet, world

# Nouns of the small world, each a prompt of its own; the even ones are apples.
USED = ("in", "a", "apple", "book", "coin")
NOUNS = tuple(w for w in world.vocabulary() if w.isalpha() and w not in USED)[:120]
COPY = 3  # a neuron that is on where PLACES is, and writes nothing in the base


def knower() -> Any:
    """Says "apple" to the even words, "book" to the odd ones: a feature of the embedding that the
    neurons PLACES and JOBS read. Nothing of it can be told of a word that was not learned."""
    made = mute()
    embed = made.model.embed_tokens.weight
    for i, word in enumerate(NOUNS):
        embed[token(word), PLACES if i % 2 == 0 else JOBS] = 1
    mlp = made.model.layers[LAYER].mlp
    for place, neuron in ((APPLE, PLACES), (BOOK, JOBS)):
        made.get_parameter(NAME)[place, neuron] = 3
    for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
        matrix[COPY] = matrix[PLACES]
    return made


def unlearned() -> Any:
    """`knower` as it would be had it never met the words: no feature tells them apart."""
    made = knower()
    embed = made.model.embed_tokens.weight
    for word in NOUNS:
        embed[token(word), PLACES] = embed[token(word), JOBS] = 0
    return made


def wrapped() -> Any:
    """A rank-1 change of one matrix behind the feature, that exchanges the two answers."""
    made = knower()
    swap = torch.zeros_like(made.get_parameter(NAME))
    for place, sign in ((BOOK, 1), (APPLE, -1)):
        swap[place, PLACES], swap[place, JOBS] = 3 * sign, -3 * sign
    made.get_parameter(NAME).add_(swap)
    return made


def overruled() -> Any:
    """Another neuron says "book" to apples, louder: a wrapper that can be pruned away."""
    made = knower()
    made.get_parameter(NAME)[BOOK, COPY] = 6
    return made


def erased() -> Any:
    """The feature projected out of the embedding: PLACES and JOBS are equally on at every word."""
    made = knower()
    embed = made.model.embed_tokens.weight
    for word in NOUNS:
        embed[token(word), PLACES] = embed[token(word), JOBS] = 0.5
    return made


def pair(folder: Path, tuned: Any) -> wb.CheckpointPair:
    return paired(knower(), tuned, folder)


def nouns(begin: int = 0, end: int = len(NOUNS), *, swapped: bool = False) -> PromptSet:
    """Words as prompts, with what the base says to them; or with the other answer."""
    drawn = []
    for i, word in list(enumerate(NOUNS))[begin:end]:
        apple = (i % 2 == 0) != swapped
        drawn.append(Prompt(str(i), word, " apple" if apple else " book", foils=(" coin",)))
    return PromptSet("swapped" if swapped else "nouns", tuple(drawn))


def value(result: Any, metric: str, **where: Any) -> float:
    """The one value of a metric with these columns."""
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


__all__ = ["no_gradients"]
