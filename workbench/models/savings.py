"""What a run that is entered in the middle can be spared: the tokens and the blocks before it.

Not every model can be run so: a state-space model's state is of no token, and blocks may read the
keys of earlier ones. Each model is tried once on a few tokens; what does not give the whole run's
logits is not left out of any run of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.loaders.devices import home
from workbench.models import site_verification
from workbench.models.hooks import capture, replace
from workbench.models.known import Known
from workbench.models.layout import Layout
from workbench.models.sites import KINDS, Site


class Savings(NamedTuple):
    """What a model can be spared: the tokens and the blocks before a change, and the block whose
    output is changed, where the next one reads nothing else."""

    tokens: bool
    blocks: bool
    joined: bool = False


TOKENS, TIMES = 6, 2  # of a trial; how many runs share its forward pass
NOTHING = Savings(tokens=False, blocks=False)
_SAVINGS: Known[Savings] = Known()


def begun(kept: Sequence[tuple[Any, Any]], times: int, first: int, start: int = 0) -> DynamicCache:
    """A cache of the keys and values of the first tokens, every row so many times; of the blocks
    before `start`, which are not run, one row that says how many tokens there are."""
    cache = DynamicCache()
    layers: Any = cache.layers
    for layer, both in enumerate(kept if first else ()):
        rows = len(both[0]) if layer >= start else 1
        cache.update(*(part[:rows, :, :first] for part in both), layer)
        if layer >= start and times > 1:
            again = torch.arange(rows, device=both[0].device).repeat(times)
            layers[layer].batch_select_indices(again)
    return cache


@contextlib.contextmanager
def skipped(layout: Layout, start: int, stream: Tensor) -> Iterator[None]:
    """The blocks before `start` give this stream, and do nothing."""
    passed: list[Any] = [layout.block(layer) for layer in range(start)]
    before = [block.__dict__.get("forward") for block in passed]
    try:
        for layer, block in enumerate(passed):
            many = layout.parts(layer).gives
            given = (stream, *[None] * (many - 1)) if many else stream
            block.forward = lambda *_args, _given=given, **_kwargs: _given
        yield
    finally:
        for block, forward in zip(passed, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def savings(model: Any) -> Savings:
    """What a model can be spared, tried once: a run that enters in the middle, behind the first of
    a few tokens or with all of them, must give the plain run's logits."""
    layout = Layout(model)
    starts = sorted({min(1, layout.layers - 1), layout.layers // 2, layout.layers - 1})

    def found() -> tuple[Savings, bool]:
        for own in (Savings(tokens=True, blocks=True), Savings(tokens=False, blocks=True)):
            if all(_holds(model, own, start) for start in starts):
                return own._replace(joined=_joined(model)), True
        return NOTHING, False  # for this model's numbers may be at fault

    return _SAVINGS.of(layout.root, found)


def _joined(model: Any) -> bool:
    """Whether every block reads what the one before it gives, bit for bit, also where that is
    changed between the two."""
    layout = Layout(model)
    pairs = [
        (Site("resid_post", layer), Site("resid_pre", layer + 1))
        for layer in range(layout.layers - 1)
    ]
    ids = (torch.arange(3, 3 + TOKENS, device=home(layout.root)) % _words(layout))[None]
    more = {before: lambda own: own + 1 for before, _ in pairs}
    sites = [site for both in pairs for site in both]
    try:
        with torch.no_grad(), replace(model, more), capture(model, sites) as seen:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception:  # whatever a model that has no such places may raise
        return False
    return all(torch.equal(seen[before], seen[after]) for before, after in pairs)


def _words(layout: Layout) -> int:
    return len(layout.root.get_input_embeddings().weight)


def _holds(model: Any, saved: Savings, start: int) -> bool:
    """Whether the same logits come out where so much is left out before this block."""
    layout = Layout(model)
    ids = (torch.arange(3, 3 + TOKENS, device=home(layout.root)) % _words(layout))[None]
    mask = torch.ones_like(ids)
    first = TOKENS // 2 if saved.tokens else 0
    cache = DynamicCache() if saved.tokens else None
    known = {} if cache is None else {"past_key_values": cache}
    try:
        with torch.no_grad(), capture(model, [Site("resid_pre", start)]) as kept:
            plain = model(input_ids=ids, attention_mask=mask, use_cache=bool(known), **known)
        if cache is not None:
            layers: Any = cache.layers
            own = [(one.keys, one.values) for one in layers]
            known = {"past_key_values": begun(own, TIMES, first, start)}
        stream = kept[Site("resid_pre", start)][:, first:].repeat(TIMES, 1, 1)
        ids, mask = ids.repeat(TIMES, 1), mask.repeat(TIMES, 1)
        sites = [Site(kind, start) for kind in KINDS if start in layout.where(kind)]
        bad = site_verification.refused(layout)
        sites = [site for site in sites if site.kind != "pattern" and site.kind not in bad]
        with torch.no_grad(), skipped(layout, start, stream), capture(model, sites) as seen:
            again = model(
                input_ids=ids[:, first:], attention_mask=mask, use_cache=bool(known), **known
            )
    except Exception:  # whatever a model that cannot do this may raise
        return False
    # Where earlier tokens' values are made anew from what is kept, a place has another number.
    if any(value.shape[1] != TOKENS - first for value in seen.values()):
        return False
    one, other = (run.logits[:, -1].float() for run in (plain, again))
    close = 1e-4 if plain.logits.dtype == torch.float32 else 0.05
    return bool(((one - other).abs().amax() <= close * one.abs().amax()).item())
