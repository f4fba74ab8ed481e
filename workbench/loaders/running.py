"""Does a side run, and as transformers and peft alone would run it? Asked by the preflight.

One side at a time is in memory. Loading alone already holds every parameter against the files
(`account`); the logits are a proof that rests on nothing here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason
from workbench.loaders.checkpoint import Checkpoint, fit_vocabulary, unsaid

TOKENS = 8
NEAR = 1e-5  # of the largest logit: float32 sums in another order


def require_runs(checkpoint: Checkpoint, *, logits: bool) -> None:
    """Raise WorkbenchError where it cannot be loaded, or runs as another model. logits: also hold
    those of eight tokens against a plain from_pretrained of the same references."""
    own: Any = checkpoint.load(dtype=torch.float32)
    if not logits or not isinstance(checkpoint.reference, str):
        return
    ids = torch.linspace(1, own.get_input_embeddings().weight.shape[0] - 1, TOKENS).long()[None]
    ours = _logits(own, ids)
    del own
    theirs = _logits(_plain(checkpoint), ids)
    apart, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not apart <= NEAR * max(size, 1.0):
        raise WorkbenchError(
            f"The logits of {checkpoint.name} are {apart:.2g} from those of a plain loading by "
            "transformers and peft, so that one of the two is another model; save it again with "
            "save_pretrained."
        )


def _plain(checkpoint: Checkpoint) -> nn.Module:
    """The model as anybody else would load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        with unsaid():
            model = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.folder), dtype=torch.float32, local_files_only=True,
                trust_remote_code=False,
            )  # fmt: skip
            if checkpoint.lora is None:
                return model
            fit_vocabulary(model, checkpoint.lora)
            return PeftModel.from_pretrained(model, checkpoint.lora.reference)
    except Exception as error:  # transformers and peft raise many kinds
        raise WorkbenchError(
            f"A plain loading of {checkpoint.name} fails ({reason(error)}); check its files."
        ) from error


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()
