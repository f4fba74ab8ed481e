"""Which entries first? Orders of the entries of a pair's parameters that a graft can be cut from.

Each gives a non-negative score for one parameter; `graft.top` takes the largest over all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from workbench.loaders import CheckpointPair
from workbench.loaders.names import ParameterSite
from workbench.numerics import svd

Scores = Callable[[ParameterSite], Tensor]
PRINCIPAL_RANK = 128  # LIFT's rank of the base is 128 in most of its tables
TINY = 1e-8


def movement(pair: CheckpointPair) -> Scores:
    """|theta_1 - theta_0|."""
    return lambda site: pair.delta(site).change.abs()


def relative(pair: CheckpointPair) -> Scores:
    """|theta_1 - theta_0| / (|theta_0| + e)."""
    return lambda site: movement(pair)(site) / (pair.delta(site).base.float().abs() + TINY)


def smallest(pair: CheckpointPair) -> Scores:
    """The least movement first; entries that did not move at all come first of all."""
    return lambda site: 1 / (movement(pair)(site) + TINY**4)


def magnitude(pair: CheckpointPair) -> Scores:
    """|theta_0|."""
    return lambda site: pair.delta(site).base.float().abs()


def principal(pair: CheckpointPair, rank: int = PRINCIPAL_RANK) -> Scores:
    """|best rank-r approximation of theta_0|, the principal weights of LIFT (arXiv 2506.00772); r
    at most a quarter of the smaller side, since at full rank it is the magnitude."""
    kept: dict[str, Tensor] = {}

    def scores(site: ParameterSite) -> Tensor:
        if site.name not in kept:
            base = pair.delta(site).base.float()
            if base.ndim < 2:
                kept[site.name] = base.abs()
            else:
                r = max(1, min(rank, min(base.shape) // 4))
                left, values, right = svd(base)
                kept[site.name] = ((left[:, :r] * values[:r]) @ right[:r]).abs()
        return kept[site.name]

    return scores


def gradient(found: Mapping[str, Tensor]) -> Scores:
    """|mean gradient of the task's loss| at the base."""
    return lambda site: found[site.name].abs()


def random(pair: CheckpointPair, seed: int | str) -> Scores:
    """Uniform noise, the same for one parameter and seed whatever else is there."""

    def scores(site: ParameterSite) -> Tensor:
        base = pair.delta(site).base
        own = int(hashlib.sha256(f"{site.name}/{seed}".encode()).hexdigest()[:15], 16)
        noise = torch.rand(base.shape, generator=torch.Generator().manual_seed(own))
        return noise.to(base.device)

    return scores
