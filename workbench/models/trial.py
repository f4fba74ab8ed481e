"""A few tokens run in a model, which is afterwards as it was."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.loaders.devices import home

GAIN = 1.25  # of the numbers that whole blocks are multiplied with; exact in any precision


@contextlib.contextmanager
def eager(root: Any) -> Iterator[None]:
    """Attention that forms its pattern; fused kernels never do."""
    kept = root.config._attn_implementation
    if kept != "eager":
        root.set_attn_implementation("eager")
    try:
        yield
    finally:
        if kept != "eager":
            root.set_attn_implementation(kept)


def last_alone(root: Any) -> dict[str, Tensor]:
    """What a model is called with so that only the last token's logits are made, if it can. A
    tensor: told a number, Gemma 4 runs its last blocks on so many tokens alone."""
    known = inspect.signature(root.forward).parameters
    return {"logits_to_keep": torch.tensor([-1])} if "logits_to_keep" in known else {}


@contextlib.contextmanager
def scalars_moved(root: Any) -> Iterator[None]:
    """Single numbers among the buffers are another than one, where they cannot be overlooked."""
    scalars = [b for b in root.buffers() if b.numel() == 1 and b.is_floating_point()]
    before = [scalar.clone() for scalar in scalars]
    try:
        for scalar in scalars:
            scalar.fill_(GAIN)
        yield
    finally:
        for scalar, was in zip(scalars, before, strict=True):
            scalar.copy_(was)


def tried(root: Any, rows: int, tokens: int) -> Tensor:
    """Logits (rows, vocabulary) of the last of a few tokens, the same in every row; no dropout, no
    gradient, and the model as it was afterwards."""
    words = root.get_input_embeddings().weight
    device = "cpu" if words.is_meta else home(root)
    ids = torch.arange(3, 3 + tokens, device=device) % len(words)
    given: dict[str, Any] = {"input_ids": ids.repeat(rows, 1), "use_cache": False}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    training = [module for module in root.modules() if module.training]
    try:
        root.eval()
        with torch.no_grad():
            made = root(**given, **last_alone(root))
            return (made.logits if hasattr(made, "logits") else made[0])[:, -1]
    finally:
        for module in training:
            module.training = True


def runnable(root: Any) -> Any:
    """The model, or for one without numbers (a server has them) another of its config whose modules
    with weights give zeros: of these only shapes are looked at."""
    words = root.get_input_embeddings()
    if not words.weight.is_meta or hasattr(words, "_hf_hook"):
        return root
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        twin = type(root)(copy.deepcopy(root.config))
    for module in twin.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.forward = partial(_zeros, type(module).forward, module)
    return twin


def _zeros(forward: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Zeros of the shape that the module gives."""
    given = (value.to("meta") if isinstance(value, Tensor) else value for value in args)
    named = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in kwargs.items()}
    made = forward(module, *given, **named)
    return torch.zeros(made.shape, dtype=made.dtype) if isinstance(made, Tensor) else made
