"""Does a side run, and as transformers and peft alone would run it? Asked by the preflight.

One side at a time is in memory. Loading alone already holds every parameter against the files
(`account`); the logits are a proof that rests on nothing here.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench import cache
from workbench.errors import WorkbenchError, reason
from workbench.loaders.attached import fit_vocabulary, unsaid
from workbench.loaders.checkpoint import Checkpoint
from workbench.outputs import writing

TOKENS = 8
RUN_BY = ("torch", "transformers", "peft")
NEAR = 1e-5  # of the largest logit: float32 sums in another order


def require_runs(checkpoint: Checkpoint, *, anew: bool) -> None:
    """Raise WorkbenchError where it cannot be loaded, or where its logits of eight tokens are not
    those of a plain from_pretrained of the same references. Of a model in memory, which is what it
    is, only the first.

    anew: ask although it was found to run so before, by these versions of what runs it, and give
    peft the whole of an adapter's config: else only what of it decides numbers, see SECURITY.md.
    """
    if not isinstance(checkpoint.reference, str):
        checkpoint.load()
        return
    memo = _memo(checkpoint)
    if memo.exists() and not anew:
        return
    own: Any = checkpoint.load(dtype=torch.float32)
    ids = torch.linspace(1, own.get_input_embeddings().weight.shape[0] - 1, TOKENS).long()[None]
    ours = _logits(own, ids)
    del own
    theirs = _logits(_plain(checkpoint, whole=anew), ids)
    apart, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not apart <= NEAR * max(size, 1.0):
        raise WorkbenchError(
            f"The logits of {checkpoint.name} are {apart:.2g} from those of a plain loading by "
            "transformers and peft, so that one of the two is another model; save it again with "
            "save_pretrained."
        )
    # A cache that cannot be written costs the next one who asks the same again, no more.
    with contextlib.suppress(OSError, WorkbenchError), writing(memo, cache.CACHED) as fresh:
        fresh.touch()


def _memo(checkpoint: Checkpoint) -> Path:
    """What is there once a checkpoint was found to run as it is plainly loaded."""
    parts = [checkpoint.identity, *(f"{name} {version(name)}" for name in RUN_BY)]
    return cache.folder("runs", cache.digest(part.encode() for part in parts)[:32])


def _plain(checkpoint: Checkpoint, *, whole: bool) -> nn.Module:
    """The model as anybody else would load it; told of the wrappers in its names, without which
    nobody could. whole: peft reads an adapter's config by itself."""
    from transformers import AutoModelForCausalLM

    try:
        with unsaid():
            model = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.folder), dtype=torch.float32, local_files_only=True,
                trust_remote_code=False, key_mapping=checkpoint.wrappers or None,
            )  # fmt: skip
            if checkpoint.lora is None:
                return model
            from peft import PeftModel

            fit_vocabulary(model, checkpoint.lora)
            config = None if whole else checkpoint.lora.peft_config()
            return PeftModel.from_pretrained(model, checkpoint.lora.reference, config=config)
    except Exception as error:  # transformers and peft raise many kinds
        raise WorkbenchError(
            f"A plain loading of {checkpoint.name} fails ({reason(error)}); check its files."
        ) from error


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()
