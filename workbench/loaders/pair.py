"""A base checkpoint and a fine-tuned one, matched parameter by parameter and read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from workbench.conveniences import convenience
from workbench.errors import WorkbenchError, visible
from workbench.loaders.adapters import SoftPrompt, Target, Tuning
from workbench.loaders.checkpoint import Checkpoint, is_adapter
from workbench.loaders.config_against_weights import running_order
from workbench.loaders.delta import Delta, SealedDelta
from workbench.loaders.devices import Device, entry
from workbench.loaders.experts import running, stored_name, view
from workbench.loaders.names import HEAD, TOKENS, ParameterSite, align, is_conv1d, locate
from workbench.loaders.weights import Weights
from workbench.results.result import Provenance

if TYPE_CHECKING:
    import contextlib

    from workbench.loaders.pair_report import PairReport
    from workbench.models.sides import Sides

Reference = str | Path | nn.Module | Checkpoint
Select = Literal["matrices", "all"]
SAME = (
    "base and tuned model are the same, so every number here is the exact null and "
    "carries no information."
)


@dataclass(frozen=True)
class CheckpointPair:
    """A base and one fine-tuned member. `name` is the member's name in tables and figures."""

    base: Checkpoint
    tuned: Checkpoint
    name: str = "tuned"

    def __post_init__(self) -> None:
        """A side whose head is its embedding lists it as a parameter where the other side has a
        head of its own, or an adapter of the head: there it is one that changed."""
        own = {"base": _heads_of(self.base), "tuned": _heads_of(self.tuned)}
        wanted = own["base"] | own["tuned"] | _adapted_heads(self.tuned)
        for which, there in own.items():
            side: Checkpoint = getattr(self, which)
            lone = tuple(sorted(wanted - there))
            if lone and side.config.get("tie_word_embeddings") and not side.heads:
                object.__setattr__(self, which, replace(side, heads=lone))

    @cached_property
    def shared_base(self) -> bool:
        """Whether the member is an adapter on this very base, so that factors are its change."""
        if self.tuned.lora is None:
            return False
        same = self.tuned.reference is self.base.reference or self.tuned.bare == self.base
        if not same and self.base.folder is not None and self.tuned.folder is not None:
            same = self.base.adapter is None and self.tuned.folder.samefile(self.base.folder)
        if not same and self.tuned.folder is None and self.base.lora is None:
            return self.tuned.base_fingerprint == self.base.content
        return same or self.tuned.base_fingerprint == self.base.fingerprint

    @cached_property
    def matched(self) -> Mapping[str, str]:
        """Base name -> name in the member's (bare) weights; shapes not yet compared."""
        return align(list(self.base.weights()), list(self.tuned.weights()))

    @cached_property
    def comparable(self) -> Mapping[str, str]:
        """The matched names whose shapes agree, or at least those of their rows, one for each token
        of a vocabulary that one side has resized; `check()` lists the others."""
        ours, theirs = self.base.weights().info, self.tuned.weights().info
        return {
            b: t for b, t in self.matched.items()
            if ours[b].shape == theirs[t].shape or b in self.resized
        }  # fmt: skip

    @cached_property
    def resized(self) -> Mapping[str, tuple[int, int]]:
        """Base name of an embedding or a head -> rows of base and of tuned, where they differ. The
        first of them are the same tokens'; those that only one side has are in no comparison."""
        ours, theirs = self.base.weights().info, self.tuned.weights().info
        found = {}
        for base, tuned in self.matched.items():
            first, last = ours[base].shape, theirs[tuned].shape
            if tuned in self.replaced:
                assert self.tuned.lora is not None
                last = self.tuned.lora.replacement_shape(self.replaced[tuned])
            alike = len(first) == len(last) == 2 and first[1] == last[1]
            if alike and first[0] != last[0] and (TOKENS.search(base) or HEAD.search(base)):
                found[base] = (first[0], last[0])
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Of what is compared of a parameter of the base, as it is stored."""
        own = self.base.weights().info[name].shape
        return own if name not in self.resized else (min(self.resized[name]), *own[1:])

    @cached_property
    def targets(self) -> Mapping[str, Target]:
        """Parameter in the member's bare weights -> what its adapter changes there."""
        lora = self.tuned.lora
        if lora is None:
            return {}
        named = lora.targets(self.tuned.config, self.tuned.weights())
        found = align(list(self.tuned.weights()), list(named))
        return {parameter: named[target] for parameter, target in found.items()}

    @cached_property
    def adapted(self) -> Mapping[str, str]:
        """Parameter in the member's bare weights -> adapter module that changes it."""
        return {parameter: target.module for parameter, target in self.targets.items()}

    @cached_property
    def tuning(self) -> Tuning:
        """What the member's adapter makes of its bare weights."""
        assert self.tuned.lora is not None
        config, weights, folder = self.tuned.config, self.tuned.weights(), self.tuned.folder

        def order() -> list[str]:
            return [*weights] if folder is None else running_order(folder, config, weights.info)

        turned = partial(is_conv1d, config=config)
        return Tuning(self.tuned.lora, weights, self.targets, turned, order)

    @cached_property
    def replaced(self) -> Mapping[str, str]:
        """Parameter in the member's bare weights -> adapter tensor saved whole."""
        lora = self.tuned.lora
        return {} if lora is None else align(list(self.tuned.weights()), lora.replaced)

    def sites(self, select: Select = "matrices") -> list[ParameterSite]:
        """The parameters an analysis sees: "matrices" (weights of two or more dimensions inside
        the blocks, as in the intruder-dimension paper; of a model whose names number no layers, all
        of them) or "all" (embeddings, biases and norms)."""
        located = locate(self.comparable)
        if select == "all":
            return list(located.values())
        info = self.base.weights().info
        matrices = [
            site
            for name, site in located.items()
            if len(info[name].shape) > 1 and min(_matrix(info[name].shape)) > 1
        ]
        return [site for site in matrices if site.layer is not None] or matrices

    def deltas(self, select: Select = "matrices") -> Iterator[Delta]:
        """The aligned parameters one at a time; only the one in hand is in memory.

        Raises WorkbenchError at the first parameter with NaN or inf, naming it and its side.
        """
        for site in self.sites(select):
            yield self.delta(site)

    def delta(self, site: ParameterSite) -> Delta:
        """One aligned parameter. Raises as `deltas`."""
        self.require_weights()
        theirs = self.comparable[site.name]
        if self.is_sealed(site.name):
            factors = self.tuning.factors(theirs) if theirs in self.targets else None
            known = self.base.weights().info[site.name]
            shape = torch.empty(known.shape, device="meta")
            return SealedDelta(site, shape, factors, known.sealed)
        base = oriented(self.base, site.name)
        base = base[: self.shape(site.name)[0]] if site.name in self.resized else base
        require_finite(base, self.base, site.name)
        made = Delta(site, base, whole=self.stored(theirs, base))
        if theirs in self.targets:
            if made.whole is None and self.tuning.is_factored(theirs):
                made = Delta(site, base, factors=self.tuning.factors(theirs))
            else:
                made = Delta(site, base, whole=self.tuning.formed(theirs, made.tuned))
        for tensor in (made.whole, *(vars(made.factors).values() if made.factors else ())):
            if tensor is not None:
                require_finite(tensor, self.tuned, theirs)
        return made

    def require_weights(self) -> None:
        """Raise WorkbenchError for a member that changes no weight, with what applies to it: the
        null would be told of a member that does something else."""
        if isinstance(self.tuned.lora, SoftPrompt):
            raise self.tuned.lora.refusal()

    def is_sealed(self, name: str) -> bool:
        """Whether a parameter's numbers cannot be read, and its change can: an adapter's factors on
        this very base, or none."""
        theirs = self.comparable[name]
        if not self.base.weights().info[name].sealed or not self.shared_base:
            return False
        known = theirs not in self.targets or self.tuning.is_factored(theirs)
        return known and theirs not in self.replaced

    def stored(self, theirs: str, base: Tensor) -> Tensor | None:
        """The member's own copy of a parameter before its low-rank change, of a resized one the
        rows that `base` has; None where that is the base's."""
        if theirs in self.replaced:
            assert self.tuned.lora is not None
            whole = turned(self.tuned.lora.replacement(self.replaced[theirs]), self.tuned, theirs)
            whole = whole[: len(base)] if whole.ndim > 1 else whole
            require_fit(theirs, tuple(whole.shape), tuple(base.shape))
            # peft saves an adapted embedding's unchanged base too.
            return None if torch.equal(whole, base) else whole
        if self.shared_base:
            return None
        whole = oriented(self.tuned, theirs)
        return whole[: len(base)] if whole.ndim > 1 else whole

    def held(self, device: Device = "cpu") -> HeldPair:
        """The same pair with every parameter read once, and kept on `device`."""
        return HeldPair(self.base, self.tuned, self.name, str(entry(device)))

    def check(
        self, *, read: bool = True, run: bool | None = None, fingerprints: bool = False
    ) -> PairReport:
        """The preflight: what matches, what does not, what to do. read=False opens no tensor;
        run=True holds the logits against a plain loading; see `workbench.loaders.check`."""
        return convenience("CheckpointPair.check")(
            self, read=read, run=run, fingerprints=fingerprints
        )

    def limits(self) -> PairReport:
        """What stands beside every number: the preflight of headers and of an adapter's factors."""
        return convenience("CheckpointPair.limits")(self)

    def models(
        self,
        device: Device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        base: Literal["memory", "disk"] = "memory",
        keep: bool = False,
    ) -> contextlib.AbstractContextManager[Sides]:
        """Both sides to run, in as little memory as they need, also by every analysis within the
        block where keep; see `workbench.models.models`."""
        return convenience("CheckpointPair.models")(self, device, dtype, base=base, keep=keep)

    def to_transformer_lens(
        self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[Any, Any]:
        """(base, tuned) as TransformerLens bridges, each over its own copy of the weights.

        Offline, from what the pair was loaded from; adapters are merged in the bridge's copy. Needs
        a tokenizer beside the base.
        """
        return convenience("CheckpointPair.to_transformer_lens")(self, device, dtype)

    def to_nnsight(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        remote: bool = False,
    ) -> tuple[Any, Any]:
        """(base, tuned) as nnsight LanguageModels with eager attention; adapters stay unmerged.

        remote: both as models on a server, by their hub ids alone; see `workbench.models.nnsight`,
        also for what that cannot do. Raises WorkbenchError unless both are public hub models.
        """
        return convenience("CheckpointPair.to_nnsight")(self, device, dtype, remote=remote)

    def _repr_html_(self) -> str:
        return convenience("CheckpointPair._repr_html_")(self)

    @property
    def same(self) -> bool:
        """Whether base and tuned model are one: their weights have the same fingerprint."""
        return self.base.about.get("fingerprint") == self.tuned.about.get("fingerprint")

    def provenance(self, **known: Any) -> Provenance:
        """Provenance of one analysis of this pair, with the preflight's notes."""
        report = self.limits()
        report.require()
        base, member = self.base.about, self.tuned.about
        notes = (*report.notes, *([f"{self.name}: {SAME}"] if self.same else []))
        return Provenance(base, {self.name: member}, notes=notes, **known)


@dataclass(frozen=True)
class HeldPair(CheckpointPair):
    """A pair that keeps what it reads, for many edits of it: base, tuned and change of every
    parameter asked for, on one device."""

    device: str = "cpu"
    _kept: dict[str, Delta] = field(default_factory=dict, repr=False, compare=False)
    _shared: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def delta(self, site: ParameterSite) -> Delta:
        if site.name not in self._kept:
            found = super().delta(site).to(entry(self.device))
            own = self._shared.get(site.name)
            if own is not None and own.dtype == found.base.dtype and torch.equal(own, found.base):
                found = replace(found, base=own)
            self._kept[site.name] = found
        return self._kept[site.name]

    def rest_on(self, model: nn.Module) -> None:
        """Keep no second copy of the base's parameters that `model`, the base itself, holds; only
        what is read from now on."""
        own = {name: p.detach() for name, p in model.named_parameters() if not p.is_meta}
        places = {
            name: where for name, where in running(model).items()
            if stored_name(where) in own
        }  # fmt: skip
        for name, theirs in align([s.name for s in self.sites("all")], list(places)).items():
            held = view(own, places[theirs])
            self._shared[name] = held.T if is_conv1d(name, self.base.config) else held


@dataclass(frozen=True)
class Family:
    """One base and its fine-tuned members; iterates over pairs."""

    base: Checkpoint
    members: Mapping[str, Checkpoint] = field(default_factory=dict)

    def __iter__(self) -> Iterator[CheckpointPair]:
        return (CheckpointPair(self.base, tuned, name) for name, tuned in self.members.items())

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> CheckpointPair:
        if name not in self.members:
            raise WorkbenchError(
                f"There is no model {name!r}; this family has {list(self.members)}."
            )
        return CheckpointPair(self.base, self.members[name], name)

    def _repr_html_(self) -> str:
        return convenience("Family._repr_html_")(self)


def load_pair(base: Reference, tuned: Reference, name: str | None = None) -> CheckpointPair:
    """A base and one fine-tuned checkpoint, matched; reads headers only.

    base, tuned: a folder (safetensors, or .bin read with weights_only), a .gguf file, a hub id
    ("org/name@revision"), "base+adapter", or a model in memory. tuned may also be an adapter
    folder of peft, mlx-lm or torchtune, which is then applied to `base`. name defaults to the last
    part of `tuned`. Raises WorkbenchError where either cannot be read or the two have nothing in
    common.
    """
    ours = Checkpoint.parse(base)
    if isinstance(tuned, str | Path) and is_adapter(tuned):
        theirs = Checkpoint(ours.reference, str(tuned), ours.revision)
    else:
        theirs = Checkpoint.parse(tuned)
    if name is None:
        last = theirs.adapter or theirs.reference
        # A folder's name may hold bytes that are no text.
        name = visible(Path(last).name) if isinstance(last, str) else "tuned"
    pair = CheckpointPair(ours, theirs, name)
    pair.check(read=False).require()
    return pair


def load_family(base: Reference, members: Mapping[str, Reference]) -> Family:
    """One base and named members, each as in `load_pair`."""
    if not members:
        raise WorkbenchError(
            "A family needs at least one fine-tuned model (--member): {'name': reference}."
        )
    ours = Checkpoint.parse(base)
    return Family(ours, {name: load_pair(ours, ref, name).tuned for name, ref in members.items()})


def _heads_of(side: Checkpoint) -> set[str]:
    return {name for name in side.weights() if HEAD.search(name)}


def _adapted_heads(side: Checkpoint) -> set[str]:
    """Heads that an adapter changes beside the embedding they are tied to."""
    if side.lora is None:
        return set()
    names = [*side.lora.targets(side.config, side.weights()), *side.lora.replaced]
    return {name for name in names if HEAD.search(name)}


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Convolution kernels (out, in, ...) count as (out, everything else)."""
    return shape[0], int(torch.Size(shape[1:]).numel())


def oriented(checkpoint: Checkpoint, name: str) -> Tensor:
    """One of its parameters as the analyses see it: matrices as (out, in)."""
    return turned(checkpoint.weights()[name], checkpoint, name)


def turned(tensor: Tensor, checkpoint: Checkpoint, name: str) -> Tensor:
    if tensor.ndim > 2:
        return tensor.flatten(1)
    transposed = is_conv1d(name, checkpoint.config)
    return tensor.T if transposed and tensor.ndim == 2 else tensor


def require_fit(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    """Raise WorkbenchError unless what an adapter saved whole is of its parameter's shape."""
    if theirs != ours:
        raise WorkbenchError(
            f"The adapter replaces {name} by {theirs} but the base has {ours} there; it was "
            "trained on another base."
        )


def require_finite(tensor: Tensor, checkpoint: Checkpoint, name: str) -> None:
    # A sum is finite only where every entry is, short of an overflow that isfinite then settles.
    if not torch.isfinite(tensor.sum(dtype=torch.float64)) and not torch.isfinite(tensor).all():
        raise not_finite(checkpoint, name, int((~torch.isfinite(tensor)).sum()), tensor.numel())


def not_finite(checkpoint: Checkpoint, name: str, bad: int, entries: int) -> WorkbenchError:
    """What is said of a parameter with `bad` NaN or inf."""
    return WorkbenchError(
        f"{name} of {checkpoint.name} has {bad} NaN or inf of {entries} entries; use a "
        "checkpoint from before the run diverged."
    )


__all__ = ["CheckpointPair", "Delta", "Family", "Weights", "load_family", "load_pair"]
