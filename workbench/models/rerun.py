"""Prompts run once; of what follows a change, only that is run again.

A patch at layer l and token t changes no layer before l and, attention being causal, no token
before t. So the residual stream, the keys and the values of one plain run are kept, and a patched
run enters at layer l with the tokens from t on. The last layer's MLP and the logits are made at the
answer's predictors alone, and several patches of one batch can share a forward pass.

What a model cannot be spared so (`savings`) is run again.

    once = Rerun(model, inputs, read=[Site("z", 4)])
    once.logits                                             (1, batch, answer, vocabulary)
    once.again([{Site("z", 4, head=2): other}, ...])        (patches, batch, answer, vocabulary)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.errors import WorkbenchError
from workbench.models.hooks import Where, capture, replace
from workbench.models.layout import Layout
from workbench.models.savings import begun, savings, skipped
from workbench.models.sites import Site, pick, put
from workbench.models.watching import first_tensor
from workbench.tasks.batching import Batch


class Plus(NamedTuple):
    """A value to be added to what a patched run has at a site, and not to replace it."""

    delta: Tensor


class Outside(NamedTuple):
    """A value written at every token of a site but those that are kept, (batch, token)."""

    value: Tensor
    kept: Tensor


Write = Tensor | Plus | Outside
Writes = Mapping[Site, Write]


class Rerun:
    """A plain run of `inputs`, which carry their answers, ready to be run again with patches.

    read: sites kept from the plain run, in `kept`. logits: (1, batch, answer, vocabulary), as the
    model gives them, at the tokens that predict the answer's. prefix: keep keys and values, without
    which every run again is of all tokens. forwards: what all runs have cost so
    far, in plain forward passes of one batch (layers times tokens, as far as they were run).
    """

    def __init__(
        self, model: Any, inputs: Batch, read: Iterable[Site] = (), *, prefix: bool = True
    ) -> None:
        self.model, self.inputs, self.layout = model, inputs, Layout(model)
        self.scored = predictors(inputs)
        self.saves = savings(model)
        self._stream = [Site("resid_pre", layer) for layer in range(self.layout.layers)]
        wanted = {*self._stream, *read}
        cache = DynamicCache() if self.saves.tokens else None
        with torch.no_grad(), capture(model, wanted, at=inputs.index) as kept:
            self.logits = self._call(cache, 1, 0)[None]
        self.kept = dict(kept)
        layers: Any = cache.layers if cache is not None and prefix else ()
        self._cached = [(layer.keys, layer.values) for layer in layers]
        self.forwards = 1.0

    @property
    def bytes(self) -> int:
        """What it keeps of the plain run."""
        cached = (tensor for pair in self._cached for tensor in pair)
        return sum(tensor.nbytes for tensor in (*self.kept.values(), *cached, self.logits))

    def read(self, site: Site, inputs: Batch | None = None) -> Tensor:
        """The site's activation in the plain run, from what was kept of its whole kind and layer.

        inputs: whose positions are meant, where the run's own batch is not (equal rows).
        """
        full = self.kept[site.whole]
        if site.position is None:
            return pick(site, full, None)
        return pick(site, full, (inputs or self.inputs).index(site.position))

    def added(self, site: Site, value: Tensor) -> Tensor:
        """What one head (a z site) with this z, (batch, p, d_head), adds to the stream through this
        model's output projection, (batch, p, width)."""
        part = self.layout.parts(site.layer)
        alone = value.new_zeros(*value.shape[:2], part.heads, part.width)
        alone[:, :, site.head] = value
        module: Any = self.layout.module(site)
        with torch.no_grad(), getattr(self.model, "as_run", contextlib.nullcontext)():
            flat = torch.stack([alone, torch.zeros_like(alone)]).flatten(-2)
            own, bias = module(flat)
        return (own - bias) * self.layout.scale(Site("attn_out", site.layer))

    def again(
        self,
        patches: Sequence[Writes],
        *,
        layer: int | None = None,
        whole: bool = False,
        gradients: bool = False,
    ) -> Tensor:
        """Logits (patches, batch, answer, vocabulary) with each patch's sites replaced.

        Values have the sites' shapes; a `Plus` is added to what the run has there, an `Outside`
        leaves the run what it has at some tokens. layer: enter there although no site is replaced
        (parameters were). whole: run every token, so that an unchanged patch gives the plain run
        bit for bit. gradients: they flow from the logits to the values.
        """
        return self.observed(patches, layer=layer, whole=whole, gradients=gradients)[0]

    def observed(
        self,
        patches: Sequence[Writes],
        read: Iterable[Site] = (),
        *,
        layer: int | None = None,
        whole: bool = False,
        gradients: bool = False,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """As `again`, with these sites read in the patched runs, (patches, batch, ...) each; they
        must not lie before the first patch, in layers or in tokens."""
        read = list(read)
        if not whole:
            patches = self._entered_late(patches, read)
        sites = [self.layout.check(site) for patch in patches for site in patch]
        start = min([site.layer for site in sites] + ([] if layer is None else [layer]))
        start = start if self.saves.blocks else 0
        plain = whole or layer is not None or any(_reads_whole(self, s) for s in [*sites, *read])
        first = 0 if plain or not self._cached else self._first(sites, read)
        cache = self._prefix(len(patches), first, start)
        at = self._at(len(patches), first)
        # A predictor that is repeated would be given its gradient as often.
        every = whole or gradients or any(map(self._in_last, [*sites, *read]))
        with (
            torch.set_grad_enabled(gradients),
            self._entered(start, len(patches), first),
            self._last_thinned(len(patches), first, every),
            replace(self.model, self._changes(patches, first)),
            capture(self.model, read, at=at) as found,
        ):
            logits = self._call(cache, len(patches), first)
        layers, tokens = self.layout.layers, self.inputs.ids.shape[1]
        self.forwards += len(patches) * (1 - start / layers) * (1 - first / tokens)
        shape = (len(patches), len(self.inputs.ids))
        return logits.unflatten(0, shape), {s: t.unflatten(0, shape) for s, t in found.items()}

    def joined(self, site: Site) -> Site:
        """What is written behind a block, as what the next one reads, where the two are one: that
        block need not run then."""
        last = self.layout.layers - 1
        if site.kind != "resid_post" or site.layer == last or not self.saves.joined:
            return site
        return dataclasses.replace(site, kind="resid_pre", layer=site.layer + 1)

    def _entered_late(self, patches: Sequence[Writes], read: Sequence[Site]) -> Sequence[Writes]:
        """The patches with `joined` sites, unless what is between the two is written or read."""
        seen = min((site.layer for site in read), default=self.layout.layers)
        made = []
        for patch in patches:
            known = {site.whole for site in patch}
            late = [site for site in patch if self.joined(site) != site]
            if any(site.layer >= seen or self.joined(site).whole in known for site in late):
                return patches
            made.append({self.joined(site): value for site, value in patch.items()})
        return made

    def _call(self, cache: DynamicCache | None, times: int, first: int) -> Tensor:
        """Logits at the predictors, (times * batch, answer, vocabulary)."""
        ids, mask = (t.repeat(times, 1) for t in (self.inputs.ids, self.inputs.mask))
        known = {} if cache is None else {"past_key_values": cache}
        with answers_only(self.layout, (self.scored - first).repeat(times, 1)):
            return self.model(
                input_ids=ids[:, first:], attention_mask=mask, use_cache=bool(known), **known
            ).logits

    def _first(self, sites: Iterable[Site], read: Iterable[Site]) -> int:
        """The first token that any of these sites, or the answer, needs."""
        needed = [int(self.scored.min())]
        for site in (*sites, *read):
            assert site.position is not None
            needed.append(int(self.inputs.index(site.position).min()))
        return min(needed)

    def _at(self, times: int, first: int) -> Where:
        return lambda position: (self.inputs.index(position) - first).repeat(times, 1)

    def _prefix(self, times: int, first: int, start: int) -> DynamicCache | None:
        """Keys and values of the tokens before `first`, for every layer; updates leave ours."""
        return begun(self._cached, times, first, start) if self.saves.tokens else None

    @contextlib.contextmanager
    def _entered(self, start: int, times: int, first: int) -> Iterator[None]:
        """Blocks before `start` are skipped; the plain run's stream comes out of them."""
        if start == 0:
            yield
            return
        stream = self.kept[self._stream[start]][:, first:].repeat(times, 1, 1)
        with skipped(self.layout, start, stream):
            yield

    def _in_last(self, site: Site) -> bool:
        """Whether a site lies within the last layer, and not before it."""
        return site.layer == self.layout.layers - 1 and site.kind != "resid_pre"

    @contextlib.contextmanager
    def _last_thinned(self, times: int, first: int, off: bool) -> Iterator[None]:
        """In the last layer what works token by token runs for the answer's predictors alone: of
        the other tokens only keys and values are read there."""
        block = self.layout.block(self.layout.layers - 1)
        inside = [] if off else self._token_wise()
        index = (self.scored - first).repeat(times, 1)
        rows = torch.arange(len(index), device=index.device)[:, None]
        tokens = self.inputs.ids.shape[1] - first

        # Whether the modules now running were given all tokens in one row; None: other tokens.
        flat: list[bool | None] = []

        def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = first_tensor(args, kwargs)
            assert given is not None
            each = (len(index), tokens)
            known = given.shape[:2] == each or given.shape[:-1] == (len(index) * tokens,)
            flat.append(given.ndim == 2 if known else None)
            if not known:
                return None
            some = given.unflatten(0, (len(index), tokens)) if flat[-1] else given
            some = some[rows, index].flatten(0, 1) if flat[-1] else some[rows, index]
            args = tuple(some if value is given else value for value in args)
            return args, {n: some if value is given else value for n, value in kwargs.items()}

        def after(_module: Any, _args: Any, output: Any) -> Any:
            made = output[0] if isinstance(output, tuple) else output
            was_flat = flat.pop()
            if was_flat is None:
                return None
            own = made.unflatten(0, index.shape) if made.ndim == 2 else made
            full = own.new_zeros(len(index), tokens, own.shape[-1])
            full[rows, index] = own
            full = full.flatten(0, 1) if was_flat else full
            return (full, *output[1:]) if isinstance(output, tuple) else full

        handles = []
        for name in inside:
            module = block.get_submodule(name)
            handles += [module.register_forward_pre_hook(before, with_kwargs=True)]
            handles += [module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _token_wise(self) -> list[str]:
        """The modules of the last block that work on every token by itself, if any token's keys and
        values are made apart from them."""
        part = self.layout.parts(self.layout.layers - 1)
        if part.attn is None or part.mlp is None or part.mixer is not None or not part.whole:
            return []
        alone = part.q is not None and part.q.order in ("own", "first")
        return [part.mlp.within, part.o, *([part.q.path] if part.q is not None and alone else [])]

    def _changes(self, patches: Sequence[Writes], first: int) -> dict[Site, Any]:
        """Per place one function that writes every patch's value into its own rows."""
        size = len(self.inputs.ids)
        placed: dict[Site, list[tuple[int, Site, Write]]] = {}
        for number, patch in enumerate(patches):
            for site, value in patch.items():
                placed.setdefault(site.whole, []).append((number, site, value))

        def change(full: Tensor, own: list[tuple[int, Site, Write]]) -> Tensor:
            for number, site, value in own:
                rows = full[number * size : (number + 1) * size]
                index = None
                if site.position is not None:
                    index = self.inputs.index(site.position) - first
                put(site, rows, index, _new(value, site, rows, index))
            return full

        return {whole: lambda full, own=own: change(full, own) for whole, own in placed.items()}


def _new(value: Write, site: Site, full: Tensor, index: Tensor | None) -> Tensor:
    """What a run is given at a site of `full`."""
    if isinstance(value, Tensor):
        return value
    own = pick(site, full, index)
    if isinstance(value, Plus):
        return own + value.delta.to(own)
    kept = value.kept.to(own.device)
    return torch.where(kept.view(*kept.shape, *[1] * (own.ndim - 2)), own, value.value.to(own))


def _reads_whole(run: Rerun, site: Site) -> bool:
    """Whether a site needs every token: all positions, or patterns, whose keys are all tokens."""
    return site.position is None or site.kind == "pattern"


def predictors(inputs: Batch) -> Tensor:
    """(batch, answer) the tokens that predict each token of the answer, the last one repeated where
    answers are shorter; the prompt's last token where there is no answer."""
    most = max(1, *(len(row.answer) for row in inputs.rows)) if inputs.rows else 0
    if not most:
        raise WorkbenchError("Expected prompts to run, found none; give at least one.")
    steps = torch.arange(most, device=inputs.ids.device)
    spare = torch.tensor([max(len(row.answer), 1) - 1 for row in inputs.rows]).to(steps.device)
    return inputs.last[:, None] + torch.minimum(steps, spare[:, None])


@contextlib.contextmanager
def answers_only(layout: Layout, index: Tensor) -> Iterator[None]:
    """The model's head sees these tokens of each row alone, (batch, p)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    head: Any = layout.root.get_output_embeddings()

    def picked(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, index], *args[1:])

    handle = head.register_forward_pre_hook(picked)
    try:
        yield
    finally:
        handle.remove()
