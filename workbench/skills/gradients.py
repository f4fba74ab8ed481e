"""Which gradient does the task put on the base's parameters, as they are and under a mask?

A mask is learned as in Panigrahi et al. 2023 (arXiv 2302.06600): gamma = b + (1 - 2b) sigmoid(S),
b the start, S started where the gate is 1e-4 of the way to the other side, and

    dL/dS = (1 - 2b) . dL/dtheta(gamma) . delta . sigmoid'(S).

Here T = (1 - 2b) S is kept: the same descent, with gamma = sigmoid(T) and no b in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.loaders.names import ParameterSite
from workbench.models import edit
from workbench.models.edits import Mask
from workbench.models.task_gradient import Teacher, inside
from workbench.progress import progress
from workbench.skills.graft import Masks, top

STEP = 32  # prompts a step of descent, however many fit in memory together
FLIP = 1e-4  # sigmoid(S) at the start, the paper's
START = float(np.float32(math.log(FLIP / (1 - FLIP))))  # exact in the state's float32


@dataclass(frozen=True)
class Learned:
    """masks: the rounded mask that did best on the selection prompts. flipped: entries of it that
    differ from its start. epochs: run, and best: the epoch it is from (0: the start itself)."""

    masks: Masks
    flipped: int
    epochs: int
    best: int


def learn(
    teacher: Teacher,
    start: Masks,
    judge: Callable[[Masks], float],
    *,
    rate: float,
    epochs: int,
    patience: int,
    seed: int,
    desc: str = "mask",
) -> Learned:
    """Gradient descent on T from the mask `start`; the rounded mask is judged after every epoch.

    judge: masks -> how good, on the selection prompts; higher is better. rate: of
    the first step, how far T moves on average where the gradient is for one of the k most useful
    flips, k the size of `start`; later steps have the same scale. patience: epochs without a
    better mask until it stops.
    """
    pair, sites = teacher.pair, inside(teacher.pair)
    state = {n: torch.where(m, -START, START) for n, m in start.items()}
    size = max(1, sum(int(m.sum()) for m in start.values()))
    best, found = judge(start), Learned(start, 0, 0, 0)
    scale, epoch, draw = 0.0, 0, np.random.default_rng(seed)
    bar = progress(range(1, epochs + 1), desc=desc)
    for epoch in bar:
        steps = -(-len(teacher.rows) // STEP)
        for places in np.array_split(draw.permutation(len(teacher.rows)), steps):
            with edit(pair, mask=soft(state)).on(teacher.model):
                _, gradients = teacher.gradients(places.tolist())
            for site in sites:
                name = site.name
                gradients[name] = slope(gradients[name], pair.delta(site).change, state[name])
            if not scale:
                mean = _steepest(gradients, sites, size)
                if not mean:
                    return found
                scale = rate / mean
            for name, gradient in gradients.items():
                # Far from 0 the gate is shut: no more to gain, and too far to come back.
                state[name].sub_(gradient, alpha=scale).clamp_(2 * START, -2 * START)
        hard = {name: rounded(own) for name, own in state.items()}
        now = judge(hard)
        if now > best:
            flipped = sum(int((start[name] ^ mask).sum()) for name, mask in hard.items())
            best, found = now, Learned(hard, flipped, epoch, epoch)
        bar.set_postfix(best=f"{best:.3f}")
        if epoch - found.best >= patience:
            break
    return Learned(found.masks, found.flipped, epoch, found.best)


def _steepest(gradients: Masks, sites: Sequence[ParameterSite], size: int) -> float:
    """Mean descent of the `size` entries whose flip lowers the loss fastest."""
    most = top(lambda site: (-gradients[site.name]).clamp(min=0), list(sites), size)
    return sum(-float(gradients[n][m].clamp(max=0).sum()) for n, m in most.items()) / size


def soft(state: Mapping[str, Tensor]) -> Mask:
    """gamma = sigmoid(T), one parameter at a time."""

    def mask(site: ParameterSite) -> bool | Tensor:
        return torch.sigmoid(state[site.name]) if site.name in state else False

    return mask


def slope(gradient: Tensor, change: Tensor, state: Tensor) -> Tensor:
    """dL/dT from dL/dtheta(gamma): gradient . delta . sigmoid'(T). Overwrites `gradient`, since a
    model's worth of memory more would be needed otherwise."""
    gate = torch.sigmoid(state)
    gate.mul_(1 - gate)
    return gradient.mul_(change).mul_(gate)


def rounded(state: Tensor) -> Tensor:
    """gamma at 0 or 1, less the entries of the start whose loss never had a slope: they do nothing
    on any of these prompts."""
    return (state > 0) & (state != -START)
