"""Edits of a running model's weights that leave checkpoint and model as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.names import align, is_conv1d


def merged(
    pair: CheckpointPair, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The tuned side as one plain model, an adapter merged in float32 before the cast to `dtype`.

    Raises WorkbenchError for a member in memory: it would be changed.
    """
    if isinstance(pair.tuned.reference, nn.Module):
        raise WorkbenchError(
            "Expected a checkpoint on disk, found a model in memory; save it and give the folder."
        )
    model = pair.tuned.bare.load("cpu", torch.float32)
    if pair.tuned.lora is not None:
        touched = {*pair.adapted, *pair.replaced}
        sites = [s for s in pair.sites("all") if pair.comparable[s.name] in touched]
        _write(model, {s.name: pair.delta(s).tuned for s in sites}, pair)
    return model.to(device=device, dtype=dtype)


@contextlib.contextmanager
def overlay(
    model: nn.Module, tensors: Mapping[str, Tensor], pair: CheckpointPair
) -> Iterator[nn.Module]:
    """`model` with these parameters, (out, in) by base name, then bit for bit as it was.

    Raises WorkbenchError for a name the model does not have, before anything is changed.
    """
    parameters = dict(model.named_parameters())
    kept = {n: parameters[t].detach().clone() for n, t in _targets(model, tensors).items()}
    try:
        _write(model, tensors, pair)
        yield model
    finally:
        with torch.no_grad():
            for name, target in _targets(model, tensors).items():
                parameters[target].copy_(kept[name])


def _targets(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    found = align(list(tensors), [name for name, _ in model.named_parameters()])
    missing = [name for name in tensors if name not in found]
    if missing:
        raise WorkbenchError(f"{type(model).__name__} has no parameter {missing[0]}.")
    return found


@torch.no_grad()
def _write(model: nn.Module, tensors: Mapping[str, Tensor], pair: CheckpointPair) -> None:
    parameters = dict(model.named_parameters())
    kind = pair.tuned.config.get("model_type")
    for name, target in _targets(model, tensors).items():
        tensor = tensors[name].T if is_conv1d(name, kind) else tensors[name]
        parameters[target].copy_(tensor.reshape(parameters[target].shape))
