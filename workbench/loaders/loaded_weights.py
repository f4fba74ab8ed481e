"""Is the model that was made the one whose weights are read?

transformers puts random numbers where a checkpoint lacks a weight and passes over what it has no
place for; peft passes over a module whose name it does not find. Both go on. Here what they report
is read, and a sample of every parameter that runs is held against the tensor that the reader
resolves for it: names forgiven there and not here, or the other way round, end in one sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason, some
from workbench.loaders.adapters import Adapter
from workbench.loaders.devices import home
from workbench.loaders.experts import apart, view
from workbench.loaders.memory_map import Entries, Files, entries_of, held
from workbench.loaders.names import BESIDE, HEAD, align
from workbench.loaders.weights import Weights
from workbench.log import log

ENTRIES, RUNS = 4096, 4  # of each parameter are compared, in runs spread over it


def require_decoder(config: Mapping[str, Any], name: str) -> None:
    """Raise WorkbenchError for an encoder: transformers would run one as a language model that
    sees the token it is asked for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    kind = config.get("model_type")
    if isinstance(kind, str) and kind in ENCODERS and not config.get("is_decoder"):
        raise WorkbenchError(
            f"{name} is an encoder ({kind}), which predicts no next token; only "
            "analyses of the weights can run."
        )


def require_whole(name: str, told: Mapping[str, Any]) -> None:
    """Raise WorkbenchError where transformers loaded another model than the files hold.

    told: what from_pretrained(output_loading_info=True) says; tied weights are not missing there.
    """
    for key, stored, wanted in told.get("mismatched_keys") or ():
        raise WorkbenchError(
            f"{name} stores {key} as {tuple(stored)}, but its config.json describes "
            f"{tuple(wanted)}; give the config these weights were saved with."
        )
    missing, unused = (
        sorted(map(str, told.get(f"{kind}_keys") or ())) for kind in ("missing", "unexpected")
    )
    if missing and all(HEAD.search(one) for one in missing):
        raise WorkbenchError(
            f"{name} has no output head ({missing[0]}), so it cannot predict the next "
            "token; only analyses of the weights can run, for others give a "
            "checkpoint of the causal language model."
        )
    if missing:
        raise WorkbenchError(
            f"{name} lacks {some(missing)} of the model that its config.json "
            "describes, so random numbers would take their place; give the whole checkpoint."
        )
    extra = [one for one in unused if not BESIDE.search(one)]
    if extra:
        raise WorkbenchError(
            f"{name} holds {some(extra)}, which the model that its config.json describes has no "
            "place for; give the config these weights were saved with."
        )
    if unused:
        log.warning("%s: %s is not part of the language model and is left out.", name, some(unused))


def require_read(model: nn.Module, weights: Weights, config: Mapping[str, Any], name: str) -> None:
    """Raise WorkbenchError where a parameter of `model`, just loaded without an adapter, is not the
    tensor that `weights` has for it."""
    running, named = _as_stored(model, config), _read_as(model, weights)
    if not named:
        named = align(list(running), list(weights))
    twice, files = _shared_names(model), Files()
    for own, tensor in running.items():
        names = (named.get(name) for name in (own, *twice.get(own, ())))
        stored = next((name for name in names if name is not None), None)
        if stored is None:
            raise WorkbenchError(
                f"{own} of the model that {name} loads as is in none of its files; "
                "give the whole checkpoint."
            )
        if tensor.is_meta:
            continue
        same = math.prod(weights.info[stored].shape) == tensor.numel()
        if not same or not _agree(tensor, entries_of(weights, stored, files)):
            raise WorkbenchError(
                f"{own} of the loaded model of {name} is not {stored} of its files, so "
                "the model that runs would not be the one that is compared; save the "
                "checkpoint again with save_pretrained."
            )


def require_running(model: Any, name: str) -> None:
    """Raise WorkbenchError where a model that was made fails on two tokens: what a config asks for
    may only be looked at when it runs."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=home(model))
    try:
        with torch.no_grad():
            # The mask says that these are words: 0 is what many models fill up with.
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    except Exception as error:  # whatever the model's own code raises
        raise WorkbenchError(
            f"{name} can be loaded but does not run ({reason(error)}); give the config "
            "these weights were saved with."
        ) from error


def require_attached(model: nn.Module, lora: Adapter, name: str) -> None:
    """Raise WorkbenchError where a factor or a whole parameter of the adapter is not in `model`, a
    PeftModel just loaded."""
    from peft import get_peft_model_state_dict

    running: dict[str, list[Tensor]] = {}
    for own, tensor in model.state_dict().items():
        running.setdefault(_plain(own), []).append(tensor)
    for own, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        running.setdefault(_plain(own), []).append(tensor)
    for stored in lora.weights:
        found = running.get(_plain(stored), ())
        whole = lora.weights[stored]
        if not any(
            one.is_meta or (one.shape == whole.shape and _agree(one, held(whole))) for one in found
        ):
            raise WorkbenchError(
                f"{stored} of the adapter of {name} reaches no module of the model it is put on; "
                "give the base it was trained on, or save the adapter again with save_pretrained."
            )


def _plain(name: str) -> str:
    """A name of peft's, without what only tells one adapter from another."""
    name = re.sub(r"\.(lora_\w+|modules_to_save)\.(?!weight$|bias$)[^.]+", r".\1", name)
    name = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def _read_as(model: nn.Module, weights: Weights) -> dict[str, str]:
    """Parameter -> the stored name that transformers reads as it. Empty where it takes tensors
    apart or puts them together, which `_as_stored` undoes."""
    if _converters(model):
        return {}
    return {own: name for name, own in run_names(model, weights).items()}


def run_names(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Stored name -> what transformers calls it in the model that it read it into."""
    from transformers.core_model_loading import rename_source_key

    conversions = getattr(model, "_weight_conversions", None) or ()
    renamings = [one for one in conversions if type(one).__name__ == "WeightRenaming"]
    known: Any = {name: tensor for name, tensor in model.state_dict().items()}
    prefix = getattr(model, "base_model_prefix", None)
    return {name: rename_source_key(name, renamings, [], prefix, known)[0] for name in stored}


def _converters(model: nn.Module) -> bool:
    conversions = getattr(model, "_weight_conversions", None) or ()
    return any(type(one).__name__ == "WeightConverter" for one in conversions)


def _as_stored(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name -> parameter, each once, under the names and in the pieces of a file."""
    from transformers.core_model_loading import revert_weight_conversion

    own: dict[str, Tensor] = {n: p.detach() for n, p in model.named_parameters()}
    if _converters(model):
        own = revert_weight_conversion(model, own)  # pyright: ignore[reportArgumentType]
    places = apart({name: tuple(one.shape) for name, one in own.items()}, config)
    return {name: view(own, where) for name, where in places.items()}


def _shared_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of a parameter -> its other names."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            found.setdefault(first[id(parameter)], []).append(name)
    return found


def _agree(running: Tensor, stored: Entries) -> bool:
    """Whether a sample of entries is the same, at the precision that runs; all of a small one."""
    size, flat = running.numel(), running.reshape(-1)
    runs = [(0, size)]
    if size > ENTRIES:
        each = ENTRIES // RUNS
        runs = [(at, at + each) for at in range(0, size - each + 1, (size - each) // (RUNS - 1))]
    ours = torch.cat([flat[first:last] for first, last in runs]).cpu()
    theirs = torch.cat([stored(first, last) for first, last in runs]).to(ours.dtype)
    return torch.equal(ours, theirs) or torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)
