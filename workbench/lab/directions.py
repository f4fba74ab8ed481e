"""What is a change like that learned nothing? Its own, in random directions or in another layer."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.loaders.adapters import Factors
from workbench.rotations import haar, rotated


def redirected(change: Float[Tensor, "n m"], noise: torch.Generator) -> Float[Tensor, "n m"]:
    """The same singular values in random directions, among the rows and the columns that changed;
    of a vector, (n, 1), the same norm."""
    rows, columns = change.any(1), change.any(0)
    own = change[rows][:, columns]
    turned = rotated(rotated(own, noise).T, noise).T if own.numel() else own
    found = torch.zeros_like(change)
    found[rows.nonzero(), columns.nonzero().T] = turned
    return found


def redirected_factors(factors: Factors, noise: torch.Generator) -> Factors:
    """The same for a change of low rank: each factor keeps its own singular values too, so that
    both are as large as they were."""
    up, down = factors.up.double(), factors.down.double()
    left, right = torch.linalg.qr(up)[1], torch.linalg.qr(down.T)[1]
    first = haar(len(up), len(left), noise, torch.float64)
    second = haar(down.shape[1], len(right), noise, torch.float64)
    return Factors(first @ left, (second @ right).T)


def exchanged(
    parts: Mapping[str, tuple[int | None, str, tuple[int, ...]]], seed: int
) -> dict[str, str]:
    """Part -> the part whose change it gets: the same component of another layer. Layers whose
    components and shapes are the same go round in a random cycle, so that none keeps its own.

    parts: name -> (layer, component, shape) of what changed; those that have no such other layer
    are left out.
    """
    kit: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, (layer, component, shape) in parts.items():
        if layer is not None:
            kit.setdefault(layer, {})[component] = (name, shape)
    alike: dict[frozenset[Any], list[int]] = {}
    for layer, own in kit.items():
        shapes = frozenset((component, shape) for component, (_, shape) in own.items())
        alike.setdefault(shapes, []).append(layer)
    draw = random.Random(f"layers {seed}")
    found = {}
    for layers in alike.values():
        draw.shuffle(layers)
        for layer, other in zip(layers, layers[1:] + layers[:1], strict=True):
            if layer != other:
                found |= {name: kit[other][part][0] for part, (name, _) in kit[layer].items()}
    return found
