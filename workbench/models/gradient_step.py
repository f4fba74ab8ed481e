"""One step of gradient descent, taken and undone: the gradient of a loss on answers, and a model
whose parameters have moved along it for as long as a block lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.loaders.devices import home
from workbench.models.task_gradient import gradients_of, require_gradients
from workbench.tasks.batching import Encoded, encode, pad_id, padded
from workbench.tasks.prompts import Prompt

Gradients = Mapping[str, Tensor]


def answer_gradients(
    model: Any, words: Any, prompts: Sequence[Prompt], batch_size: int = 32
) -> tuple[float, dict[str, Tensor]]:
    """Mean over the prompts of -log p(answer) in nats, its tokens summed, and its gradient by the
    name that the model gives each parameter, float32; dropout is off. The model is as it was
    afterwards. Raises WorkbenchError where parts of the model lie nowhere between their runs."""
    require_gradients(model)
    own = dict(model.named_parameters())
    coded = [encode(words, prompt) for prompt in prompts]
    modes = [(module, module.training) for module in model.modules()]

    def nats(places: list[int]) -> Tensor:
        return _nats(model, [coded[i] for i in places], pad_id(words)) / len(coded)

    try:
        model.eval()
        return gradients_of(nats, own, [len(one.ids) for one in coded], batch_size)
    finally:
        for module, training in modes:
            module.training = training


def _nats(model: Any, coded: Sequence[Encoded], fill: int) -> Tensor:
    """Sum over texts of -log p of their scored tokens."""
    ids, mask = padded([one.ids for one in coded], fill)
    device = home(model)
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    scored = torch.full_like(ids, -100)
    for row, one in enumerate(coded):
        scored[row, one.start : len(one.ids)] = ids[row, one.start : len(one.ids)]
    kept = scored[:, 1:] != -100
    said, targets = logits[:, :-1][kept.to(device)].float(), scored[:, 1:][kept].to(device)
    return F.cross_entropy(said, targets, reduction="sum")


def dot(first: Gradients, second: Gradients) -> float:
    """The inner product over all parameters, summed in float64."""
    parts = (float((first[n].double() * second[n].double()).sum()) for n in first)
    return sum(parts)


@contextlib.contextmanager
def moved(model: Any, step: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """`model` with step(name, parameter) added to each parameter, None adding nothing; its own
    tensors are set aside, not written to, and come back bit for bit."""
    own = dict(model.named_parameters())
    kept = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            change = step(name, kept[name])
            if change is not None:
                parameter.data = (kept[name].float() + change).to(kept[name].dtype)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = kept[name]
