"""Which texts does a training step see, and which of their tokens count?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import Encoded, encode, pad_id

POOL = 16


class Batches:
    """Batches as a function of the step alone, so that an interrupted run goes on exactly.

    Each epoch is a new permutation. Batches are made of texts of like length, within pools of 16
    batches, to spend little on padding.
    """

    def __init__(self, examples: Sequence[Encoded], batch_size: int, seed: int, fill: int) -> None:
        self.examples, self.batch_size, self.seed, self.fill = examples, batch_size, seed, fill
        self._epoch = lru_cache(maxsize=2)(self._permutation)
        self._pool = lru_cache(maxsize=1)(self._sorted_pool)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels: (batch, longest), int64, padded on the right."""
        rows = [self.examples[i] for i in self._pool(step // POOL)[step % POOL]]
        shape = (len(rows), max(len(row.ids) for row in rows))
        ids = torch.full(shape, self.fill)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, (own, start) in enumerate(rows):
            ids[i, : len(own)] = torch.tensor(own)
            mask[i, : len(own)] = 1
            labels[i, start : len(own)] = torch.tensor(own[start:])
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
) -> list[Encoded]:
    """Token ids of every text and the first position that counts in the loss.

    Raises where "answer" is asked of plain texts, or a text has nothing to learn from.
    """
    given: list[Any] = list(texts)
    if not given:
        raise WorkbenchError("Expected texts to train on; the list is empty.")
    if loss == "answer":
        if isinstance(given[0], str):
            raise WorkbenchError('loss "answer" needs prompts with targets; plain texts have none.')
        examples = [encode(tokenizer, p) for p in given]
    else:
        plain = [t if isinstance(t, str) else t.text for t in given]
        examples = [Encoded(ids, 1) for ids in tokenizer(plain)["input_ids"]]
    examples = [Encoded(e.ids[:max_length], e.start) for e in examples]
    short = sum(len(e.ids) <= e.start for e in examples)
    if short:
        raise WorkbenchError(
            f"{short} of {len(examples)} texts have no token to learn from within {max_length} "
            "tokens; drop them or raise max_length."
        )
    return examples


def fingerprint(examples: Sequence[Encoded]) -> str:
    """sha256 over token ids and first scored positions, in order."""
    return hashlib.sha256(json.dumps([list(e) for e in examples]).encode()).hexdigest()


def batches(examples: Sequence[Encoded], batch_size: int, seed: int, tokenizer) -> Batches:
    """`Batches` filled with the tokenizer's own padding token."""
    return Batches(examples, batch_size, seed, pad_id(tokenizer))
