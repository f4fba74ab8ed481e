"""The contract of `hooks` on nnsight: the same sites, read and replaced inside one trace.

nnsight runs the transformers model itself, so its numbers are exactly those of `hooks`. Inside a
trace modules must be touched in the order in which they run.

The same trace can be sent to a server that holds the model (NDIF, or one of your own): `hosted`
names a model there, `run(..., remote=True)` sends it. What then holds: the server must serve that
very hub model, with nnsight of a matching version; NDIF needs an API key (NDIF_API_KEY, or
`nnsight login`); the model's weights stay there, so no adapter, edit or folder of this machine can
be run; every activation read comes back over the network, in whole or at the site's positions, on
the CPU, and every tensor or function that is written travels there with the code that this module
runs. Numbers are those of the server's device and dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, reason
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.models import site_verification
from workbench.models.hooks import Run, Value, Where, require_inputs, rewritten, token_index
from workbench.models.layout import Layout, plain
from workbench.models.sites import KINDS, End, Site, end, pick


def wrap(model: nn.Module, tokenizer: Any = None) -> Any:
    """nnsight's view of a model; with a tokenizer a LanguageModel, which also takes text."""
    import nnsight

    root = plain(model)
    if tokenizer is None:
        return nnsight.NNsight(root)
    return nnsight.LanguageModel(root, tokenizer=tokenizer)


def hosted(checkpoint: Checkpoint) -> Any:
    """nnsight's view of a public hub model on a server, without its weights; for `run(remote=True)`
    or to trace on one's own. Attention is eager, as of every model handed over.

    Only the hub's config and tokenizer are fetched. Raises WorkbenchError, before anything is read,
    for what only this machine has: a folder, a file, a model in memory, or one with an adapter; and
    where the hub does not give them.
    """
    import nnsight
    from transformers import AutoTokenizer

    require_public(checkpoint)
    name = str(checkpoint.reference)
    known = {"revision": checkpoint.revision} if checkpoint.revision else {}
    try:
        words = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **known)
        return nnsight.TransformersModel(
            name, tokenizer=words, task="text-generation", attn_implementation="eager",
            trust_remote_code=False, **known,
        )  # fmt: skip
    except Exception as error:  # the hub's client, transformers and nnsight raise many kinds
        raise WorkbenchError(
            f"The config and tokenizer of {checkpoint.name} cannot be read ({reason(error)}); "
            "check the hub id and the network."
        ) from error


def require_public(checkpoint: Checkpoint) -> None:
    """Raises WorkbenchError unless a server can know this checkpoint by its hub id."""
    reference = checkpoint.reference
    what = None
    if isinstance(reference, nn.Module):
        what = "a model in memory"
    elif checkpoint.adapter is not None:
        what = "an adapter"
    elif Path(reference).expanduser().exists() or reference.endswith(".gguf"):
        what = "a file or folder of this machine"
    if what is not None:
        raise WorkbenchError(
            f"{checkpoint.name} is {what}, which a remote server cannot hold; give a public hub id "
            '("org/name@revision"), or run it here with remote=False.'
        )


@provides("CheckpointPair.to_nnsight")
def wrapped(
    pair: CheckpointPair,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    remote: bool = False,
) -> tuple[Any, Any]:
    """(base, tuned) of a pair as LanguageModels with eager attention; remote: as `hosted`."""
    sides = (pair.base, pair.tuned)
    if remote:
        for side in sides:
            require_public(side)
        return hosted(pair.base), hosted(pair.tuned)
    pair.require_weights()
    words, made = pair.base.tokenizer(), []
    for side in sides:
        model = side.load(device, dtype)
        if isinstance(side.reference, str):
            plain(model).set_attn_implementation("eager")
        made.append(wrap(model, words))
    return made[0], made[1]


