"""Interchanges of a subspace of one model's stream: run, trained, and scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from workbench.models import Site
from workbench.models.rerun import Rerun
from workbench.numerics import cosines
from workbench.tasks.batching import Row, batch, in_batches

Frame = Float[Tensor, "width k"]  # orthonormal columns
METRICS = ("score", "log_probability")


def interchanged(
    own: Float[Tensor, "*any width"], source: Float[Tensor, "*any width"], frame: Frame
) -> Float[Tensor, "*any width"]:
    """States with the source's part of a subspace."""
    return own + (source - own) @ frame @ frame.T


def overlap(first: Frame, second: Frame) -> float:
    """|Q1^T Q2|_F^2 / k: 0 for orthogonal subspaces of k dimensions, 1 for the same."""
    return float(cosines(first, second).double().square().mean())


@dataclass(frozen=True)
class Interchange:
    """One side's model and the pairs. ours: the base prompts with the counterfactual answers, of
    one token each. sources: by layer, what the model has at the position in the source prompts,
    (pairs, width). layers: behind which is interchanged. fill: the token that rows are padded with.

    The plain run of every batch is kept: what stands before the interchange is never run again.
    """

    model: Any
    ours: Sequence[Row]
    sources: Sequence[NDArray[np.float64]]
    layers: Sequence[int]
    position: int
    fill: int
    device: str
    _runs: dict[tuple[int, ...], Rerun] = field(default_factory=dict, repr=False, compare=False)

    def _plain(self, places: Sequence[int]) -> Rerun:
        known = self._runs.get(key := (*places,))
        if known is None:
            inputs = batch(self.ours, places, self.device, self.fill)
            read = [Site("resid_post", layer) for layer in self.layers]
            known = self._runs[key] = Rerun(self.model, inputs, read)
        return known

    def logits(self, places: Sequence[int], layer: int, frame: Frame | None) -> Tensor:
        """Logits (batch, vocabulary) behind the base prompts at these places, with the source's
        part of the subspace; of no subspace the plain run's. Gradients flow to the frame."""
        plain = self._plain(places)
        if frame is None:
            return plain.logits[0, :, 0].float()
        site = Site("resid_post", layer, position=self.position)
        own = plain.read(site)
        taken = torch.from_numpy(self.sources[layer][list(places)]).float()[:, None]
        made = interchanged(own.float(), taken.to(own.device), frame.to(own.device)).to(own.dtype)
        wanted = torch.is_grad_enabled() and frame.requires_grad
        return plain.again([{site: made}], gradients=wanted)[0, :, 0].float()

    def learned(
        self,
        places: Sequence[int],
        answers: Sequence[int],
        layer: int,
        start: Frame,
        *,
        steps: int,
        lr: float,
        batch_size: int,
        seed: int,
    ) -> Frame:
        """The subspace of the dimensions of `start` whose interchange gives these answers (pairs,)
        at these places, by Adam from `start` on."""
        # Without the trivialization, which completes the start by random columns.
        rotation = orthogonal(nn.Linear(*start.shape, bias=False), use_trivialization=False)
        rotation.weight = start.T.contiguous()
        parameters = list(rotation.parameters())
        optimizer = torch.optim.Adam(parameters, lr=lr)
        # The same batches in every training and for scores: their plain runs are made once.
        lengths = [len(self.ours[i].fed) for i in places]
        batches = [own for own, _ in in_batches(lengths, _even(len(places), batch_size), list)]
        draw, left = np.random.default_rng(seed), []
        for _ in range(steps):
            left = left or draw.permutation(len(batches)).tolist()
            chosen = batches[left.pop()]
            wanted = torch.tensor([answers[i] for i in chosen])
            with torch.enable_grad():
                logits = self.logits([places[i] for i in chosen], layer, rotation.weight.T)
                loss = nn.functional.cross_entropy(logits, wanted.to(logits.device))
                found = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step()
        return rotation.weight.detach().T.clone()

    def scores(
        self, places: Sequence[int], layer: int, frame: Frame | None, batch_size: int
    ) -> dict[str, NDArray[np.float64]]:
        """metric -> (places,), of the counterfactual answers."""
        found = {metric: np.full(len(places), np.nan) for metric in METRICS}

        def run(some: list[int]) -> tuple[Tensor, Tensor]:
            chosen = [places[i] for i in some]
            with torch.no_grad():
                logits = self.logits(chosen, layer, frame)
            wanted = torch.tensor([self.ours[i].answer[0] for i in chosen], device=logits.device)
            said = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
            return (logits.argmax(-1) == wanted).float(), said

        lengths, size = [len(self.ours[i].fed) for i in places], _even(len(places), batch_size)
        for some, both in in_batches(lengths, size, run):
            for metric, values in zip(METRICS, both, strict=True):
                found[metric][some] = values.cpu().numpy()
        return found


def _even(rows: int, batch_size: int) -> int:
    """The size of as many batches, none of which is much smaller than the others."""
    return math.ceil(rows / math.ceil(rows / batch_size))
