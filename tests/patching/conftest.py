"""Prompts of the small world, and pairs whose difference lies in one planted place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import workbench as wb
from tests.models.conftest import decoder, kind, no_gradients
from tests.tuco.conftest import pair_of, paired, silence, write
from workbench.lab import shipped
from workbench.models import Layout
from workbench.tasks import PromptSet

WORDS = len(shipped.tokenizer())


def model(kind: str = "llama", **more: Any) -> Any:
    """A random decoder that knows every word of the small world."""
    return decoder(kind, vocab_size=WORDS, max_position_embeddings=128, **more)


def boxes(n: int = 6, **more: Any) -> PromptSet:
    options: dict[str, Any] = {"count": 3} | more
    return wb.tasks.boxes(n, seed=3, split="test", **options)


def planted(folder: Path, layer: int, part: str, factor: float = 3.0, **more: Any) -> Any:
    """A pair that differs in one layer's output projection ("o", "down") alone."""
    base, tuned = model(**more), model(**more)
    layout = Layout(tuned)
    names = layout.architecture
    module: Any = layout.block(layer).get_submodule(getattr(names, part))
    module.weight.mul_(factor)
    return paired(base, tuned, folder)


def value(result: Any, metric: str, **where: Any) -> torch.Tensor:
    """Values of a metric, arm "patch" unless told, in the table's order."""
    rows = result.metric(metric)
    for column, wanted in ({"arm": "patch"} | where).items():
        rows = rows[rows[column] == wanted]
    return torch.tensor(rows["value"].to_numpy(float))


__all__ = [
    "boxes", "decoder", "kind", "model", "no_gradients", "pair_of", "paired", "planted", "silence",
    "value", "write",
]  # fmt: skip
