"""Does a side run, and as transformers and peft alone would run it? Asked by the preflight.

One side at a time is in memory. Loading alone already holds every parameter against the files
(`loaded_weights`); the logits are a proof that rests on nothing here but the files (`staging`).
"""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason
from workbench.loaders.adapter_on_model import adapter_weights, fit_vocabulary, put_on
from workbench.loaders.adapters import Adapter
from workbench.loaders.auto import auto_class
from workbench.loaders.checkpoint import Checkpoint
from workbench.loaders.quiet import unsaid
from workbench.loaders.staging import handed, model_files
from workbench.results import cache

TOKENS = 8
RUN_BY = ("torch", "transformers", "peft")
# Of an adapter's config what names a module to import.
IMPORTED = ("megatron_config", "megatron_core", "auto_mapping")
NEAR = 1e-5  # of the largest logit: float32 sums in another order


def require_runs(checkpoint: Checkpoint, *, anew: bool) -> None:
    """Raise WorkbenchError where it cannot be loaded, or where its logits of eight tokens are not
    those of a plain from_pretrained of the same references. Of a model in memory, which is what it
    is, only the first.

    anew: ask although it was found to run so before, by these versions of what runs it, and give
    peft all of an adapter's config but what it would import: else only what decides numbers.
    """
    if not isinstance(checkpoint.reference, str):
        checkpoint.load()
        return
    memo, known = _memo(checkpoint)
    if cache.kept_digest(memo) == known and not anew:
        return
    own: Any = checkpoint.load(dtype=torch.float32)
    ids = torch.linspace(1, own.get_input_embeddings().weight.shape[0] - 1, TOKENS).long()[None]
    ours = _logits(own, ids)
    del own
    theirs = _logits(_plain(checkpoint, whole=anew), ids)
    apart, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not apart <= NEAR * max(size, 1.0):
        raise WorkbenchError(
            f"The logits of {checkpoint.name} differ by {apart:.2g} from those of a "
            "plain loading by transformers and peft, so one of the two is another "
            "model; save it again with save_pretrained."
        )
    # A cache that cannot be written costs the next one who asks the same again, no more.
    with contextlib.suppress(OSError, WorkbenchError):
        cache.keep_digest(memo, known)


def _memo(checkpoint: Checkpoint) -> tuple[Path, str]:
    """(a file, what it says once a checkpoint was found to run as it is plainly loaded)."""
    parts = [checkpoint.identity, *(f"{name} {version(name)}" for name in RUN_BY)]
    known = cache.digest(part.encode() for part in parts)
    return cache.folder("runs", known[:32]), known


def _plain(checkpoint: Checkpoint, *, whole: bool) -> nn.Module:
    """The model by one from_pretrained of the same files, told of the wrappers in their names,
    without which nobody could. whole: peft reads an adapter's config by itself."""
    assert checkpoint.folder is not None
    files = model_files(checkpoint.config, checkpoint.stored.home)
    try:
        with unsaid(), handed(files, checkpoint.folder) as fresh:
            model = auto_class(checkpoint.config).from_pretrained(
                str(fresh), dtype=torch.float32, local_files_only=True,
                trust_remote_code=False, key_mapping=checkpoint.wrappers or None,
            )  # fmt: skip
        if checkpoint.lora is None:
            return model
        return _put_on(model, checkpoint.lora, whole)
    except Exception as error:  # transformers and peft raise many kinds
        raise WorkbenchError(
            f"A plain loading of {checkpoint.name} fails ({reason(error)}); check its files."
        ) from error


def _put_on(model: Any, lora: Adapter, whole: bool) -> nn.Module:
    from peft import PeftModel

    fit_vocabulary(model, lora)
    own = lora.peft_config(tied=bool(model.config.tie_word_embeddings))
    if lora.translated:
        return put_on(model, lora, own)
    kept = {key: value for key, value in lora.config.items() if key not in IMPORTED}
    files = {**adapter_weights(lora), "adapter_config.json": json.dumps(kept)}
    with unsaid(), handed(files, lora.reference) as fresh:
        return PeftModel.from_pretrained(model, str(fresh), config=None if whole else own)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(input_ids=ids, return_dict=True).logits.float()
    # Of virtual tokens in front of them peft returns logits too.
    return found[:, -ids.shape[1] :]
