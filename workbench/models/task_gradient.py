"""Answers or texts as a loss on a running model, and its gradient at the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import home, offloaded
from workbench.loaders.experts import running, stored_name, view
from workbench.loaders.names import ParameterSite, align, is_conv1d
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id, padded, rows
from workbench.tasks.score import pieces


def inside(pair: CheckpointPair) -> list[ParameterSite]:
    """The parameters a graft is chosen among: everything in the blocks."""
    sites = [site for site in pair.sites("all") if site.layer is not None]
    if not sites:
        raise WorkbenchError(f"{pair.name} has no parameters in numbered layers to graft.")
    return sites


def gradients_of(
    nats: Callable[[list[int]], Tensor],
    parameters: Mapping[str, Tensor],
    lengths: Sequence[int],
    batch_size: int,
) -> tuple[float, dict[str, Tensor]]:
    """A loss that is summed over batches of texts, and its gradient by name, float32 in any model;
    zero where a parameter has no part in it. Which parameters are trained is as it was afterwards.

    nats: the loss of some texts, by place. lengths: of all texts, in tokens.
    """
    before = [p.requires_grad for p in parameters.values()]
    loss, total = 0.0, []

    def run(some: list[int]) -> tuple[float, tuple[Tensor, ...]]:
        with torch.enable_grad():
            own = nats(some)
            found = torch.autograd.grad(own, list(parameters.values()), materialize_grads=True)
        return own.item(), found

    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for _, (own, found) in in_batches(lengths, batch_size, run):
            loss += own
            # The first batch is taken as it is.
            if not total:
                total = [one.float() for one in found]
            else:
                for sum_, one in zip(total, found, strict=True):
                    sum_ += one
    finally:
        for parameter, was in zip(parameters.values(), before, strict=True):
            parameter.requires_grad_(was)
    return loss, dict(zip(parameters, total, strict=True))


def by_site(
    pair: CheckpointPair,
    model: Any,
    nats: Callable[[list[int]], Tensor],
    lengths: Sequence[int],
    batch_size: int,
) -> tuple[float, dict[str, Tensor]]:
    """A loss as in `gradients_of` on a model of the base's architecture, and its gradient at every
    parameter in the blocks by base name, each (out, in); zero of a buffer, which is not trained."""
    own, stored, sites = dict(model.named_parameters()), running(model), inside(pair)
    named = align([s.name for s in sites], list(stored))
    trained = [s for s in sites if stored_name(stored[named[s.name]]) in own]
    lies = [stored[named[s.name]] for s in trained]
    # Of a tensor that holds all experts of a layer the gradient is taken once.
    wanted = {name: own[name] for name in map(stored_name, lies)}
    loss, whole = gradients_of(nats, wanted, lengths, batch_size)
    shaped = {}
    for site, where in zip(trained, lies, strict=True):
        found = view(whole, where)
        turned = found.T if is_conv1d(site.name, pair.tuned.config) else found
        shaped[site.name] = turned.flatten(1) if turned.ndim > 2 else turned
    for site in sites:
        if site.name not in shaped:
            shaped[site.name] = torch.zeros(pair.shape(site.name), device=home(model))
    return loss, shaped


def text_gradients(
    pair: CheckpointPair, model: Any, texts: Sequence[str], batch_size: int = 4
) -> dict[str, Tensor]:
    """The gradient of the mean loss of texts, in nats a token, by base name, each (out, in), at the
    parameters that the model has now. Texts longer than the model reads are cut, as they are where
    their loss is measured (`tasks.score.text_loss`)."""
    require_gradients(model)
    words = pair.base.tokenizer()
    parts = [part.ids for part in pieces(model, words, texts)[0] if len(part.ids) > 1]
    total, fill = sum(len(ids) - 1 for ids in parts), pad_id(words)

    def nats(some: list[int]) -> Tensor:
        ids, mask = (one.to(home(model)) for one in padded([parts[i] for i in some], fill))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        kept = mask[:, 1:].bool()
        return F.cross_entropy(logits[kept].float(), ids[:, 1:][kept], reduction="sum") / total

    return by_site(pair, model, nats, [len(ids) for ids in parts], batch_size)[1]


def require_gradients(model: Any) -> None:
    """Raises WorkbenchError where parts of the model lie nowhere between their runs."""
    if any(map(offloaded, model.modules())):
        raise WorkbenchError(
            "Expected all parameters on one device, since their gradients are taken, but some of "
            'this model\'s are offloaded; give one device, such as "cuda:0", or leave out what '
            "needs gradients."
        )


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

    def gradients(self, places: Sequence[int]) -> tuple[float, dict[str, Tensor]]:
        """Mean over these prompts of -log p(answer), nats, and its gradient by base name, each
        (out, in), at the parameters the model has now; none of a buffer, which is not trained."""
        chosen = [self.rows[i] for i in places]

        def nats(some: list[int]) -> Tensor:
            return self.nats([chosen[i] for i in some]) / len(chosen)

        lengths = [len(row.fed) for row in chosen]
        return by_site(self.pair, self.model, nats, lengths, self.batch_size)

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
