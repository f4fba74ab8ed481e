"""Where the sites lie in one model.

A `Structure` says which modules a model is made of; this says at which of them each site is, at
which end, and how the module's tensor is seen as the site's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.loaders.prompted import Prompted
from workbench.models.sites import HEADED, Kind, Site
from workbench.models.structure import Added, Block, Projection
from workbench.models.watching import is_norm

LENS = {
    "resid_pre": "hook_resid_pre", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "pattern": "attn.hook_pattern", "z": "attn.hook_z", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "mlp_hidden": "mlp.hook_post", "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}  # fmt: skip
INSTEAD = {
    "mlp_hidden": "mlp_out", "router_logits": "mlp_out", "expert_weights": "mlp_out",
    "mixer_out": "attn_out",
    "mlp_out": "resid_post", "resid_mid": "resid_pre",
}  # fmt: skip


def plain(model: Any) -> Any:
    """The transformers model without PEFT's wrapper. Raises WorkbenchError for one that runs behind
    virtual tokens, whose places are not those of the model without them."""
    if isinstance(model, Prompted):
        raise model.adapter.refusal()
    return model.get_base_model() if hasattr(model, "peft_config") else model


class Layout:
    """Where the sites lie in one model. Raises WorkbenchError if its parts cannot be found.

    root: the transformers model, without PEFT's wrapper. structure: its parts. layers: number of
    blocks. heads, kv_heads, d_head: of the first block that has attention, 0 where none has; blocks
    may differ, see `parts`. Nothing here is kept by a lock (as cached properties are), so that it
    can be sent to where a trace runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.root: Any = plain(model)
        # Where it waits for a call it does not travel to where a trace runs.
        from workbench.models.parts import structure

        self.structure = structure(self.root)
        self.layers = len(self.structure.blocks)
        first = next((block for block in self.structure.blocks if block.heads), Block())
        self.heads, self.kv_heads, self.d_head = first.heads, first.kv_heads, first.width

    @property
    def core(self) -> nn.Module:
        """The model without its head: embedding, blocks, final norm."""
        own = getattr(self.root, self.root.base_model_prefix, None)
        return self.root.get_decoder() if own is None else own

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.structure.stream

    @property
    def neurons(self) -> int:
        """Width of mlp_hidden, the input of the MLP's output projection, in the first block that
        has one; 0 where none has."""
        layers = self.where("mlp_hidden")
        return self.count(Site("mlp_hidden", layers[0])) if layers else 0

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same stream, so that there is no resid_mid."""
        return all(block.parallel for block in self.structure.blocks)

    def parts(self, layer: int) -> Block:
        return self.structure.blocks[layer]

    def block(self, layer: int) -> nn.Module:
        return self.root.get_submodule(f"{self.structure.layers}.{layer}")

    def where(self, kind: Kind) -> list[int]:
        """The layers that have such a site."""
        return [layer for layer in range(self.layers) if self._lies(kind, layer) is not None]

    def count(self, site: Site) -> int:
        """How many heads or neurons there are at a site; 1 for kinds without either."""
        part = self.parts(site.layer)
        if site.kind in HEADED:
            return part.kv_heads if site.kind in ("k", "v") else part.heads
        if site.kind != "mlp_hidden":
            return 1
        down: Any = self.module(site.whole)
        down = getattr(down, "base_layer", down)
        # GPT-2's Conv1D keeps (in, out) and names no widths.
        return getattr(down, "in_features", None) or down.weight.shape[0]

    def require_even(self, kind: Kind, instead: str) -> int:
        """How many heads or neurons each block has; raises where blocks have not as many. instead:
        what to do else."""
        counts = {self.count(Site(kind, layer)) for layer in self.where(kind)}
        if len(counts) > 1:
            what = "heads" if kind in HEADED else "neurons"
            raise WorkbenchError(
                f"The blocks of this model have {min(counts)} to {max(counts)} {what} ({kind}); "
                f"{instead}."
            )
        return counts.pop() if counts else 0

    def check(self, site: Site) -> Site:
        """The site itself; raises where the model has no such place."""
        if not 0 <= site.layer < self.layers:
            raise WorkbenchError(f"{site}: the model has layers 0 to {self.layers - 1}.")
        if self._lies(site.kind, site.layer) is None:
            raise WorkbenchError(f"{site}: {self._absent(site)}")
        if site.head is None and site.neuron is None:
            return site
        most = self.count(site) - 1
        for what, number in (("heads", site.head), ("neurons", site.neuron)):
            if number is not None and not 0 <= number <= most:
                raise WorkbenchError(f"{site}: {site.kind} has {what} 0 to {most}.")
        return site

    def path(self, site: Site) -> str:
        """Path from `root` of the module at whose `end` the site lies."""
        own = self._lies(self.check(site).kind, site.layer)
        return ".".join(part for part in (self.structure.layers, str(site.layer), own) if part)

    def module(self, site: Site) -> nn.Module:
        return self.root.get_submodule(self.path(site))

    def lens(self, site: Site) -> str:
        """TransformerLens' name of the site's hook."""
        if site.kind not in LENS:
            raise WorkbenchError(f"TransformerLens has no hook for {site}; use wb.models.capture.")
        projection = self._projection(site)
        if projection is not None and (projection.order == "first" or is_norm(self.module(site))):
            raise WorkbenchError(
                f"In this model TransformerLens' {LENS[site.kind]} is a different "
                f"place from {site}, before a norm over all heads or with a gate in "
                "it; use wb.models.capture."
            )
        return f"blocks.{self.check(site).layer}.{LENS[site.kind]}"

    def view(self, site: Site, raw: Tensor, rows: int) -> Tensor:
        """What a module takes or gives, seen as the site's tensor for all heads and tokens.

        rows: of the batch, for modules that work on all its tokens in one row. A view wherever the
        numbers of one head lie evenly, and nothing scales them.
        """
        part = self.parts(site.layer)
        if site.kind == "pattern":
            raw = raw if raw.ndim == 4 else raw.unflatten(0, (rows, -1))
            return raw[..., : raw.shape[-1] - part.sinks] if part.sinks else raw
        if raw.ndim == 2:
            raw = raw.unflatten(0, (rows, -1))
        elif raw.ndim == 4:  # (batch, 1, token, width), as latent attention has it
            raw = raw.flatten(1, 2)
        if site.kind == "z":
            return raw.unflatten(-1, (part.heads, part.width))
        projection = self._projection(site)
        if projection is not None:
            return projection.cut(site.kind, raw, (part.heads, part.kv_heads))
        scale = self.scale(site)
        return raw if scale == 1 else raw * scale

    def put(self, site: Site, raw: Tensor, seen: Tensor, changed: Tensor, rows: int) -> Tensor:
        """What the module is to take or give, so that `view` shows `changed` where it showed
        `seen`; entries that did not change keep their bits."""
        scale = self.scale(site)
        if site.kind == "resid_mid":
            # The stream before the MLP is read twice, by its norm and by the residual addition;
            # only writing into it reaches both.
            self.view(site, raw, rows).copy_(changed)
            return raw
        if scale != 1:
            # Where nothing changed the bits stay, and a gradient passes all the same.
            back = raw.reshape(changed.shape) + (changed - seen) / scale
            return back.reshape(raw.shape)
        if changed.numel() == raw.numel():
            return changed.reshape(raw.shape)
        fresh = raw.clone()
        part, projection = self.parts(site.layer), self._projection(site)
        if projection is not None and projection.order == "groups" and site.kind == "q":
            wide = fresh if fresh.ndim == 3 else fresh.unflatten(0, (rows, -1))
            share = part.heads // part.kv_heads
            inside = wide.unflatten(-1, (part.kv_heads, share + 2, projection.width))
            inside[..., :share, :].copy_(changed.unflatten(-2, (part.kv_heads, share)))
            return fresh
        self.view(site, fresh, rows).copy_(changed)
        return fresh

    def require_additive(self, instead: str) -> None:
        """Raises unless each head adds to the stream by itself. instead: what to do else."""
        for part in self.structure.blocks:
            if part.attn is not None and part.attn.path != part.attn.within:
                raise WorkbenchError(
                    "In this model a norm follows attention, so no head adds to the "
                    f"stream by itself; {instead}."
                )
        self.require_heads(instead)

    def require_heads(self, instead: str) -> None:
        """Raises unless all that attention adds is its heads', by themselves or behind a norm of
        their sum. instead: what to do else."""
        for number, part in enumerate(self.structure.blocks):
            if part.attn is None or not part.o or part.gain:
                raise WorkbenchError(
                    f"Block {number} of this model ({type(self.block(number)).__name__}) has no "
                    f"heads that add to the stream; {instead}."
                )

    def gain(self, layer: int) -> float:
        """What a block multiplies the sum of stream and sublayers with before it gives it."""
        name = self.parts(layer).gain
        return float(self.block(layer).get_buffer(name)) if name else 1.0

    def scale(self, site: Site) -> float:
        """The factor with which a sublayer's output is added to the stream."""
        added = self._added(site)
        return 1.0 if added is None else added.scale

    def _added(self, site: Site) -> Added | None:
        part = self.parts(site.layer)
        known = {
            "attn_out": part.attn, "mixer_out": part.mixer, "mlp_out": part.mlp,
            "other_out": part.other,
        }  # fmt: skip
        return known.get(site.kind)

    def _projection(self, site: Site) -> Projection | None:
        part = self.parts(site.layer)
        return {"q": part.q, "k": part.k, "v": part.v}.get(site.kind)

    def _lies(self, kind: Kind, layer: int) -> str | None:
        """Path from the block of the module where such a site is; None where there is none."""
        if kind in ("resid_pre", "resid_post"):
            return ""
        part, site = self.parts(layer), Site(kind, layer)
        record = self._added(site) or self._projection(site)
        if record is not None:
            return record.path
        named = {
            "pattern": part.attention if part.heads else "", "z": part.o, "resid_mid": part.mid,
            "mlp_hidden": part.down, "router_logits": part.router, "expert_weights": part.experts,
        }  # fmt: skip
        return named.get(kind) or None

    def _absent(self, site: Site) -> str:
        """Why the model has no such place, and what to use instead."""
        part = self.parts(site.layer)
        if site.kind == "resid_mid" and part.parallel:
            return "in this model attention and MLP read the same stream; use resid_pre."
        own = type(self.block(site.layer)).__name__
        if site.kind in (*HEADED, "attn_out") and not part.heads:
            other = "mixer_out" if part.mixer is not None else "resid_post"
            return f"block {site.layer} ({own}) takes no softmax over tokens; use {other}."
        if site.kind == "mlp_hidden" and part.mlp is not None:
            return (
                f"what the MLP of block {site.layer} ({own}) adds is not the output of one "
                "projection (for example in a mixture of experts); use mlp_out."
            )
        other = INSTEAD.get(site.kind, "resid_post")
        return f"no module of block {site.layer} ({own}) was found for this site; use {other}."
