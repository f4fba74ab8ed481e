"""The fine-tuned matrices themselves, truncated: how much of each does the task need?

A share of a matrix's singular values is kept, the largest. One share for all says how it goes on
average; SeTAR (Li et al. 2024, arXiv 2406.12629) chooses one for each matrix, from the last matrix
backwards, each time the share with the least loss beside those chosen before. The loss is that of
the answers on prompts that are not reported; the control are the same shares dealt to the same
matrices at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit
from workbench.numerics import svd
from workbench.progress import progress
from workbench.skills.scoring import Reading, Readout, split
from workbench.stats import auc
from workbench.tasks import PromptSet

Shares = dict[ParameterSite, float]


def low_rank(matrix: Tensor, share: float) -> Tensor:
    """The best approximation of a matrix by the largest `share` of its singular values."""
    return _kept(svd(matrix.float()), share)


def _kept(parts: tuple[Tensor, Tensor, Tensor], share: float) -> Tensor:
    left, values, right = parts
    kept = math.ceil(share * len(values))
    return (left[:, :kept] * values[:kept]) @ right[:kept]


class Truncation:
    """The tuned side of a pair with some of its matrices truncated; each is decomposed once."""

    def __init__(self, pair: CheckpointPair) -> None:
        self.pair = pair
        self.parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def edit(self, shares: Mapping[ParameterSite, float]) -> Edit:
        """shares: of the singular values that are left, by matrix; the others stay whole."""
        named = {site.name: share for site, share in shares.items() if share < 1}

        def less(delta: Delta) -> Tensor:
            name = delta.site.name
            if name not in self.parts:
                self.parts[name] = svd(delta.tuned.float())
            return _kept(self.parts[name], named[name]) - delta.tuned.float()

        cut = edit(self.pair, mask=lambda site: site.name in named, projection=less)
        return edit(self.pair) + cut if named else edit(self.pair)


def greedy(
    loss: Callable[[Shares], float], sites: Sequence[ParameterSite], shares: Sequence[float]
) -> Shares:
    """The share of each matrix, the last one first, each with the least loss beside those chosen
    before; of equal losses the largest share."""
    chosen: Shares = {}
    for site in progress(list(reversed(sites)), desc="shares"):
        tried = sorted({*shares, 1.0}, reverse=True)
        losses = [loss(chosen | {site: share}) for share in tried]
        chosen[site] = tried[int(np.argmin(losses))]
    return chosen


def dealt(chosen: Shares, seed: int) -> Shares:
    """The same shares at random among the same matrices."""
    order = np.random.default_rng([seed, len(chosen)]).permutation(len(chosen))
    values = list(chosen.values())
    return {site: values[i] for site, i in zip(chosen, order, strict=True)}


def answer_loss(readout: Readout, choose: PromptSet, truncation: Truncation) -> Callable:
    """Shares -> minus the mean log-probability of the answers, nats, on the prompts that choose."""

    def loss(shares: Shares) -> float:
        with torch.inference_mode(), truncation.edit(shares).on(readout.model):
            return -float(readout.answers(choose)["log_probability"].mean())

    return loss


def greedily(
    readout: Readout, prompts: PromptSet, shares: Sequence[float], most: int
) -> Iterator[dict[str, Any]]:
    """The last `most` matrices truncated each by its own share, chosen on one half of the prompts;
    the tuned model and the same shares dealt at random beside it, on the other half."""
    choose, report = split(prompts, (1, 1), readout.seed)
    pair = readout.pair
    half = Readout(
        pair, (report, *readout.sets[1:]), readout.model, readout.batch_size, readout.seed
    )
    truncation, sites = Truncation(pair), pair.sites()[-most:]
    chosen = greedy(answer_loss(half, choose, truncation), sites, shares)
    for site, share in chosen.items():
        told = {"arm": "greedy", "metric": "share", "value": share, "own": True}
        yield told | site.place | {"baseline": float(np.mean([*chosen.values()]))}
    other = dealt(chosen, readout.seed)
    for arm, reading in (
        ("tuned, reported half", half.tuned),
        ("greedy", half.read(truncation.edit(chosen))),
        ("dealt at random", half.read(truncation.edit(other))),
    ):
        yield from half.rows(reading, arm=arm)
        yield from told_apart(half, reading, {"arm": arm})


def told_apart(
    readout: Readout, reading: Reading, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """AUROC by which the task's prompts are told from each other set: by the confidence of the
    first token, and by minus the energy there."""
    for metric, column, sign in (("auroc", "confidence", 1), ("energy_auroc", "energy", -1)):
        own, *others = (sign * one[column].to_numpy(float) for one in reading)
        first, *rest = (sign * one[column].to_numpy(float) for one in readout.base)
        for prompts, here, before in zip(readout.sets[1:], others, rest, strict=True):
            told = about | {"task": prompts.name, "own": False, "metric": metric}
            yield told | auc(own, here)._asdict() | {"baseline": auc(first, before).value}
