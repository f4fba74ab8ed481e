"""An adapter on its model: unmerged, and on tokens of its own."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.loaders.adapters import Adapter, SoftPrompt
from workbench.loaders.devices import settle
from workbench.loaders.names import HEAD, TOKENS
from workbench.loaders.quiet import unsaid
from workbench.loaders.staging import Files, handed


def attached(model: Any, lora: Adapter, name: str) -> nn.Module:
    """A model with its adapter, unmerged; of one that is spread over devices, see `devices`."""
    from peft import PeftModel

    fit_vocabulary(model, lora)
    if isinstance(lora, SoftPrompt):
        _require_fit(model, lora)
    # Left to itself peft would place a spread model once more, and write the base's files anew.
    placed = model.__dict__.pop("hf_device_map", None)
    factors = {} if placed is None else dict(lora.weights)
    if placed is not None and isinstance(lora, SoftPrompt):
        raise WorkbenchError(
            f"Adapter {lora.told}, which cannot run on a model that is spread over "
            "devices; give one device."
        )
    other = [part for part in factors if not part.endswith(("lora_A.weight", "lora_B.weight"))]
    if placed is not None and (other or lora.translated or lora.config.get("use_dora")):
        raise WorkbenchError(
            f"{name} is more than plain factors ({(other or ['DoRA'])[0]}), which cannot be spread "
            "over devices; merge it first."
        )
    config = lora.peft_config(tied=bool(model.config.tie_word_embeddings))
    if lora.translated:
        return put_on(model, lora, config)
    with unsaid(), handed(adapter_weights(lora), lora.reference) as fresh:
        made = PeftModel.from_pretrained(
            model,
            str(fresh),
            config=config,
            autocast_adapter_dtype=False,
            low_cpu_mem_usage=placed is not None,
        )
    if placed is not None:
        model.hf_device_map = placed
        settle(made, {f"{n.removesuffix('.weight')}.default.weight": t for n, t in factors.items()})
    return made


def _require_fit(model: Any, lora: SoftPrompt) -> None:
    """Raise WorkbenchError for a prompt of another width, or for other layers, than the model's,
    and for keys and values where the model takes none: it would run as without a prompt."""
    takes = signature(model.forward).parameters
    if lora.kind.in_layers and "past_key_values" not in takes:
        raise WorkbenchError(
            f"Adapter {lora.told}, as keys and values of every layer, but {type(model).__name__} "
            "takes none (it has no past_key_values); train prompt tuning or LoRA for it instead."
        )
    layers = model.config.get_text_config().num_hidden_layers
    what, theirs, ours = "width", lora.width, model.get_input_embeddings().weight.shape[1]
    if lora.kind.in_layers:
        what, theirs, ours = "layers", lora.config.get("num_layers") or layers, layers
    if theirs != ours:
        raise WorkbenchError(
            f"Adapter {lora.told}, of {what} {theirs}, but the base has {ours}; give "
            "the base it was trained on."
        )


def put_on(model: Any, lora: Adapter, config: Any) -> nn.Module:
    """A model with an adapter whose tensors peft is given by name, since no file has those."""
    from peft import get_peft_model, set_peft_model_state_dict

    with torch.random.fork_rng(devices=[]), unsaid():
        made: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
        set_peft_model_state_dict(made, dict(lora.weights))
    return made


def adapter_weights(lora: Adapter) -> Files:
    """The one file that an adapter's factors were read from."""
    return {file.name: file for file in lora.weights.home.values()}


def fit_vocabulary(model: Any, lora: Adapter) -> None:
    """Give the model a row for every token that the adapter brings embeddings for."""
    rows = {
        lora.replacement_shape(name)[0] for name in lora.replaced
        if TOKENS.search(name) or HEAD.search(name)
    }  # fmt: skip
    if rows and rows != {len(model.get_input_embeddings().weight)}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
