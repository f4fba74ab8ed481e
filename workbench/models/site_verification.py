"""Are the sites of a model what their names say? One small forward pass tells, once a model.

A model's `Layout` is found with random numbers in place of its own, and tells where things lie, not
what they do. So before a model's sites are first read or written, a few tokens are run in it, with
these held in EVERY block that has the sites:

    resid_pre + attn_out + mixer_out = resid_mid
    resid_mid + mlp_out + other_out = resid_post = the next resid_pre
    (all of it times the block's gain, where it has one)
    pattern @ v = z, or z over that the same whatever pattern and v are (a gate), with the value
    heads repeated over their groups

in the plain run and where foreign values are written, each row of the batch another experiment:
writing a site's own value changes nothing; a foreign one changes what follows; resid_post does not
hang on what lies before a resid_mid that is held; one head's q or k changes that head's pattern
alone, one head's pattern or v that head's z alone. Where an equation fails, the kinds in it that
nothing else clears are refused by name, and the others go on. Router logits that a model puts out
beside what it chooses by can be read and not written. A component that adds nothing whatever it is
given (zero weights) cannot show an effect and is passed. The verdict holds for all models of one
make (`known.make_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, reason
from workbench.models.attach import attached
from workbench.models.known import Known
from workbench.models.layout import Layout
from workbench.models.sites import KINDS, Kind, Site
from workbench.models.trial import tried

TOKENS = 4
STREAM: tuple[Kind, ...] = (
    "resid_pre", "attn_out", "mixer_out", "resid_mid", "mlp_out", "other_out", "resid_post",
)  # fmt: skip
MIXING: tuple[Kind, ...] = ("attn_out", "mixer_out")
ENDING: tuple[Kind, ...] = ("mlp_out", "other_out")
ROUTED = ("router_logits", "expert_weights")
OWN = "own"
Refused = dict[Kind, str]  # kind -> why


class Verdict(NamedTuple):
    """refused: kinds that are not what their names say. read: those that can only be read."""

    refused: Refused
    read: Refused


_VERDICTS: Known[Verdict] = Known()


def require(layout: Layout, sites: Iterable[Site], *, write: bool = False) -> None:
    """Raises WorkbenchError for a site of a kind that is not, in this model, what its name says, or
    of one that cannot be written where that is wanted."""
    wanted = sorted((layout.check(site) for site in sites), key=lambda site: site.order)
    if not wanted:
        return
    known = verdict(layout)
    faults = known.refused | known.read if write else known.refused
    for site in wanted:
        if site.kind in faults:
            good = [kind for kind in _kinds(layout) if kind not in faults]
            raise WorkbenchError(
                f"{site} is not available in {type(layout.root).__name__}: {faults[site.kind]}; "
                + (
                    f"use {', '.join(good)}."
                    if good
                    else "no site of this model can be used, only analyses of weights or texts."
                )
            )


def verdict(layout: Layout) -> Verdict:
    """What the probe of a model says; probed once, or once for all models of its make."""

    def probed() -> tuple[Verdict, bool]:
        probe = _Probe(layout)
        return probe.verdict(), probe.told and not probe.silent()

    return _VERDICTS.of(layout.root, probed)


def refused(layout: Layout) -> Refused:
    """The kinds that are not what their names say, and why."""
    return verdict(layout).refused


def _kinds(layout: Layout) -> list[Kind]:
    return [kind for kind in KINDS if layout.where(kind)]


class Foreign(NamedTuple):
    """Random values of one draw; other: with those of the last head from another draw."""

    draw: int = 0
    other: bool = False


Row = Mapping[str, str | Foreign]  # kind -> what is written there, in every block
# What decides pattern and z is held while one of the things that do is changed.
HELD: Row = {"resid_pre": Foreign(), "q": Foreign(), "k": Foreign()}
MIXED: Row = {"resid_pre": Foreign(), "pattern": Foreign(), "v": Foreign()}
EXPERIMENTS: dict[str, Row] = {
    "plain": {},
    **{f"own {kind}": {kind: OWN} for kind in KINDS},
    **{f"other {kind}": {kind: Foreign()} for kind in STREAM},
    "scores": HELD, "q": HELD | {"q": Foreign(other=True)}, "k": HELD | {"k": Foreign(other=True)},
    "mix": MIXED, "pattern": MIXED | {"pattern": Foreign(other=True)},
    "v": MIXED | {"v": Foreign(other=True)},
    "mix again": MIXED | {"pattern": Foreign(1), "v": Foreign(1)},
    "cut": {"resid_pre": Foreign(), "resid_mid": Foreign()},
    "cut again": {"resid_pre": Foreign(1), "resid_mid": Foreign()},
    "z": {"z": Foreign()}, "z again": {"z": Foreign(1)},
    "mlp_hidden": {"mlp_hidden": Foreign()}, "mlp_hidden again": {"mlp_hidden": Foreign(1)},
    "router_logits": {"router_logits": Foreign()},
    "router_logits again": {"router_logits": Foreign(1)},
    "expert_weights": {"expert_weights": Foreign()},
    "expert_weights again": {"expert_weights": Foreign(1)},
}  # fmt: skip
ROWS = {name: number for number, name in enumerate(EXPERIMENTS)}


class _Probe:
    """One forward pass of all experiments, and what is to be seen in it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.kinds = _kinds(layout)
        self.bad: Refused = {}
        self.told = False  # whether the model said anything
        self.seen: dict[Site, Tensor] = {}
        self.close = 1e-4

    def verdict(self) -> Verdict:
        logits = self._run()
        self.told = bool(logits[ROWS["plain"]].isfinite().all())
        if not self.told:
            return Verdict({}, {})  # a model that says nothing proves nothing
        self._own(logits)
        self._stream(logits)
        self._attention()
        self._effect("z", "attn_out")
        self._effect("mlp_hidden", "mlp_out")
        self._effect("expert_weights", "mlp_out")
        refused = dict(self.bad)
        self._effect("router_logits", "mlp_out")
        read: Refused = {kind: why for kind, why in self.bad.items() if kind not in refused}
        return Verdict(refused, read)

    def silent(self) -> bool:
        """Whether a sublayer adds nothing, so that other models of its make may show more."""
        added = [site for site in self.seen if site.kind in (*MIXING, *ENDING)]
        return any(not bool(self.seen[site][ROWS["plain"]].any()) for site in added)

    def _run(self) -> Tensor:
        """Logits (rows, vocabulary) of the last token; fills `seen` and tells shapes."""
        root, kinds = self.layout.root, self.kinds
        sites = [Site(kind, layer) for kind in kinds for layer in self.layout.where(kind)]
        sites.sort(key=lambda site: site.order)
        changes = {site: self._change(site) for site in sites}
        try:
            with attached(self.layout, changes):
                logits = tried(root, len(ROWS), TOKENS)
        except Exception as error:  # whatever a model of unknown shape may raise
            raise WorkbenchError(
                f"The sites of {type(root).__name__} cannot be verified: {TOKENS} "
                "tokens do not run in it with other values at the sites "
                f"({reason(error)}); use an analysis of weights or texts."
            ) from error
        for site in changes:
            if site not in self.seen and site.kind not in self.bad:
                why = f"block {site.layer} never runs the module of this site"
                if site.kind == "pattern":
                    why = (
                        "its attention implementation computes none; load it with "
                        'attn_implementation="eager"'
                    )
                self._refuse([site.kind], why)
        if logits.dtype != torch.float32:
            self.close = 0.02
        return logits.float().flatten(1, -2)[:, -1] if logits.ndim > 2 else logits.float()

    def _change(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Write every experiment's values into its own row, and keep what came of it."""

        def change(seen: Tensor) -> Tensor:
            if site.kind in self.bad:
                return seen
            shape = self._shape(site, seen)
            if tuple(seen.shape) != shape:
                told = f"it has the shape {_times(seen.shape)}, not {_times(shape)}"
                self._refuse([site.kind], told)
                return seen
            full = seen.clone()
            for name, row in EXPERIMENTS.items():
                how = row.get(site.kind)
                if how is None:
                    continue
                value = full[0] if isinstance(how, str) else self._drawn(site, how, full[0])
                full[ROWS[name]] = value.to(full)
            # Neurons are many, and read nowhere.
            self.seen[site] = full[:, :0] if site.kind == "mlp_hidden" else full.clone()
            return full

        return change

    def _shape(self, site: Site, seen: Tensor) -> tuple[int, ...]:
        rows, many = len(ROWS), self.layout.count(site)
        if site.kind == "pattern":
            return rows, many, TOKENS, TOKENS
        if site.kind in ("q", "k", "v", "z"):
            return rows, TOKENS, many, seen.shape[-1]
        wide = {"mlp_hidden": many} | dict.fromkeys(ROUTED, seen.shape[-1])
        return rows, TOKENS, wide.get(site.kind, self.layout.width)

    def _drawn(self, site: Site, how: Foreign, like: Tensor) -> Tensor:
        """Random values of a site, the same ones wherever this draw is written."""

        def draw(number: int) -> Tensor:
            seed = torch.Generator().manual_seed(1000 * KINDS.index(site.kind) + number)
            made = torch.randn(like.shape, generator=seed)
            if site.kind == "pattern":
                past = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
                made = made.masked_fill(~past, -torch.inf).softmax(-1)
            return made

        made = draw(how.draw)
        if how.other:
            last = (-1,) if site.kind == "pattern" else (slice(None), -1)
            made[last] = draw(how.draw + 9)[last]
        return made

    def _blocks(self, *kinds: Kind) -> list[int]:
        """The layers that have all of these kinds."""
        return sorted(set.intersection(*(set(self.layout.where(kind)) for kind in kinds)))

    def _refuse(self, kinds: Sequence[Kind], why: str) -> None:
        for kind in set(kinds) & set(self.kinds):
            self.bad.setdefault(kind, why)

    def _at(self, kind: Kind, layer: int, rows: Sequence[str] | None = None) -> Tensor:
        found = self.seen[Site(kind, layer)].float().cpu()
        return found if rows is None else found[[ROWS[name] for name in rows]]

    def _good(self, *kinds: Kind) -> bool:
        return all(kind in self.kinds and kind not in self.bad for kind in kinds)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        """Equal up to rounding, token by token."""
        size = torch.maximum(one.abs(), other.abs()).amax(-1)
        return bool(((one - other).abs().amax(-1) <= self.close * size).all())

    def _own(self, logits: Tensor) -> None:
        for kind in self.kinds:
            own = logits[ROWS[f"own {kind}"]]
            if self._good(kind) and not self._same(own, logits[ROWS["plain"]]):
                self._refuse([kind], "writing its own value there changes the run")

    def _stream(self, logits: Tensor) -> None:
        """What each sublayer adds, block by block, in every run that does not break the sum."""
        last = self.layout.layers - 1
        for layer in range(last):
            # Where resid_pre is written the next block's is not what came out of this one.
            rows = [name for name, row in EXPERIMENTS.items() if "resid_pre" not in row]
            if self._good("resid_pre", "resid_post") and not self._same(
                self._at("resid_post", layer, rows), self._at("resid_pre", layer + 1, rows)
            ):
                why = f"the output of block {layer} is not the input of the next"
                self._refuse(["resid_pre", "resid_post"], why)
        if self._good("resid_post") and self._same(
            logits[ROWS["other resid_post"]], logits[ROWS["plain"]]
        ):
            self._refuse(["resid_post"], "a foreign value there does not change the logits")
        if not self._good("resid_pre", "resid_post"):
            why = "the stream it is added to is not known"
            self._refuse(["attn_out", "mixer_out", "resid_mid", "mlp_out", "other_out"], why)
            return
        for layer in range(last + 1):
            self._sums(layer)

    def _sums(self, layer: int) -> None:
        """Refuse what keeps one block's stream from being the sum of its parts."""
        mixing: list[Kind] = [kind for kind in MIXING if layer in self.layout.where(kind)]
        ends: list[Kind] = [kind for kind in ENDING if layer in self.layout.where(kind)]
        whole = self._holds(layer, "resid_post", "resid_pre", *mixing, *ends)
        told = f"in block {layer} the stream is not the sum of the parts so named"
        if layer not in self.layout.where("resid_mid"):
            self._refuse([] if whole else [*mixing, *ends], told)
            return
        first = self._holds(layer, "resid_mid", "resid_pre", *mixing)
        second = self._holds(layer, "resid_post", "resid_mid", *ends)
        held = ["cut", "cut again"]
        cut = self._good("resid_mid") and self._same(*self._at("resid_post", layer, held))
        self._refuse([] if whole or first else mixing, told)
        self._refuse([] if whole or second else ends, told)
        self._refuse([] if (first and second) or (cut and not whole) else ["resid_mid"], told)

    def _holds(self, layer: int, total: Kind, *parts: Kind) -> bool:
        """Whether the parts add up to the total, wherever neither that nor resid_mid is foreign."""
        if not self._good(total, *parts):
            return False
        broken = {total} if "resid_mid" in parts else {total, "resid_mid"}
        rows = [name for name, row in EXPERIMENTS.items() if not broken & row.keys()]
        made = torch.stack([self._at(part, layer, rows) for part in parts]).sum(0)
        made = made * self.layout.gain(layer) if total == "resid_post" else made
        return self._same(made, self._at(total, layer, rows))

    def _attention(self) -> None:
        """What a head's q, k, pattern and v decide, and nothing else does."""
        cleared = [self._decides("q", "pattern"), self._decides("k", "pattern")]
        mixes = self._decides("pattern", "z")
        if self._good("pattern", "z") and not mixes:
            self._refuse(["z"], "it is not of one head's pattern alone")
            if not any(cleared):
                self._refuse(["pattern"], "it does not decide its own head's z")
        self._decides("v", "z")
        if self._good("pattern", "v", "z") and not all(map(self._mixed, self._blocks("v", "z"))):
            self._refuse(["v", "z"], "pattern @ v is not z")
        if not self._good("z"):
            self._refuse(["v"], "pattern @ v cannot be compared with z")

    def _decides(self, kind: Kind, made: Kind) -> bool:
        """Whether the last head of `kind` changes its own heads of `made` and no other; `kind` is
        refused where it does not. False where there is nothing to tell by."""
        if not self._good(kind, made):
            return False
        base = "scores" if made == "pattern" else "mix"
        for layer in self._blocks(kind, made):
            heads = self.layout.count(Site(made, layer))
            shared = heads // self.layout.count(Site(kind, layer))
            one, other = (self._at(made, layer, [name])[0] for name in (base, kind))
            apart = (one - other).abs()
            axes = (1, 2) if made == "pattern" else (0, 2)
            moved = apart.amax(axes) > self.close / 10
            if bool(moved[: heads - shared].any()) or not bool(moved[heads - shared :].all()):
                if kind != "pattern":
                    what = f"one head's does not decide that head's {made} alone"
                    self._refuse([kind], f"in block {layer} {what}")
                return False
        return True

    def _mixed(self, layer: int) -> bool:
        """Whether pattern @ v is z, or z is that times what neither of them changes."""
        rows = [name for name, row in EXPERIMENTS.items() if "z" not in row]
        pattern, v, z = (self._at(kind, layer, rows) for kind in ("pattern", "v", "z"))
        projection = self.layout.parts(layer).v
        if projection is not None and projection.norm:
            v = self.layout.block(layer).get_submodule(projection.norm)(v)
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        made = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        if made.shape != z.shape:
            return False
        if self._same(made.flatten(2), z.flatten(2)):
            return True
        # In these rows all else that goes into the block is held.
        held = [rows.index(name) for name in ("mix", "mix again", "pattern", "v")]
        made, z = made[held], z[held]
        return self._same((z * made[:1]).flatten(2), (z[:1] * made).flatten(2))

    def _effect(self, kind: Kind, made: Kind) -> None:
        """A foreign input of an output projection changes what it gives."""
        for layer in self._blocks(kind, made) if self._good(kind, made) else ():
            plain, one, other = self._at(made, layer, ["plain", kind, f"{kind} again"])
            silent = self._same(plain[:-1], plain[1:])
            if not silent and self._same(one, other):
                self._refuse([kind], f"a foreign value in block {layer} does not change {made}")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
