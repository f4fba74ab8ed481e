"""One vocabulary of places in a decoder, and where each lies in a transformers model.

A Site is a kind of activation, a layer, and where it applies a head and a token position:

    resid_pre -> (q, k, v -> pattern -> z -> attn_out) -> resid_mid -> (mlp_hidden -> mlp_out)
    -> resid_post

The names are TransformerLens'. `attn_out` and `mlp_out` are what is added to the residual stream,
so where a model normalises a sublayer's output (Gemma 2) they are taken behind that norm. `q`, `k`
and `v` are the projections' outputs, before any norm or rotation of them; `z` is the input of the
output projection. An architecture is told by the names of its modules, in ARCHITECTURES; a model of
another shape needs one more record there and nothing else. Names prove nothing: `site_verification`
does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError

Kind = Literal[
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out",
    "resid_post",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of execution
HEADED = ("q", "k", "v", "pattern", "z")
End = Literal["input", "output", "softmax"]


@dataclass(frozen=True)
class Site:
    """One place. head: None for all of them. position: None for every token; an integer counts
    from the prompt's end where negative (-1: its last token) and from its first token otherwise; a
    name is a span of the prompt ("query box"). neuron: one of mlp_hidden's; None for all of them.

    Shapes: residual and sublayer sites (batch, token, width); q and z (batch, token, head, d_head);
    k and v the same with key-value heads; pattern (batch, head, query, key). A head or a neuron
    drops its axis; a position picks tokens (for pattern: queries).
    """

    kind: Kind
    layer: int
    head: int | None = None
    position: int | str | None = None
    neuron: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WorkbenchError(f"Unknown site {self.kind!r}; the kinds are {', '.join(KINDS)}.")
        if self.head is not None and self.kind not in HEADED:
            raise WorkbenchError(f"{self.kind} has no heads; leave head out, or use z.")
        if self.neuron is not None and self.kind != "mlp_hidden":
            raise WorkbenchError(
                f"{self.kind} has no neurons; leave neuron out, or use mlp_hidden."
            )

    def __str__(self) -> str:
        parts = [str(self.layer), self.kind]
        parts += [] if self.head is None else [f"h{self.head}"]
        parts += [] if self.neuron is None else [f"n{self.neuron}"]
        return ".".join(parts) + ("" if self.position is None else f"@{self.position}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """What `str` gives: "4.resid_post", "2.z.h3@-1", "0.mlp_hidden.n7", "0.v@query box"."""
        found = re.fullmatch(r"(\d+)\.([a-z_]+)(?:\.([hn])(\d+))?(?:@(.+))?", text)
        if not found:
            raise WorkbenchError(f'Expected a site such as "2.z.h3@-1", found {text!r}.')
        layer, kind, letter, number, place = found.groups()
        position = int(place) if re.fullmatch(r"-?\d+", place or "") else place
        head = int(number) if letter == "h" else None
        neuron = int(number) if letter == "n" else None
        return cls(cast(Kind, kind), int(layer), head, position, neuron)

    @property
    def whole(self) -> Site:
        """All heads, neurons and tokens of this kind and layer."""
        return Site(self.kind, self.layer)

    @property
    def order(self) -> tuple[int, int]:
        """Sites sorted by it come in the order of execution."""
        return self.layer, KINDS.index(self.kind)


@dataclass(frozen=True)
class Architecture:
    """Module names of one shape of decoder. All but `layers`, `embed` and `norm` are relative to a
    layer. norm1: the norm before attention. attn_out, mlp_out: the modules whose output is added to
    the residual stream. mid: the module whose input is resid_mid. o, down: the output projections
    of attention and MLP. fused: how one q, k and v projection lays out its rows, "blocks" for all
    of q, then k, then v; "heads" for q, k, v of each head in turn."""

    layers: str
    embed: str
    norm: str
    norm1: str
    attention: str
    q: str
    k: str
    v: str
    o: str
    attn_out: str
    mid: str
    down: str
    mlp_out: str
    fused: Literal["", "blocks", "heads"] = ""

    def inside(self) -> list[str]:
        """Every module path relative to a layer."""
        skip = ("layers", "embed", "norm", "fused")
        return [path for name, path in vars(self).items() if name not in skip]


LLAMA = Architecture(
    layers="model.layers",
    embed="model.embed_tokens",
    norm="model.norm",
    norm1="input_layernorm",
    attention="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    attn_out="self_attn",
    mid="post_attention_layernorm",
    down="mlp.down_proj",
    mlp_out="mlp",
)
# The first record whose modules all exist in a model describes it.
ARCHITECTURES: dict[str, Architecture] = {
    "gemma2": replace(
        LLAMA,
        attn_out="post_attention_layernorm",
        mid="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    "llama, mistral, qwen2, qwen3, gemma": LLAMA,
    "gpt2": Architecture(
        layers="transformer.h",
        embed="transformer.wte",
        norm="transformer.ln_f",
        norm1="ln_1",
        attention="attn",
        q="attn.c_attn",
        k="attn.c_attn",
        v="attn.c_attn",
        o="attn.c_proj",
        attn_out="attn",
        mid="ln_2",
        down="mlp.c_proj",
        mlp_out="mlp",
        fused="blocks",
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        norm1="input_layernorm",
        attention="attention",
        q="attention.query_key_value",
        k="attention.query_key_value",
        v="attention.query_key_value",
        o="attention.dense",
        attn_out="attention",
        mid="post_attention_layernorm",
        down="mlp.dense_4h_to_h",
        mlp_out="mlp",
        fused="heads",
    ),
}

# Norms behind a sublayer that the records above do not place: GLM-4 has Llama's other names too.
BEHIND = ("post_self_attn_layernorm", "post_mlp_layernorm")
# Sublayer outputs are scaled before they are added, so that attn_out would not be what is added.
SCALED = ("residual_multiplier", "scale_depth")
LENS = {
    "resid_pre": "hook_resid_pre", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "pattern": "attn.hook_pattern", "z": "attn.hook_z", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "mlp_hidden": "mlp.hook_post", "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}  # fmt: skip


class Layout:
    """Where the sites lie in one model. Raises WorkbenchError for a shape that is not known.

    root: the transformers model, without PEFT's wrapper. architecture: its record.
    layers, heads, kv_heads, d_head: numbers of layers and heads, width of a head. Nothing here is
    kept by a lock (as cached properties are), so that it can be sent to where a trace runs.
    """

    def __init__(self, model: nn.Module) -> None:
        whole: Any = model
        self.root: Any = whole.get_base_model() if hasattr(model, "peft_config") else model
        self.architecture = _recognised(self.root)
        config = self.root.config
        self.layers = len(_at(self.root, self.architecture.layers))
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    @property
    def neurons(self) -> int:
        """Width of mlp_hidden, the input of the MLP's output projection."""
        down: Any = self.module(Site("mlp_hidden", 0))
        down = getattr(down, "base_layer", down)
        # GPT-2's Conv1D keeps (in, out) and names no widths.
        return getattr(down, "in_features", None) or down.weight.shape[0]

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same stream, so that there is no resid_mid."""
        return bool(getattr(self.root.config, "use_parallel_residual", False))

    @property
    def core(self) -> nn.Module:
        """The model without its head: embedding, blocks, final norm."""
        return getattr(self.root, self.root.base_model_prefix)

    def block(self, layer: int) -> nn.Module:
        return _at(self.root, self.architecture.layers)[layer]

    def check(self, site: Site) -> Site:
        """The site itself; raises where the model has no such place."""
        if not 0 <= site.layer < self.layers:
            raise WorkbenchError(f"{site}: the model has layers 0 to {self.layers - 1}.")
        heads = self.kv_heads if site.kind in ("k", "v") else self.heads
        if site.head is not None and not 0 <= site.head < heads:
            raise WorkbenchError(f"{site}: {site.kind} has heads 0 to {heads - 1}.")
        if site.neuron is not None and not 0 <= site.neuron < self.neurons:
            raise WorkbenchError(f"{site}: {site.kind} has neurons 0 to {self.neurons - 1}.")
        if site.kind == "resid_mid" and self.parallel:
            raise WorkbenchError(
                f"{site}: in this model attention and MLP read the same stream; use resid_pre."
            )
        return site

    def path(self, site: Site) -> str:
        """Path from `root` of the module at whose `end` the site lies."""
        names = self.architecture
        own = {
            "resid_pre": "", "resid_post": "", "q": names.q, "k": names.k, "v": names.v,
            "pattern": names.attention, "z": names.o, "attn_out": names.attn_out,
            "resid_mid": names.mid, "mlp_hidden": names.down, "mlp_out": names.mlp_out,
        }[self.check(site).kind]  # fmt: skip
        return ".".join(part for part in (names.layers, str(site.layer), own) if part)

    def module(self, site: Site) -> nn.Module:
        return _at(self.root, self.path(site))

    def lens(self, site: Site) -> str:
        """TransformerLens' name of the site's hook."""
        return f"blocks.{self.check(site).layer}.{LENS[site.kind]}"

    def view(self, site: Site, raw: Tensor) -> Tensor:
        """What a module takes or gives, seen as the site's tensor for all heads and tokens."""
        if site.kind == "z":
            return raw.unflatten(-1, (self.heads, self.d_head))
        if site.kind not in ("q", "k", "v"):
            return raw
        part = "qkv".index(site.kind)
        if self.architecture.fused == "heads":
            return raw.unflatten(-1, (self.heads, 3, self.d_head))[..., part, :]
        if self.architecture.fused == "blocks":
            # Not chunk, whose views autograd lets nobody write into.
            raw = raw.unflatten(-1, (3, -1))[..., part, :]
        return raw.unflatten(-1, (-1, self.d_head))


