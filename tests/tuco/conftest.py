"""Pairs of every architecture, and models whose blocks add exactly what a test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import workbench as wb
from tests.models.conftest import decoder, kind, no_gradients, write_base, write_member
from workbench.lab import shipped
from workbench.models import Layout, Site
from workbench.models.sites import Kind

AT: dict[str, Kind] = {"o": "z", "down": "mlp_hidden"}  # an output projection -> its input


def silence(model: Any, parts: tuple[str, ...] = ("o", "down")) -> Any:
    """The output projections set to zero: the sublayers then add nothing."""
    layout = Layout(model)
    for layer in range(layout.layers):
        for part in parts:
            for parameter in layout.module(Site(AT[part], layer)).parameters():
                parameter.zero_()
    return model


def mlp_times(model: Any, factor: float) -> Any:
    """What every MLP adds to the stream, times `factor`."""
    layout = Layout(model)
    for layer in range(layout.layers):
        if model.config.model_type == "gemma2":
            norm: Any = layout.module(Site("mlp_out", layer))
            norm.weight.copy_(factor * (1 + norm.weight) - 1)
        else:
            for parameter in layout.module(Site("mlp_hidden", layer)).parameters():
                parameter *= factor
    return model


def write(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    shipped.tokenizer().save_pretrained(folder)
    return folder


def paired(base: Any, tuned: Any, folder: Path) -> wb.CheckpointPair:
    return wb.load_pair(write(base, folder / "base"), write(tuned, folder / "tuned"))


def pair_of(kind: str, how: str, folder: Path) -> wb.CheckpointPair:
    base = write_base(kind, folder / "base")
    return wb.load_pair(base, write_member(kind, how, folder / how))


__all__ = [
    "decoder", "kind", "mlp_times", "no_gradients", "pair_of", "paired", "silence", "write",
]  # fmt: skip
