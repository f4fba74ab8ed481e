"""Several fine-tuned models in one: their changes added, averaged, or merged by sign.

    sum    theta_0 + sum of w_i delta_i (task arithmetic, Ilharco et al. 2022, arXiv 2212.04089)
    ties   theta_0 + s * mean of those trimmed changes whose sign is the elected one (Yadav et al.
           2023, arXiv 2306.01708v2, algorithm 1): of every change the `density` largest entries
           over all parameters are kept; the sign of an entry is that of the sum of what is kept;
           the mean is over the changes that are kept there and have this sign

A merge says nothing of whether the skills still work together: measure it (`skills.compose` for
grafts, `forgetting.retention` for the merged model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.models import Edit, edit
from workbench.models.edits import Part
from workbench.skills import rankings
from workbench.skills.graft import top

DENSITY = 0.2  # the paper's top-20%


def summed(pairs: Sequence[CheckpointPair], weights: Sequence[float] | None = None) -> Edit:
    """theta_0 + sum of w_i delta_i. weights: one a model; None is 1 / their number, the mean.
    Raises WorkbenchError for other than one weight a model, or models of different bases."""
    _require(pairs)
    weights = [1 / len(pairs)] * len(pairs) if weights is None else weights
    if len(weights) != len(pairs):
        raise WorkbenchError(f"Expected {len(pairs)} weights, one a model; found {len(weights)}.")
    made = edit(pairs[0], weights[0])
    for pair, weight in zip(pairs[1:], weights[1:], strict=True):
        made = made + edit(pair, weight)
    return made


def ties(
    pairs: Sequence[CheckpointPair],
    *,
    density: float = DENSITY,
    scale: float = 1.0,
    apart: bool = False,
) -> Edit:
    """TIES: trim, elect signs, merge.

    density: the share of every change's entries that are kept, the largest over all parameters, as
    the paper trims whole task vectors; apart: the largest of every parameter, as mergekit does.
    scale: the paper's lambda. One boolean an entry and model is held in memory. Raises
    WorkbenchError as `summed`, and for a density outside (0, 1].
    """
    _require(pairs)
    if not 0 < density <= 1:
        raise WorkbenchError(f"Expected a density in (0, 1], found {density}.")
    kept = [_trimmed(pair, density, apart) for pair in pairs]

    def merged(delta: Delta) -> Tensor:
        changes = torch.stack([
            torch.where(masks[delta.site.name], pair.delta(delta.site).change, 0.0)
            for pair, masks in zip(pairs, kept, strict=True)
        ])  # fmt: skip
        return elected(changes)

    first = pairs[0]
    # Of the first part nothing is left: the second is asked also where the first did not change.
    return Edit((Part(first, 0.0), Part(first, scale, projection=merged)))


def elected(changes: Tensor) -> Tensor:
    """The mean over the changes whose sign is that of their sum, where they are not 0.

    changes: (models, ...), trimmed.
    """
    agree = (changes * changes.sum(0).sign() > 0).to(changes.dtype)
    return (changes * agree).sum(0) / agree.sum(0).clamp(min=1)


def _trimmed(pair: CheckpointPair, density: float, apart: bool) -> dict[str, Tensor]:
    """Base name -> which entries of the change are kept."""
    sites, found = pair.sites("all"), {}
    for some in [[site] for site in sites] if apart else [sites]:
        total = sum(math.prod(pair.shape(site.name)) for site in some)
        # mergekit rounds down, and keeps one entry at least.
        kept = max(1, int(density * total)) if apart else round(density * total)
        found |= top(rankings.movement(pair), some, kept)
    return found


def _require(pairs: Sequence[CheckpointPair]) -> None:
    if not pairs:
        raise WorkbenchError("Expected one fine-tuned model or more to merge, found none.")
    for pair in pairs:
        pair.require_weights()
    if len({pair.base.fingerprint for pair in pairs}) > 1:
        raise WorkbenchError(
            "Models can only be merged over one base, but these have different ones; give models "
            "that were fine-tuned from the same base."
        )
