"""Which texts does a training step see, and which of their tokens count?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.log import log
from workbench.tasks.batching import encode, pad_id, rows
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.transforms import told

POOL = 16


class Example(NamedTuple):
    """Token ids of one text; its loss counts the tokens from `start` on, and those at `more`."""

    ids: list[int]
    start: int
    more: tuple[int, ...] = ()


class Batches:
    """Batches as a function of the step alone, so that an interrupted run goes on exactly.

    Each epoch is a new permutation. Batches are made of texts of like length, within pools of 16
    batches, to spend little on padding.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int, fill: int) -> None:
        self.examples, self.batch_size, self.seed, self.fill = examples, batch_size, seed, fill
        self._epoch = lru_cache(maxsize=2)(self._permutation)
        self._pool = lru_cache(maxsize=1)(self._sorted_pool)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels: (batch, longest), int64, padded on the right."""
        chosen = [self.examples[i] for i in self._pool(step // POOL)[step % POOL]]
        shape = (len(chosen), max(len(one.ids) for one in chosen))
        ids = torch.full(shape, self.fill)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, (own, start, more) in enumerate(chosen):
            ids[i, : len(own)] = torch.tensor(own)
            mask[i, : len(own)] = 1
            for place in (*more, *range(start, len(own))):
                labels[i, place] = own[place]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.examples))

    def _sorted_pool(self, pool: int) -> np.ndarray:
        size, count = POOL * self.batch_size, len(self.examples)
        places = range(pool * size, (pool + 1) * size)
        drawn = np.array([self._epoch(p // count)[p % count] for p in places])
        drawn = drawn[np.argsort([len(self.examples[i].ids) for i in drawn], kind="stable")]
        order = np.random.default_rng([self.seed, 1, pool]).permutation(POOL)
        return drawn.reshape(POOL, self.batch_size)[order]


def prepare(
    tokenizer, texts: PromptSet | Sequence[Prompt] | Sequence[str], loss: str, max_length: int
) -> list[Example]:
    """Token ids of every text and the positions that count in the loss (see `Recipe`).

    Prompts that are chats are rendered by the tokenizer's own template, which is said. Raises where
    "answer" is asked of plain texts, or a text has nothing to learn from.
    """
    if isinstance(texts, PromptSet):
        texts, notes = told(texts, tokenizer, tokenizer)
        for note in notes:
            log.info("%s", note)
    given: list[Any] = list(texts)
    if not given:
        raise WorkbenchError(
            "Expected texts to train on, but the list is empty; give at least one."
        )
    if loss == "sequence":
        plain = [t if isinstance(t, str) else t.text for t in given]
        examples = [Example(ids, 1) for ids in tokenizer(plain)["input_ids"]]
    else:
        if isinstance(given[0], str):
            raise WorkbenchError(
                f'loss "{loss}" needs prompts with targets; plain texts have none.'
            )
        examples = [Example(*encode(tokenizer, p)) for p in given]
        if loss == "answers":
            examples = [
                Example(one.ids, one.start if more else 1, more)
                for one, more in zip(examples, _told(tokenizer, given), strict=True)
            ]
    examples = [
        Example(e.ids[:max_length], e.start, tuple(m for m in e.more if m < max_length))
        for e in examples
    ]
    short = sum(len(e.ids) <= e.start and not e.more for e in examples)
    if short:
        raise WorkbenchError(
            f"{short} of {len(examples)} texts have no token to learn from within {max_length} "
            "tokens; drop them or raise max_length."
        )
    return examples


def _told(tokenizer: Any, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """The tokens of the answers that stand in each prompt, its spans "answer 1" and so on."""
    return [
        tuple(
            place
            for name, (first, end) in row.spans.items()
            if name.startswith("answer ")
            for place in range(first, end)
        )
        for row in rows(tokenizer, prompts)
    ]


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 over token ids and counted positions, in order."""
    # Texts whose loss has no further positions keep the fingerprint they had before there were any.
    plain = [list(e) if e.more else [e.ids, e.start] for e in examples]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def batches(examples: Sequence[Example], batch_size: int, seed: int, tokenizer) -> Batches:
    """`Batches` filled with the tokenizer's own padding token."""
    return Batches(examples, batch_size, seed, pad_id(tokenizer))
