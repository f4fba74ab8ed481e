"""How does each side of a pair answer? Each side is read once for the same question, and the base
once for all members of a family."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.models.sides import named_dtype
from workbench.tasks.measure import Items, losses, own_samples
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers

Made = TypeVar("Made")
MOST = 400  # readings kept: small tables
_KEPT: dict[tuple[object, ...], Any] = {}


class Side:
    """One checkpoint as it is run; its model is loaded when a reading is not there yet."""

    def __init__(
        self, checkpoint: Checkpoint, words: Any, batch_size: int, device: str, dtype: str
    ) -> None:
        self.checkpoint, self.words = checkpoint, words
        self.batch_size, self.device, self.dtype = batch_size, device, dtype

    @cached_property
    def model(self) -> Any:
        return self.checkpoint.load(self.device, named_dtype(self.dtype)).eval()

    def answers(self, prompts: PromptSet, temperature: float = 1.0) -> pd.DataFrame:
        """`tasks.answers` of these prompts."""
        return self._read(
            ("answers", prompts.fingerprint, temperature),
            lambda: answers(
                *(self.model, self.words, prompts),
                batch_size=self.batch_size,
                temperature=temperature,
            ),
        )

    def losses(self, texts: Sequence[str]) -> Items:
        """Nats per token of each text."""
        asked = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        return self._read(
            ("losses", asked), lambda: losses(self.model, self.words, texts, self.batch_size)
        )

    def samples(self, n: int = 64, seed: int = 0) -> list[str]:
        """Texts drawn from this side itself, see `tasks.own_samples`."""
        return self._read(
            ("samples", n, seed), lambda: own_samples(self.model, self.words, n=n, seed=seed)
        )

    def _read(self, asked: tuple[object, ...], make: Callable[[], Made]) -> Made:
        key = (self.checkpoint.fingerprint, self.batch_size, self.device, self.dtype, *asked)
        if key not in _KEPT:
            _KEPT[key] = make()
            while len(_KEPT) > MOST:
                _KEPT.pop(next(iter(_KEPT)))
        return _KEPT[key]


def both(pair: CheckpointPair, batch_size: int, device: str, dtype: str) -> tuple[Side, Side]:
    """The base and the tuned side of a pair, asked in the base's tokens."""
    words = pair.base.tokenizer()
    base, tuned = (Side(one, words, batch_size, device, dtype) for one in (pair.base, pair.tuned))
    return base, tuned


def require_prompts(*sets: PromptSet) -> None:
    """Raises WorkbenchError for a set without prompts, or two of one name."""
    empty = [one.name for one in sets if not len(one)]
    if empty or not sets:
        raise WorkbenchError(f"Expected prompts to score; {', '.join(empty) or 'no set'} has none.")
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise WorkbenchError(f"Expected prompt sets of different names, found {names}.")
