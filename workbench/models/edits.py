"""Edits of the weights: theta = theta_0 + sum over parts of alpha . m * P(delta).

delta is one parameter's change in a pair, m a mask (everything, whole layers or components, single
entries), P a projection (the change itself, its best rank-k, 1-bit or tiered approximation). Edits
of one base add up. Nothing is written in place: a model runs with other tensors for as long as a
block lasts and has its own again afterwards; checkpoints are never touched. alpha = 0 or m = 0
gives the base's parameter bit for bit, alpha = 1 without mask and projection the tuned one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.devices import Device, instead, offloaded, spread
from workbench.loaders.experts import running, stored_name, view
from workbench.loaders.loaded_weights import run_names
from workbench.loaders.names import ParameterSite, align, is_conv1d
from workbench.numerics import svd

Mask = Callable[[ParameterSite], bool | float | Tensor]
Projection = Callable[[Delta], Tensor | None]
Triplets = tuple[Tensor, ...]  # left, values, right
# Delta-CoMe's (singular vectors, bits) of matrices that are WIDE, arXiv 2406.08903.
TIERS, WIDE = ((2, 8), (32, 3), (968, 2)), 4096


@dataclass(frozen=True)
class Part:
    """alpha . m * P(delta) of one pair. mask None: everywhere; projection None: the change."""

    pair: CheckpointPair
    alpha: float = 1.0
    mask: Mask | None = None
    projection: Projection | None = None

    def edited(self, site: ParameterSite) -> Tensor | None:
        """The parameter with this part alone; None where it changes nothing. Where nothing but the
        change itself is asked for, the tuned entries are taken as they are: base + (tuned - base)
        would round."""
        weight = self._weight(site)
        if weight is None:
            return None
        delta = self.pair.delta(site)
        if not delta.changed:
            return None
        if self.projection is None and self.alpha == 1:
            if weight is True:
                return delta.tuned
            if isinstance(weight, Tensor) and weight.dtype == torch.bool:
                return torch.where(weight, delta.tuned, delta.base)
            if isinstance(weight, Tensor):
                return torch.addcmul(delta.base.float(), weight, delta.change)
        change = self.change(site)
        return None if change is None else delta.base.float() + change

    def change(self, site: ParameterSite) -> Tensor | None:
        """alpha . m * P(delta) in float32, (out, in) or (n,); None where it is zero."""
        weight = self._weight(site)
        if weight is None:
            return None
        delta = self.pair.delta(site)
        found = delta.change if self.projection is None else self.projection(delta)
        if found is None:
            return None
        if isinstance(weight, Tensor):
            return self.alpha * weight.to(found.device) * found
        return self.alpha * float(weight) * found

    def _weight(self, site: ParameterSite) -> bool | float | Tensor | None:
        """The mask at one parameter; None where nothing of it is left."""
        weight = True if self.mask is None else self.mask(site)
        if self.alpha == 0 or (not isinstance(weight, Tensor) and not weight):
            return None
        return weight


@dataclass(frozen=True)
class Edit:
    """A sum of parts over one base; `edit(pair, ...)` makes one, `+` adds two."""

    parts: tuple[Part, ...]

    def __add__(self, other: Edit) -> Edit:
        bases = {part.pair.base.fingerprint for part in (*self.parts, *other.parts)}
        if len(bases) > 1:
            raise WorkbenchError(
                "Edits can only be added over one base, but these pairs have "
                "different ones; give pairs of one base."
            )
        return Edit(self.parts + other.parts)

    @cached_property
    def pair(self) -> CheckpointPair:
        return self.parts[0].pair

    def tensor(self, site: ParameterSite) -> Tensor | None:
        """The edited parameter, (out, in) or (n,); None where it is the base's."""
        # The first part may be a whole tuned side, whose exact tensor the others are added to.
        first, *others = self.parts
        total = first.edited(site)
        for part in others:
            change = part.change(site)
            if change is not None:
                start = self.pair.delta(site).base if total is None else total
                total = start.float().to(change.device) + change
        return total

    def change(self, site: ParameterSite) -> Tensor:
        """What the edit adds to the base's parameter, float32 on the CPU, (out, in) or (n,): its
        parts' sum. Not `tensor` less the base, whose rounding is of full rank, and can be large
        beside a small change."""
        parts = [part.change(site) for part in self.parts]
        nothing = torch.zeros(self.pair.delta(site).base.shape)
        return sum((one.cpu() for one in parts if one is not None), nothing)

    def within(self, here: Callable[[ParameterSite], bool]) -> Edit:
        """The same edit where `here` says so, and the base elsewhere."""

        def inside(part: Part) -> Part:
            def mask(site: ParameterSite) -> bool | float | Tensor:
                if not here(site):
                    return False
                return True if part.mask is None else part.mask(site)

            return replace(part, mask=mask)

        return Edit(tuple(inside(part) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """Base name -> edited parameter, for every parameter that is not the base's."""
        for part in self.parts:
            _require_tied(part.pair)
        found = {}
        for site in self.pair.sites("all"):
            tensor = self.tensor(site)
            if tensor is not None:
                found[site.name] = tensor
        return found

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model`, a plain (not PEFT) model of the base's architecture, with the edited parameters.

        Every other parameter must be the base's already.
        """
        with overlay(model, self.tensors(), self.pair) as edited:
            yield edited


def edit(
    pair: CheckpointPair,
    alpha: float = 1.0,
    mask: Mask | None = None,
    projection: Projection | None = None,
) -> Edit:
    """theta_0 + alpha . mask * projection(delta), as an Edit of one part. Raises WorkbenchError for
    a member that changes no weight."""
    pair.require_weights()
    return Edit((Part(pair, alpha, mask, projection),))


def only(layers: Collection[int] | None = None, components: Collection[str] | None = None) -> Mask:
    """A mask of whole matrices: these layers, these components ("self_attn.q_proj"), or both."""

    def mask(site: ParameterSite) -> bool:
        return (layers is None or site.layer in layers) and (
            components is None or site.component in components
        )

    return mask


def entries(masks: Mapping[str, Tensor]) -> Mask:
    """A mask of single entries: base name -> tensor of the parameter's shape, (out, in); bool, or
    float for a soft mask. Parameters without one stay the base's."""
    return lambda site: masks.get(site.name, False)


def decomposed(delta: Delta) -> Triplets:
    """(left, values, right) of a matrix's change, largest first: left (out, k), right (k, in). A
    low-rank change gives its own k, from two thin QR and one k x k SVD; others min(out, in)."""
    if delta.factors is None:
        return svd(delta.change)
    left, up = torch.linalg.qr(delta.factors.up)
    right, down = torch.linalg.qr(delta.factors.down.T)
    first, values, last = svd(up @ down.T)
    return left @ first, values, last @ right.T


def once(decompose: Callable[[Delta], Triplets] = decomposed) -> Callable[[Delta], Triplets]:
    """The same, remembered by the parameter's name: several projections of one pair then share one
    decomposition of each matrix, all of which stay in memory."""
    kept: dict[str, Triplets] = {}

    def remembered(delta: Delta) -> Triplets:
        if delta.site.name not in kept:
            kept[delta.site.name] = decompose(delta)
        return kept[delta.site.name]

    return remembered


def truncated(rank: int, decompose: Callable[[Delta], Triplets] = decomposed) -> Projection:
    """The best rank-k approximation of a matrix's change (Eckart & Young 1936); vectors whole."""
    if rank < 1:
        raise WorkbenchError(f"Expected a rank of at least 1, found {rank}.")

    def project(delta: Delta) -> Tensor:
        if delta.change.ndim < 2:
            return delta.change
        left, values, right = decompose(delta)
        return (left[:, :rank] * values[:rank]) @ right[:rank]

    return project


def one_bit() -> Projection:
    """sign(delta) . mean|delta|, the L2-optimal single scale (BitDelta, arXiv 2402.10193).

    Entries that did not change at all, as many in 16 bits do not, stay so, and the mean is over the
    others: without any it is BitDelta's.
    """

    def project(delta: Delta) -> Tensor:
        moved = delta.change.abs().sum() / delta.change.count_nonzero().clamp(min=1)
        return delta.change.sign() * moved

    return project


def tiers_of(shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The published tiers for a matrix of another width: as many vectors for its smaller side, of
    every tier one at least."""
    return tuple((max(1, round(many * min(shape) / WIDE)), bits) for many, bits in TIERS)


def tiered(
    tiers: Sequence[tuple[int, int]] | None = None,
    decompose: Callable[[Delta], Triplets] = decomposed,
) -> Projection:
    """Singular vectors of the change at fewer bits the smaller their value, the rest dropped.

    tiers: (how many vectors, bits) from the largest on; None takes `tiers_of` each matrix. Each
    vector is rounded to 2^bits - 1 even steps over its largest magnitude; the published method
    quantises with calibration data instead.
    """

    def project(delta: Delta) -> Tensor:
        if delta.change.ndim < 2:
            return delta.change
        left, values, right = decompose(delta)
        total, start = torch.zeros_like(delta.change), 0
        for count, bits in tiers or tiers_of(delta.base.shape):
            part = slice(start, start + count)
            coarse = _rounded(left[:, part] * values[part].sqrt(), bits, 0)
            total += coarse @ _rounded(values[part].sqrt()[:, None] * right[part], bits, 1)
            start += count
        return total

    return project


def _rounded(vectors: Tensor, bits: int, axis: int) -> Tensor:
    steps = max(1, 2 ** (bits - 1) - 1)
    scale = vectors.abs().amax(axis, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
    return (vectors / scale * steps).round() / steps * scale


def merged(
    pair: CheckpointPair, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The tuned side as one plain model, an adapter merged in float32 before the cast to `dtype`.

    Raises WorkbenchError for a member in memory: it would be changed.
    """
    if isinstance(pair.tuned.reference, nn.Module):
        raise WorkbenchError(
            "Expected a checkpoint on disk, found a model in memory; save it and give the folder."
        )
    pair.require_weights()
    _require_tied(pair)
    if pair.resized and pair.tuned.lora is not None:
        raise WorkbenchError(
            f"{pair.name} adds embeddings of tokens that its base does not have, which "
            "no edit of the base can represent; run it unmerged (pair.models()), or "
            "merge it with peft."
        )
    if not isinstance(device, str | torch.device) or spread(device):
        if pair.tuned.lora is None:
            return pair.tuned.load(device, dtype)
        raise WorkbenchError(
            f"{pair.name} is an adapter, which can only be merged on one device; merge "
            "it first, or give one device."
        )
    model = pair.tuned.bare.load("cpu", torch.float32)
    if pair.tuned.lora is not None:
        touched = {*pair.adapted, *pair.replaced}
        sites = [s for s in pair.sites("all") if pair.comparable[s.name] in touched]
        _swap(model, {s.name: pair.delta(s).tuned for s in sites}, pair)
    return model.to(device=device, dtype=dtype)


@contextlib.contextmanager
def overlay(
    model: nn.Module, tensors: Mapping[str, Tensor], pair: CheckpointPair
) -> Iterator[nn.Module]:
    """`model` with these parameters, (out, in) by base name, then with its own again.

    The model's own parameters are set aside, not written to, so that another model that shares them
    is not changed. Raises WorkbenchError for a name the model does not have, before any change.
    """
    undo = _swap(model, tensors, pair)
    try:
        yield model
    finally:
        for back in reversed(undo):
            back()


def _swap(
    model: nn.Module, tensors: Mapping[str, Tensor], pair: CheckpointPair
) -> list[Callable[[], None]]:
    """Give the model these parameters, or buffers; returns what gives it back its own, the last
    first."""
    homes = tensor_homes(model)
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    places = running(model)
    found = align(list(tensors), list(places))
    others = run_names(model, [name for name in tensors if name not in found])
    found |= {name: there for name, there in others.items() if there in places}
    # A head that only one side has of its own is edited apart from the embedding it is tied to.
    apart = bool(pair.base.heads or pair.tuned.heads)
    missing = [name for name in tensors if name not in found]
    if missing:
        raise WorkbenchError(
            f"{type(model).__name__} has no separate parameter {missing[0]}, so it "
            "cannot be edited there; run the pair as it is (pair.models())."
        )
    config = pair.tuned.config
    fresh: dict[str, Any] = {}
    for name, target in found.items():
        place = places[target]
        old = own[stored_name(place)]
        part = view(own, place)
        if name in pair.resized:
            # Tokens that only one side has keep what they are.
            part = part[: len(tensors[name])]
        tensor = tensors[name].T if is_conv1d(name, config) else tensors[name]
        if tensor.numel() != part.numel():
            raise WorkbenchError(
                f"{name} has the shape {tuple(tensor.shape)} but the model's {tuple(part.shape)}."
            )
        where = "cpu" if old.is_meta else old.device
        tensor = tensor.reshape(part.shape).to(device=where, dtype=old.dtype)
        if part.shape != old.shape:
            if old.is_meta:
                raise WorkbenchError(
                    f"{name} is a part of {stored_name(place)}, which is offloaded and "
                    "can only be edited as a whole; put it on a device."
                )
            # The other experts, or tokens, of the tensor stay as they are.
            target = stored_name(place)
            whole = fresh.get(target)
            whole = old.detach().clone() if whole is None else whole.detach()
            view({target: whole}, place)[: len(tensor)].copy_(tensor)
            tensor = whole
        tensor = tensor.contiguous()
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        fresh[target] = tensor
    undo: list[Callable[[], None]] = []
    for target, parameter in fresh.items():
        for module, attribute in homes[id(own[target])]:
            if apart and module is not model.get_submodule(target.rpartition(".")[0]):
                continue
            if offloaded(module):
                _require_apart(model, module)
                undo.append(instead(module, attribute, parameter.data))
                continue
            kept = module._parameters if attribute in module._parameters else module._buffers
            undo.append(partial(kept.__setitem__, attribute, kept[attribute]))
            kept[attribute] = parameter
    return undo


def _require_apart(model: Any, module: nn.Module) -> None:
    """Once offloaded, embedding and head are no more one tensor."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and module in ends:
        raise WorkbenchError(
            "An embedding that is tied to the head cannot be edited while it is "
            "offloaded; put both on a device."
        )


def _require_tied(pair: CheckpointPair) -> None:
    """An adapter with its own embedding or head over tied ones unties them where it is run, which
    no edit of the tied tensor can show."""
    lora = pair.tuned.lora
    if lora is None or not pair.tuned.config.get("tie_word_embeddings"):
        return
    apart = [n for n in lora.replaced if "embed" in n or "lm_head" in n or n.endswith("wte.weight")]
    if apart:
        raise WorkbenchError(
            f"{pair.name} saves its own {apart[0]} over embeddings that its base ties "
            "to the head, so it cannot be written as an edit of the base; run it "
            "unmerged (pair.models())."
        )


def tensor_homes(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place a parameter or a buffer stands in; tied ones stand in several."""
    homes: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                homes.setdefault(id(tensor), []).append((module, name))
    return homes
