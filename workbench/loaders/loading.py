"""A checkpoint's model and tokenizer, made by transformers and peft of its own files alone."""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import is_number
from workbench.loaders.adapter_on_model import attached
from workbench.loaders.adapters import SoftPrompt
from workbench.loaders.auto import auto_class
from workbench.loaders.config_against_weights import require_loadable
from workbench.loaders.config_differences import ends, language
from workbench.loaders.devices import Device, entry, load_spread, spread
from workbench.loaders.loaded_weights import (
    require_attached,
    require_decoder,
    require_read,
    require_running,
    require_whole,
)
from workbench.loaders.prompted import Prompted
from workbench.loaders.quantised import quantisation
from workbench.loaders.quiet import unsaid
from workbench.loaders.staging import handed, model_files, tokenizer_files
from workbench.loaders.tokenizer_safety import require_bounded
from workbench.results import cache

if TYPE_CHECKING:
    from workbench.loaders.checkpoint import Checkpoint


def model_of(one: Checkpoint, device: Device, dtype: torch.dtype | None) -> nn.Module:
    """As `Checkpoint.load` says."""
    if isinstance(one.reference, nn.Module):
        return one.reference.eval()
    assert one.folder is not None
    require_decoder(one.config, one.name)
    if quantised := quantisation(one.config):
        raise WorkbenchError(
            f"{one.name} is quantised ({quantised}), which cannot be run here; "
            "only analyses of the weights can run. For others give the checkpoint "
            "it was made from, or dequantize() it with transformers and save it in bfloat16."
        )
    if (one.folder / "adapter_config.json").exists():
        raise WorkbenchError(
            f"{one.folder} holds an adapter_config.json next to whole weights, "
            "for which transformers would run the adapter's base; move the "
            "adapter's files to a separate folder."
        )
    require_loadable(one.folder, one.config, one.weights().info)
    entry(device)
    with _told(
        f"No model can be loaded from {one.name}",
        "check its config.json and weights, or give a checkpoint that transformers loads",
    ):
        with unsaid():
            model, told = _made(one, device, dtype)
        require_whole(one.name, told)
        require_read(model, one.weights(), one.config, one.name)
        if one.lora is not None:
            model = attached(model, one.lora, one.name)
            require_attached(model, one.lora, one.name)
        if isinstance(one.lora, SoftPrompt):
            model = Prompted(model, one.lora)
    if spread(device):
        return model.eval()
    model = model.to(entry(device)).eval()  # pyright: ignore[reportArgumentType]
    require_running(model, one.name)
    return model


def _made(one: Checkpoint, device: Device, dtype: torch.dtype | None) -> tuple[Any, dict[str, Any]]:
    """(the model without its adapter, what transformers tells of reading it)."""
    from transformers import GenerationConfig

    assert one.folder is not None
    told: dict[str, Any] = {}
    asked: dict[str, Any] = {
        "dtype": dtype or "auto",
        "key_mapping": one.wrappers or None,
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # told, with what it is
        "generation_config": GenerationConfig(**ends(one.config, one.folder)),
    }
    kind = auto_class(one.config)
    files, placed = model_files(one.config, one.stored.home), spread(device)
    with handed(files, one.folder, kept=placed) as fresh:

        def read(**where: Any) -> nn.Module:
            made: Any = kind.from_pretrained(str(fresh), **asked, **where)
            model, account = made
            told.update(account)
            return model

        model: Any = load_spread(read, device, cache.folder("offload")) if placed else read()
    if placed:  # what lies on disk is read again whenever it runs
        weakref.finalize(model, shutil.rmtree, fresh, True)
    model.name_or_path = model.config.name_or_path = str(one.folder)
    model.config.is_encoder_decoder = False  # it is run as what goes on with a text
    return model, told


def tokenizer_of(one: Checkpoint) -> Any:
    """As `Checkpoint.tokenizer` says."""
    if one.folder is None:
        raise WorkbenchError("A model in memory has no tokenizer; pass one.")
    require_bounded(one.folder, one.config, one.name)
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    with _told(f"No tokenizer can be loaded from {one.name}", "put its files next to the weights"):
        with handed(tokenizer_files(one.folder, one.config), one.folder) as fresh:
            tokenizer = AutoTokenizer.from_pretrained(
                str(fresh), local_files_only=True, trust_remote_code=False
            )
        _settle(tokenizer, fresh, one.folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inner = language(one.config)
    places = inner.get("max_position_embeddings") or inner.get("n_positions")
    said: tuple[Any, ...] = (tokenizer.model_max_length, places)
    known = [int(most) for most in said if is_number(most) and most >= 1]
    tokenizer.model_max_length = min(known, default=VERY_LARGE_INTEGER)
    return tokenizer


@contextlib.contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """One sentence of the many kinds that transformers, peft and readers of damaged files raise."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        raise WorkbenchError(f"{what} ({reason(error)}); {remedy}.") from error


def _settle(tokenizer: Any, fresh: Path, folder: Path) -> None:
    """Let a tokenizer that was read in `fresh` find its files in `folder`."""
    for known in (vars(tokenizer), tokenizer.init_kwargs):
        for key, value in known.items():
            if isinstance(value, str) and value.startswith(str(fresh)):
                known[key] = str(folder) + value.removeprefix(str(fresh))
