"""Where do the files of a reference lie? A snapshot of the hub's, a GGUF file converted once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError, reason
from workbench.files.writing import replacing
from workbench.loaders.headers import require_gguf
from workbench.loaders.staging import handed
from workbench.results import cache

# What a hub download needs: weights, config and tokenizer, never code.
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def downloaded(name: str, revision: str | None, *, local: bool = False) -> Path:
    """A hub snapshot, from the local cache where HF_HUB_OFFLINE=1; local: from there alone."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=WANTED, local_files_only=local
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise WorkbenchError(
            f"{name!r}{at} is neither a local folder nor a model that could be loaded "
            f"from the hub or its local cache ({type(error).__name__}); check the "
            "path, the name or the network."
        ) from error


def dequantised(path: Path) -> Path:
    """A GGUF file as a float32 safetensors folder, made once by transformers from that file alone
    and kept; made again where what is kept is no longer what was made."""
    if not os.path.exists(path):
        raise WorkbenchError(f"There is no file {path}; check the path.")
    target = cache.folder("gguf", cache.file_digest(path)[:32])
    if cache.intact(target):
        return target
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise WorkbenchError(
            "To read GGUF, the package gguf is needed: pip install gguf."
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_gguf(path)
    try:
        with handed({path.name: path}, path.parent) as fresh:
            # By its whole path: a file of that name where the process stands would come first.
            named: dict[str, Any] = {"gguf_file": str(fresh / path.name)}
            named |= {"local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(fresh, **named)
            model = AutoModelForCausalLM.from_pretrained(fresh, dtype=torch.float32, **named)
    except Exception as error:  # a damaged GGUF fails in many ways inside its reader
        raise WorkbenchError(
            f"{path} could not be read as GGUF ({reason(error)}); download it again."
        ) from error
    # The tensors are plain float32 by now; what is left says GGUF and forbids saving.
    setattr(model, "hf_quantizer", None)  # noqa: B010 - declared as a module by its class
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    with replacing(target, cache.CACHED) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    cache.seal(target)
    return target
