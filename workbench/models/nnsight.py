"""The contract of `hooks` on nnsight: the same sites, read and replaced inside one trace.

nnsight runs the transformers model itself, so its numbers are exactly those of `hooks`. Inside a
trace modules must be touched in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.hooks import Run, Value, Where, rewritten, token_index
from workbench.models.sites import KINDS, End, Layout, Site, end, pick


def wrap(model: nn.Module, tokenizer: Any = None) -> Any:
    """nnsight's view of a model; with a tokenizer a LanguageModel, which also takes text."""
    import nnsight

    root = Layout(model).root
    if tokenizer is None:
        return nnsight.NNsight(root)
    return nnsight.LanguageModel(root, tokenizer=tokenizer)


def run(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    layout: Layout,
    read: Iterable[Site] = (),
    write: Mapping[Site, Value] | None = None,
    at: Where | None = None,
) -> Run:
    """As `hooks.run`. model: what `wrap` made; layout: `Layout` of the plain model."""
    changes, wanted = dict(write or {}), list(read)
    found: dict[Site, Tensor] = {}
    kept: list[Tensor] = []
    eager = layout.root.config._attn_implementation == "eager"
    if not eager and any(site.kind == "pattern" for site in (*changes, *wanted)):
        raise WorkbenchError(
            "Patterns need attention that forms them: load the model with "
            'attn_implementation="eager", or call set_attn_implementation("eager") on it.'
        )
    places = sorted({site.order for site in (*changes, *wanted)})
    for layer, kind in places:
        if KINDS[kind] == "pattern":
            # An attention is made to tell its inner steps before it is entered.
            _ = _module(model, layout.path(Site("pattern", layer))).source.attention_interface_1
    with model.trace(**inputs, use_cache=False):
        for place in places:
            here = [site for site in changes if site.order == place]
            seen = [site for site in wanted if site.order == place]
            first = (here + seen)[0]
            handle = _handle(model, layout.path(first), end(first))
            raw = _get(handle, first)
            for site in here:
                raw = rewritten(site, raw, changes[site], at, partial(layout.view, site))
            if here:
                _set(handle, first, raw)
            for site in seen:
                full = layout.view(site, raw)
                found[site] = pick(site, full, token_index(site, full, at)).clone()
        kept.append(model.output.logits)
    return Run(kept[0], {site: found[site] for site in wanted})


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
