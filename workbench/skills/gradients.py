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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import home, offloaded
from workbench.loaders.experts import running, stored_name, view
from workbench.loaders.names import ParameterSite, align, is_conv1d
from workbench.models import edit
from workbench.models.edits import Mask
from workbench.progress import progress
from workbench.skills.graft import Masks, inside, top
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id, rows

STEP = 32  # prompts a step of descent, however many fit in memory together
FLIP = 1e-4  # sigmoid(S) at the start, the paper's
START = float(np.float32(math.log(FLIP / (1 - FLIP))))  # exact in the state's float32


@dataclass
class Teacher:
    """The task's answers as a loss on a model of the base's architecture."""

    pair: CheckpointPair
    model: Any
    prompts: PromptSet
    batch_size: int

    def __post_init__(self) -> None:
        words = self.pair.base.tokenizer()
        self.rows: list[Row] = rows(words, self.prompts, answers=True)
        self.fill = pad_id(words)
        self.sites = inside(self.pair)
        config = self.pair.tuned.config
        self._turned = {s.name for s in self.sites if is_conv1d(s.name, config)}

    def require_gradients(self) -> None:
        """Raises WorkbenchError where parts of the model lie nowhere between their runs."""
        if any(map(offloaded, self.model.modules())):
            raise WorkbenchError(
                "Masks are learned and entries ranked by gradients of all parameters, but "
                'some of this model\'s are offloaded; give one device, such as "cuda:0", or leave '
                'out the arms "learned" and "gradient".'
            )

    def gradients(self, places: Sequence[int]) -> tuple[float, dict[str, Tensor]]:
        """Mean over these prompts of -log p(answer), nats, and its gradient by base name, each
        (out, in), at the parameters the model has now; none of a buffer, which is not trained."""
        own = dict(self.model.named_parameters())
        stored = running(self.model)
        named = align([s.name for s in self.sites], list(stored))
        trained = [s for s in self.sites if stored_name(stored[named[s.name]]) in own]
        lies = [stored[named[s.name]] for s in trained]
        # Of a tensor that holds all experts of a layer the gradient is taken once.
        wanted = {name: own[name] for name in map(stored_name, lies)}
        chosen = [self.rows[i] for i in places]
        loss, total = 0.0, []

        def run(some: list[int]) -> tuple[float, list[Tensor]]:
            with torch.enable_grad():
                nats = self.nats([chosen[i] for i in some]) / len(chosen)
                leaves = list(wanted.values())
                return nats.item(), list(torch.autograd.grad(nats, leaves, materialize_grads=True))

        before = [p.requires_grad for p in wanted.values()]
        try:
            for parameter in wanted.values():
                parameter.requires_grad_(True)
            for _, (nats, found) in in_batches([len(r.fed) for r in chosen], self.batch_size, run):
                loss += nats
                # Sums are float32 in any model; the first batch is taken as it is.
                if not total:
                    total = [one.float() for one in found]
                else:
                    for sum_, one in zip(total, found, strict=True):
                        sum_ += one
        finally:
            for parameter, was in zip(wanted.values(), before, strict=True):
                parameter.requires_grad_(was)
        whole = dict(zip(wanted, total, strict=True))
        shaped = {}
        for site, where in zip(trained, lies, strict=True):
            own_part = view(whole, where)
            turned = own_part.T if site.name in self._turned else own_part
            shaped[site.name] = turned.flatten(1) if turned.ndim > 2 else turned
        for site in self.sites:
            if site.name not in shaped:
                shaped[site.name] = torch.zeros(self.pair.shape(site.name), device=home(self.model))
        return loss, shaped

    def loss(self) -> float:
        """Mean over all prompts of -log p(answer), nats, at the parameters the model has now."""

        def run(some: list[int]) -> float:
            return self.nats([self.rows[i] for i in some]).item()

        lengths = [len(row.fed) for row in self.rows]
        with torch.inference_mode():
            return sum(n for _, n in in_batches(lengths, self.batch_size, run)) / len(lengths)

    def nats(self, chosen: list[Row]) -> Tensor:
        """Sum over prompts of -log p(answer)."""
        device = home(self.model)
        given = batch(chosen, range(len(chosen)), device, self.fill)
        logits = self.model(**given.inputs, use_cache=False).logits
        row = [i for i, one in enumerate(chosen) for _ in one.answer]
        place = [len(one.ids) - 1 + j for one in chosen for j in range(len(one.answer))]
        answer = [token for one in chosen for token in one.answer]
        return F.cross_entropy(
            logits[row, place].float(), torch.tensor(answer, device=device), reduction="sum"
        )


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
    pair, sites = teacher.pair, teacher.sites
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
