"""Are the sites of a model what their names say? One small forward pass tells, once a model.

An architecture is told by the names of its modules, and other models have those names too: with
sublayers that are scaled before they are added, a norm or a gate between pattern and z, another
layout of one q, k and v projection. So before a model's sites are first read or written, a few
tokens are run in it, with these held in EVERY block:

    resid_pre + attn_out = resid_mid,   resid_mid + mlp_out = resid_post = the next resid_pre
    pattern @ v = z, with the value heads repeated over their groups

in the plain run and where foreign values are written, each row of the batch another experiment:
writing a site's own value changes nothing; a foreign one changes what follows; resid_post does not
hang on what lies before a resid_mid that is held; one head's q or k changes that head's pattern
alone, one head's pattern or v that head's z alone. Where an equation fails, the kinds in it that
nothing else clears are refused by name, and the others go on. A component that adds nothing
whatever it is given (zero weights) cannot show an effect and is passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason
from workbench.loaders.devices import home
from workbench.models.attach import attached
from workbench.models.sites import KINDS, Kind, Layout, Site

TOKENS = 4
STREAM: tuple[Kind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
OWN = "own"
Refused = dict[Kind, str]  # kind -> why
_KNOWN: WeakKeyDictionary[nn.Module, Refused] = WeakKeyDictionary()


def require(layout: Layout, sites: Iterable[Site]) -> None:
    """Raises WorkbenchError for a site of a kind that is not, in this model, what its name says."""
    wanted = sorted((layout.check(site) for site in sites), key=lambda site: site.order)
    if not wanted:
        return
    faults = refused(layout)
    for site in wanted:
        if site.kind in faults:
            good = [kind for kind in _kinds(layout) if kind not in faults]
            raise WorkbenchError(
                f"{site} is not to be had in {type(layout.root).__name__}: {faults[site.kind]}; "
                + (f"use {', '.join(good)}." if good else "no site of this model is known.")
            )


def refused(layout: Layout) -> Refused:
    """The kinds that are not what their names say, and why; probed once a model."""
    if layout.root not in _KNOWN:
        _KNOWN[layout.root] = _Probe(layout).faults()
    return _KNOWN[layout.root]


def _kinds(layout: Layout) -> list[Kind]:
    return [kind for kind in KINDS if not (kind == "resid_mid" and layout.parallel)]


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
    "cut": {"resid_pre": Foreign(), "resid_mid": Foreign()},
    "cut again": {"resid_pre": Foreign(1), "resid_mid": Foreign()},
    "z": {"z": Foreign()}, "z again": {"z": Foreign(1)},
    "mlp_hidden": {"mlp_hidden": Foreign()}, "mlp_hidden again": {"mlp_hidden": Foreign(1)},
}  # fmt: skip
ROWS = {name: number for number, name in enumerate(EXPERIMENTS)}


class _Probe:
    """One forward pass of all experiments, and what is to be seen in it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.kinds = _kinds(layout)
        self.bad: Refused = {}
        self.seen: dict[Site, Tensor] = {}
        self.close = 1e-4

    def faults(self) -> Refused:
        logits = self._run()
        if not bool(logits[ROWS["plain"]].isfinite().all()):
            return {}  # a model that says nothing proves nothing
        self._own(logits)
        self._stream(logits)
        self._attention()
        self._effect("z", "attn_out")
        self._effect("mlp_hidden", "mlp_out")
        return self.bad

    def _run(self) -> Tensor:
        """Logits (rows, vocabulary) of the last token; fills `seen` and tells shapes."""
        root = self.layout.root
        sites = [Site(kind, layer) for layer in range(self.layout.layers) for kind in self.kinds]
        changes = {site: self._change(site) for site in sites if self._there(site)}
        ids = torch.arange(3, 3 + TOKENS, device=home(root)) % root.config.vocab_size
        given: dict[str, Any] = {"input_ids": ids.repeat(len(ROWS), 1), "use_cache": False}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if "logits_to_keep" in inspect.signature(root.forward).parameters:
            given["logits_to_keep"] = 1
        training = [module for module in root.modules() if module.training]
        try:
            root.eval()
            with torch.no_grad(), attached(self.layout, changes):
                logits = root(**given)[0]
        except Exception as error:  # whatever a model of unknown shape may raise
            raise WorkbenchError(
                f"The sites of {type(root).__name__} cannot be proved: {TOKENS} tokens do not run "
                f"in it ({reason(error)}); mend the model, or use one of a known shape."
            ) from error
        finally:
            for module in training:
                module.training = True
        for site in changes:
            if site not in self.seen and site.kind not in self.bad:
                self._refuse([site.kind], f"block {site.layer} never runs the module it lies at")
        if logits.dtype != torch.float32:
            self.close = 0.02
        return logits.float().flatten(1, -2)[:, -1] if logits.ndim > 2 else logits.float()

    def _there(self, site: Site) -> bool:
        try:
            self.layout.module(site)
        except AttributeError:
            self._refuse([site.kind], f"block {site.layer} has no module for it")
            return False
        return True

    def _change(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Write every experiment's values into its own row, and keep what came of it."""

        def change(raw: Tensor) -> Tensor:
            if site.kind in self.bad:
                return raw
            # As in `hooks.rewritten`: the stream before the MLP is read twice.
            fresh = raw if site.kind == "resid_mid" else raw.clone()
            try:
                full = self.layout.view(site, fresh)
            except RuntimeError:
                full = fresh
            shape = self._shape(site, raw)
            if tuple(full.shape) != shape:
                told = f"it has the shape {_times(full.shape)}, not {_times(shape)}"
                self._refuse([site.kind], told)
                return raw
            for name, row in EXPERIMENTS.items():
                how = row.get(site.kind)
                if how is None:
                    continue
                value = full[0] if isinstance(how, str) else self._drawn(site, how, full[0])
                full[ROWS[name]] = value.to(full)
            # Neurons are many, and read nowhere.
            self.seen[site] = full[:, :0] if site.kind == "mlp_hidden" else full.clone()
            return fresh

        return change

    def _shape(self, site: Site, raw: Tensor) -> tuple[int, ...]:
        own, rows = self.layout, len(ROWS)
        if site.kind == "pattern":
            return rows, own.heads, TOKENS, TOKENS
        if site.kind in ("q", "k", "v", "z"):
            heads = own.kv_heads if site.kind in ("k", "v") else own.heads
            return rows, TOKENS, heads, own.d_head
        width = own.neurons if site.kind == "mlp_hidden" else own.root.config.hidden_size
        return rows, TOKENS, width

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

    def _refuse(self, kinds: Sequence[Kind], why: str) -> None:
        for kind in kinds:
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
                why = f"what leaves block {layer} is not what enters the next"
                self._refuse(["resid_pre", "resid_post"], why)
        if self._good("resid_post") and self._same(
            logits[ROWS["other resid_post"]], logits[ROWS["plain"]]
        ):
            self._refuse(["resid_post"], "a foreign value there does not change the logits")
        if not self._good("resid_pre", "resid_post"):
            why = "the stream it is added to is not known"
            self._refuse(["attn_out", "resid_mid", "mlp_out"], why)
            return
        for layer in range(last + 1):
            self._sums(layer)

    def _sums(self, layer: int) -> None:
        """Refuse what keeps one block's stream from being the sum of its parts."""
        whole = self._holds(layer, "resid_post", "resid_pre", "attn_out", "mlp_out")
        first = self._holds(layer, "resid_mid", "resid_pre", "attn_out")
        second = self._holds(layer, "resid_post", "resid_mid", "mlp_out")
        told = f"in block {layer} the stream is not the sum of the parts so named"
        if "resid_mid" not in self.kinds:
            self._refuse([] if whole else ["attn_out", "mlp_out"], told)
            return
        held = ["cut", "cut again"]
        cut = self._good("resid_mid") and self._same(*self._at("resid_post", layer, held))
        self._refuse([] if whole or first else ["attn_out"], told)
        self._refuse([] if whole or second else ["mlp_out"], told)
        self._refuse([] if (first and second) or (cut and not whole) else ["resid_mid"], told)

    def _holds(self, layer: int, total: Kind, *parts: Kind) -> bool:
        """Whether the parts add up to the total, wherever neither that nor resid_mid is foreign."""
        if not self._good(total, *parts):
            return False
        broken = {total} if "resid_mid" in parts else {total, "resid_mid"}
        rows = [name for name, row in EXPERIMENTS.items() if not broken & row.keys()]
        made = torch.stack([self._at(part, layer, rows) for part in parts]).sum(0)
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
        if self._good("pattern", "v", "z") and not all(map(self._mixed, range(self.layout.layers))):
            self._refuse(["v", "z"], "pattern @ v is not z")
        if not self._good("z"):
            self._refuse(["v"], "pattern @ v cannot be held against z")

    def _decides(self, kind: Kind, made: Kind) -> bool:
        """Whether the last head of `kind` changes its own heads of `made` and no other; `kind` is
        refused where it does not. False where there is nothing to tell by."""
        if not self._good(kind, made):
            return False
        heads = self.layout.heads
        shared = heads // self.layout.kv_heads if kind in ("k", "v") else 1
        base = "scores" if made == "pattern" else "mix"
        for layer in range(self.layout.layers):
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
        rows = [name for name, row in EXPERIMENTS.items() if "z" not in row]
        pattern, v, z = (self._at(kind, layer, rows) for kind in ("pattern", "v", "z"))
        v = v.repeat_interleave(self.layout.heads // self.layout.kv_heads, dim=2)
        made = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        return self._same(made.flatten(2), z.flatten(2))

    def _effect(self, kind: Kind, made: Kind) -> None:
        """A foreign input of an output projection changes what it gives."""
        for layer in range(self.layout.layers) if self._good(kind, made) else ():
            plain, one, other = self._at(made, layer, ["plain", kind, f"{kind} again"])
            silent = self._same(plain[:-1], plain[1:])
            if not silent and self._same(one, other):
                self._refuse([kind], f"a foreign value in block {layer} does not change {made}")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
