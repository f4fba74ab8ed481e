"""Any edited model as a new LoRA over its base: the best approximation of every matrix's change.

B A is the change's truncated SVD (Eckart & Young 1936), so that no adapter of this rank on these
modules is nearer to the change. What is no matrix of a linear layer goes whole beside the factors,
as peft keeps it: norms as modules_to_save, biases by the option bias="all". How much of a matrix's
change the rank leaves out is told: a full fine-tune is often of high rank, and what its small
directions do shows only when the adapter is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.lab.members import write_adapter_config
from workbench.loaders.adapters.factors import split
from workbench.loaders.auto import auto_class
from workbench.loaders.experts import Cut, running
from workbench.loaders.names import align
from workbench.models import Edit

PREFIX = "base_model.model."


def extracted(made: Edit, folder: Path, place: Path, rank: int | None) -> dict[str, Any]:
    """Write the adapter, and tell its rank, how many modules it changes and what it loses.

    rank: of every module; None takes as many directions as the module that needs most. place: where
    the folder will stand. Raises WorkbenchError where a module cannot be adapted: an expert of a
    stack, or an embedding that is the head too.
    """
    model = _hollow(made)
    lies = running(model)
    names = _names(made, model, [*lies])
    factors: dict[str, Any] = {}
    biases: dict[str, Tensor] = {}
    whole: dict[str, dict[str, Tensor]] = {}
    for site in made.pair.sites("all"):
        edited = made.tensor(site)
        if edited is None:
            continue
        if isinstance(lies[names[site.name]], Cut):
            raise WorkbenchError(
                f"The edit changes {names[site.name]}, an expert in a stack of them, which no LoRA "
                'holds by its own name; write whole weights (form="weights").'
            )
        module, _, leaf = names[site.name].rpartition(".")
        if _linear(model.get_submodule(module)) and leaf == "weight":
            factors[module] = split(made.change(site), rank)
        elif _linear(model.get_submodule(module)):
            biases[module] = edited
        else:
            whole.setdefault(module, {})[leaf] = edited
    _complete(made, model, names, whole)
    kept = max((own.up.shape[1] for own, _ in factors.values()), default=0)
    if not kept:
        raise WorkbenchError(
            "The edit changes no matrix of a linear layer, so that no LoRA holds it; write whole "
            'weights (form="weights").'
        )
    tensors = _tensors(factors, biases, whole, kept)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "lora_dropout": 0.0,
        "r": kept, "lora_alpha": kept, "bias": "all" if biases else "none",
        "target_modules": sorted(factors), "modules_to_save": sorted(whole) or None,
        "fan_in_fan_out": any(type(model.get_submodule(one)).__name__ == "Conv1D"
                              for one in factors),
    }  # fmt: skip
    write_adapter_config(config, made.pair.base, folder, place)
    lost = max((lost for _, lost in factors.values()), default=0.0)
    return {"changed": len(tensors) - len(factors), "rank": kept, "lost": lost}


def _hollow(made: Edit) -> Any:
    """The base as a model without numbers, for the names and the kinds of its modules."""
    from transformers import AutoConfig

    config = dict(made.pair.base.config)
    with torch.device("meta"):
        known = AutoConfig.for_model(**config)
        return auto_class(config).from_config(known, trust_remote_code=False)


def _names(made: Edit, model: Any, theirs: Sequence[str]) -> dict[str, str]:
    """Parameter as it is stored -> as it is called in the model that runs. A head that is stored by
    another name is the model's head."""
    own = [site.name for site in made.pair.sites("all")]
    found, head = align(own, theirs), model.get_output_embeddings()
    named = next((name for name, module in model.named_modules() if module is head), None)
    leaves = {name: f"{named}.{name.rpartition('.')[2]}" for name in own if name not in found}
    strange = [name for name, there in leaves.items() if there not in theirs]
    if strange:
        raise WorkbenchError(
            f"{type(model).__name__} has no parameter {strange[0]} that an adapter could change; "
            'write whole weights (form="weights").'
        )
    return found | leaves


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _complete(
    made: Edit,
    model: Any,
    names: Mapping[str, str],
    whole: dict[str, dict[str, Tensor]],
) -> None:
    """A module that is kept whole has all of its parameters, the others the base's."""
    sites = {names[site.name]: site for site in made.pair.sites("all")}
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    for module, own in whole.items():
        shell = model.get_submodule(module)
        if tied and shell in (head, model.get_input_embeddings()):
            raise WorkbenchError(
                f"The edit changes {module}, which is the embedding and the head at once, and an "
                'adapter would take them apart; write whole weights (form="weights").'
            )
        for leaf, _ in shell.named_parameters(recurse=False):
            site = sites[f"{module}.{leaf}"]
            edited = made.tensor(site)
            own[leaf] = made.pair.delta(site).base if edited is None else edited


def _tensors(
    factors: Mapping[str, Any],
    biases: Mapping[str, Tensor],
    whole: Mapping[str, Mapping[str, Tensor]],
    rank: int,
) -> dict[str, Tensor]:
    """By the names that peft gives them; factors of lower rank are filled with zeros."""
    found: dict[str, Tensor] = {}
    pad = torch.nn.functional.pad
    for module, (own, _) in factors.items():
        more = rank - own.up.shape[1]
        found[f"{module}.lora_A.weight"] = pad(own.down, (0, 0, 0, more))
        found[f"{module}.lora_B.weight"] = pad(own.up, (0, more))
    for module, bias in biases.items():
        found[f"{module}.base_layer.bias" if module in factors else f"{module}.bias"] = bias
    for module, own in whole.items():
        found |= {f"{module}.{leaf}": tensor for leaf, tensor in own.items()}
    return {f"{PREFIX}{name}": one.float().contiguous().clone() for name, one in found.items()}
