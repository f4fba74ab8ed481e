"""One pass of a model over texts of unequal length, batch by batch: what follows each token?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from workbench.loaders.devices import entry, home
from workbench.progress import progress
from workbench.tasks.batching import Encoded, in_batches, padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOON = 2.0  # seconds of work that no bar is drawn of


@contextlib.contextmanager
def ready(model: PreTrainedModel, device: str | torch.device | None) -> Iterator[torch.device]:
    """Evaluation mode without gradients; the model's mode and device come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    lies = home(model)
    where = entry(device) if device is not None else lies
    try:
        model.eval()
        if where != lies:
            model.to(where)  # pyright: ignore[reportArgumentType]
        with torch.inference_mode():
            yield where
    finally:
        for module, training in modes:
            module.training = training
        if where != lies:
            model.to(lies)  # pyright: ignore[reportArgumentType]


def predicted(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    fill: int,
    *,
    behind: bool = False,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, logits) for each text; logits (scored tokens, vocabulary) predict ids[start:], and
    with `behind` one row more, what would follow the text.

    Only one batch's logits live at a time.
    """
    lengths = [len(one.ids) for one in encoded]
    run = partial(_forward, model, encoded, device, fill)
    with progress(total=len(lengths), desc="texts read", delay=SOON) as bar:
        for places, logits in in_batches(lengths, batch_size, run):
            for row, index in enumerate(places):
                ids, start = encoded[index]
                yield index, logits[row, start - 1 : len(ids) - (not behind)]
            bar.update(len(places))


def _forward(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    device: torch.device,
    fill: int,
    places: Sequence[int],
) -> torch.Tensor:
    """Logits (rows, longest, vocabulary) of the texts at these places."""
    ids, mask = padded([encoded[i].ids for i in places], fill)
    return model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
