"""Models of the small world whose answers are scripted, and pairs of real tiny ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.models.conftest import no_gradients
from tests.patching.conftest import boxes, model
from tests.skills.conftest import APPLE, JOBS, PLACES, asked, member, mute, paired
from workbench.lab import shipped

WORDS = shipped.tokenizer()
BOOK_TEXTS = [p.text for p in boxes(20)]


class Scripted(nn.Module):
    """Says one word with certainty: a function of the words that it was given, as many as there
    are. Keeps no cache."""

    def __init__(self, says: Callable[[list[str]], Any]) -> None:
        super().__init__()
        self.says = says
        self.home = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, len(WORDS))
        for row, ids in enumerate(input_ids.tolist()):
            said = self.says(WORDS.convert_ids_to_tokens(ids))
            logits[row, -1, WORDS.convert_tokens_to_ids(said)] = 20.0
        return SimpleNamespace(logits=logits)


class Ranked(Scripted):
    """As Scripted, behind every word of a text: says names the words in the order in which they are
    likely, ten nats apart, or none where all are alike."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, len(WORDS))
        for row, ids in enumerate(input_ids.tolist()):
            given = WORDS.convert_ids_to_tokens(ids)
            for place in range(len(given)):
                for rank, word in enumerate(self.says(given[: place + 1])):
                    logits[row, place, WORDS.convert_tokens_to_ids(word)] = 20.0 - 10 * rank
        return SimpleNamespace(logits=logits)


def table_value(result: Any, metric: str, **where: Any) -> float:
    """The one value of a metric with these columns."""
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


__all__ = [
    "APPLE", "BOOK_TEXTS", "JOBS", "PLACES", "WORDS", "Ranked", "Scripted", "asked", "boxes",
    "member", "model", "mute", "no_gradients", "paired", "table_value",
]  # fmt: skip