def run(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    layout: Layout,
    read: Iterable[Site] = (),
    write: Mapping[Site, Value] | None = None,
    at: Where | None = None,
    remote: bool | str = False,
) -> Run:
    """As `hooks.run`. model: what `wrap` or `hosted` made; layout: `Layout` of the plain model.

    remote: True sends the trace to the server that nnsight is set up for, a text to the one at that
    address; "local" packs and unpacks it as a server would and runs it here. Raises WorkbenchError
    for a model that only this machine has, before anything is run, or where the server fails.
    """
    import nnsight

    require_inputs(inputs)
    changes, wanted = dict(write or {}), list(read)
    routed = [site for site in (*changes, *wanted) if end(site) == "routing"]
    if routed:
        raise WorkbenchError(
            f"{routed[0]} is the input of experts, which a trace of nnsight cannot "
            "show; use wb.models.capture."
        )
    if not remote:
        site_verification.require(layout, wanted)
        site_verification.require(layout, changes, write=True)
    eager = layout.root.config._attn_implementation == "eager"
    if not eager and any(site.kind == "pattern" for site in (*changes, *wanted)):
        raise WorkbenchError(
            "Patterns need an attention implementation that computes them: load the "
            'model with attn_implementation="eager", or call '
            'set_attn_implementation("eager") on it.'
        )
    places = sorted({site.order for site in (*changes, *wanted)})
    for layer, kind in places:
        if KINDS[kind] == "pattern":
            # An attention is made to tell its inner steps before it is entered.
            _ = _module(model, layout.path(Site("pattern", layer))).source.attention_interface_1
    with _sent(model, remote) as options, model.trace(**inputs, use_cache=False, **options):
        # Saved one by one in a list: a server's answer can hold tensors, but no Site.
        rows = len(inputs["input_ids"])
        found = nnsight.save(_visited(model, layout, places, changes, wanted, at, rows))
        logits = nnsight.save(model.output.logits)
    return Run(logits, dict(zip(wanted, found, strict=True)))


@contextlib.contextmanager
def _sent(model: Any, remote: bool | str) -> Iterator[dict[str, Any]]:
    """What a trace is told of where it runs; a server's failure is one sentence."""
    if not remote:
        yield {}
        return
    import nnsight
    from nnsight.intervention.backends.remote import RemoteError

    if remote != "local" and getattr(model, "dispatched", True):
        raise WorkbenchError(
            "This model is in memory, which a remote server cannot hold; create it "
            "with `hosted` from a public hub id, or run it here with remote=False."
        )
    # The server has no workbench: what runs there travels as source.
    nnsight.register("workbench")
    try:
        yield {"remote": remote}
    except (RemoteError, OSError) as error:
        raise WorkbenchError(
            f"The remote server did not run the trace ({reason(error)}); check that it serves this "
            "model, the API key (NDIF_API_KEY) and the network."
        ) from error


def _visited(
    model: Any,
    layout: Layout,
    places: Iterable[tuple[int, int]],
    changes: Mapping[Site, Value],
    wanted: Iterable[Site],
    at: Where | None,
    rows: int,
) -> list[Tensor]:
    """Inside a trace: every place in the order of the model, written and then read; what `wanted`
    names, in its order. rows: of the batch."""
    found: dict[Site, Tensor] = {}
    for place in places:
        here = [site for site in changes if site.order == place]
        seen = [site for site in wanted if site.order == place]
        first = (here + seen)[0]
        handle = _handle(model, layout.path(first), end(first))
        raw = _get(handle, first)
        full = layout.view(first.whole, raw, rows)
        for site in here:
            new = rewritten(site, full, changes[site], at)
            raw = layout.put(site, raw, full, new, rows)
            full = layout.view(site, raw, rows)
        if here:
            _set(handle, first, raw)
        for site in seen:
            found[site] = pick(site, full, token_index(site, full, at)).clone()
    return [found[site] for site in wanted]


def _handle(model: Any, path: str, where: End) -> Any:
    """nnsight's own handle of a module, or of the softmax in its attention function, which
    transformers calls under this name."""
    module = _module(model, path)
    if where == "softmax":
        return module.source.attention_interface_1.source.nn_functional_softmax_0
    return module


def _module(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _get(handle: Any, site: Site) -> Tensor:
    if end(site) == "input":
        return handle.input
    found = handle.output
    return found[0] if isinstance(found, tuple) else found


def _set(handle: Any, site: Site, value: Tensor) -> None:
    if end(site) == "input":
        handle.input = value
    elif isinstance(handle.output, tuple):
        handle.output = (value, *handle.output[1:])
    else:
        handle.output = value
