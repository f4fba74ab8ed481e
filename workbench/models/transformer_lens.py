"""The contract of `hooks` on TransformerLens: the same sites, read and replaced by its own hooks.

TransformerBridge rewrites the transformers model it is given, so it always gets a copy of its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, reason
from workbench.loaders.pair import CheckpointPair
from workbench.loaders.staging import offline
from workbench.models.hooks import Run, Value, Where, require_inputs, rewritten, token_index
from workbench.models.layout import Layout, plain
from workbench.models.sides import WithoutAdapters, switches
from workbench.models.sites import Site, pick
from workbench.models.trial import tried


def bridge(model: nn.Module, tokenizer: Any, *, own: bool = False) -> Any:
    """A TransformerBridge over a copy of `model`; a PEFT model's adapters are merged in that copy,
    in its dtype, so that its weights are those it runs with.

    own: the model may be rewritten, so that no copy is needed.
    Raises WorkbenchError for an architecture that TransformerLens does not know, does not run, or
    runs to other logits than transformers. Nothing is fetched or installed.
    """
    from transformer_lens.model_bridge import TransformerBridge

    plain(model)  # raises before a copy is made
    root: Any = _merged(model if own else copy.deepcopy(model))
    expected = tried(root, 1, 4)
    # The pattern's hook needs attention that forms it.
    root.set_attn_implementation("eager")
    # Its adapter is chosen by this name, which a model that was never saved does not have.
    root.config.architectures = [type(root).__name__]
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            _nothing_installed(),
            _from_folder(tokenizer) as words,
        ):
            made = TransformerBridge.boot_transformers(
                root.config.model_type, hf_model=root, tokenizer=words
            )
            made = made.eval()
            found = made(torch.arange(3, 7, device=expected.device)[None], prepend_bos=False)
    except Exception as error:  # whatever an adapter of TransformerLens' raises
        told = reason(error).split(". ")[0].rstrip(".")
        raise WorkbenchError(
            f"TransformerLens cannot take {type(root).__name__} ({told}); use wb.models.capture or "
            "pair.to_nnsight(), which run it as it is."
        ) from error
    close = 1e-3 if expected.dtype == torch.float32 else 0.1
    if not torch.allclose(found[:, -1], expected, atol=5 * close, rtol=close):
        raise WorkbenchError(
            f"TransformerLens gives other logits for {type(root).__name__} than "
            "transformers does; use wb.models.capture or pair.to_nnsight(), which run it as it is."
        )
    return made


@provides("CheckpointPair.to_transformer_lens")
def bridges(
    pair: CheckpointPair, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """(base, tuned) of a pair, each a `bridge` over its own copy of the weights."""
    pair.require_weights()
    words = pair.base.tokenizer()
    base, tuned = (
        bridge(side.load(device, dtype), words, own=isinstance(side.reference, str))
        for side in (pair.base, pair.tuned)
    )
    return base, tuned


def _merged(model: Any) -> nn.Module:
    """`model`, which may be rewritten, without PEFT's wrappers: TransformerLens reads weights from
    under them, and drops those on a fused q, k, v projection in silence."""
    if isinstance(model, WithoutAdapters):
        return model.model.unload()
    if not hasattr(model, "peft_config"):
        return model
    switched_off = any(module._disable_adapters for module in switches(model))
    plain = model.unload() if switched_off else model.merge_and_unload()
    # PEFT froze what it wrapped; a bridge is also there for gradients.
    return plain.requires_grad_(True)


@contextlib.contextmanager
def _nothing_installed() -> Iterator[None]:
    """TransformerLens, without a processor of images, calls pip for the package that makes one."""
    from transformer_lens.model_bridge.sources.transformers import helpers

    own = getattr(helpers, "_ensure_torchvision", None)
    if own is None:
        yield
        return
    helpers._ensure_torchvision = lambda: False
    try:
        yield
    finally:
        helpers._ensure_torchvision = own


@contextlib.contextmanager
def _from_folder(tokenizer: Any) -> Iterator[Any]:
    """The tokenizer as loaded from a folder of ours: TransformerLens loads it once more from there,
    and asks whether to run any code that lies beside it."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, offline():
        tokenizer.save_pretrained(folder)
        yield AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def run(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    layout: Layout,
    read: Iterable[Site] = (),
    write: Mapping[Site, Value] | None = None,
    at: Where | None = None,
) -> Run:
    """As `hooks.run`. model: what `bridge` made; layout: `Layout` of the plain model."""
    require_inputs(inputs)
    found: dict[Site, Tensor] = {}
    reached: set[Site] = set()
    hooks: list[tuple[str, Any]] = []
    for site, value in (write or {}).items():

        def change(full: Tensor, hook: Any, site: Site = site, value: Value = value) -> Tensor:
            reached.add(site)
            new = rewritten(site, full, value, at)
            # Both readers of the stream before the MLP hold this very tensor.
            return full.copy_(new) if site.kind == "resid_mid" else new

        hooks.append((layout.lens(site), change))
    for site in read:

        def keep(full: Tensor, hook: Any, site: Site = site) -> None:
            found[site] = pick(site, full, token_index(site, full, at)).clone()

        hooks.append((layout.lens(site), keep))
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    logits = model.run_with_hooks(
        ids, return_type="logits", fwd_hooks=hooks, attention_mask=mask, prepend_bos=False
    )
    missed = [str(s) for s in (*(write or {}), *read) if s not in reached and s not in found]
    if missed:
        raise WorkbenchError(f"TransformerLens never reached {', '.join(missed)}.")
    return Run(logits, found)
