"""The residual stream of one model at one token of every prompt, at every depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.models import Layout, Site, capture
from workbench.models.trial import last_alone
from workbench.progress import progress
from workbench.tasks.batching import Row, batch, in_batches

Floats = NDArray[np.float64]


def depths(layout: Layout, position: int = -1) -> list[Site]:
    """The streams that are read: the embedding's, then every layer's."""
    layers = [Site("resid_post", layer, position=position) for layer in range(layout.layers)]
    return [Site("resid_pre", 0, position=position), *layers]


def streams(
    model: Any,
    given: Sequence[Row],
    *,
    fill: int,
    batch_size: int,
    device: str,
    positions: Sequence[int] = (-1,),
    label: str = "states",
) -> list[Floats]:
    """The states (prompts, positions, width) of every depth, the embedding's first, of one side's
    model. positions: as a Site counts them, -1 the prompt's last token. fill: the token that rows
    are padded with. label: of the progress bar."""
    layout = Layout(model)
    sites = [depths(layout, position) for position in positions]
    flat = [site for own in sites for site in own]

    def read(at: list[int]) -> Mapping[Site, Any]:
        inputs = batch(given, at, device, fill)
        with torch.no_grad(), capture(model, flat, at=inputs.index) as seen:
            model(**inputs.inputs, use_cache=False, **last_alone(layout.root))
        return {site: seen[site][:, 0].double().cpu().numpy() for site in flat}

    lengths = [len(row.fed) for row in given]
    kept: list[list[Any]] = [[None] * len(given) for _ in sites[0]]
    for at, seen in progress(list(in_batches(lengths, batch_size, read)), desc=label):
        for depth, own in enumerate(zip(*sites, strict=True)):
            for place, state in zip(at, np.stack([seen[s] for s in own], axis=1), strict=True):
                kept[depth][place] = state
    return [np.stack(states) for states in kept]