def end(site: Site) -> End:
    """Which end of its module a site is: its input, its output, or the softmax inside it."""
    if site.kind == "pattern":
        return "softmax"
    return "input" if site.kind in ("resid_pre", "z", "resid_mid", "mlp_hidden") else "output"


def pick(site: Site, full: Tensor, index: Tensor | None) -> Tensor:
    """The site's part of a tensor that holds all heads and tokens.

    index: (batch, p) token numbers, or None for every token.
    """
    own = _head(site, full)
    if index is None:
        return own
    tokens, swapped = _tokens_second(site, own)
    found = tokens[_rows(index), index]
    return found.transpose(1, 2) if swapped else found


def put(site: Site, full: Tensor, index: Tensor | None, value: Tensor) -> None:
    """Write the site's part of `full` in place, shapes as `pick` gives them."""
    own = _head(site, full)
    value = value.to(device=full.device, dtype=full.dtype)
    if index is None:
        own.copy_(value.expand_as(own))
        return
    tokens, swapped = _tokens_second(site, own)
    tokens[_rows(index), index] = value.transpose(1, 2) if swapped and value.ndim > 2 else value


def _head(site: Site, full: Tensor) -> Tensor:
    if site.neuron is not None:
        return full[..., site.neuron]
    if site.head is None:
        return full
    return full[:, site.head] if site.kind == "pattern" else full[..., site.head, :]


def _tokens_second(site: Site, own: Tensor) -> tuple[Tensor, bool]:
    swap = site.kind == "pattern" and site.head is None
    return (own.transpose(1, 2), True) if swap else (own, False)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device)[:, None]


def _recognised(root: nn.Module) -> Architecture:
    for names in ARCHITECTURES.values():
        if not all(_has(root, path) for path in (names.layers, names.embed, names.norm)):
            continue
        blocks = list(_at(root, names.layers))
        if (
            blocks
            and all(_has(blocks[0], path) for path in names.inside())
            and not any(_has(blocks[0], path) for path in BEHIND)
        ):
            break
    else:
        raise WorkbenchError(
            f"The modules of {type(root).__name__} are of no shape known here "
            f"({'; '.join(ARCHITECTURES)}); name them in one more record of "
            "workbench.models.sites.ARCHITECTURES."
        )
    config: Any = getattr(root, "config", None)
    for name in SCALED:
        if getattr(config, name, 1.0) not in (None, 1.0):
            raise WorkbenchError(
                f"{type(root).__name__} scales its sublayers' outputs ({name} = "
                f"{getattr(config, name)}); such models are not known here."
            )
    return names


def _at(module: Any, path: str) -> Any:
    return module.get_submodule(path)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
