"""Where does a parameter sit? Names of any checkpoint to (layer, component), and between two.

Nothing here knows an architecture: the first number in a name is its layer and what follows it the
component. The two things that names and shapes cannot tell are listed: GPT-2's transposed Conv1D,
and which matrices are several fused into one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Model types whose transformers implementation stores these as Conv1D, (in, out).
CONV1D_TYPES = (
    "gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder",
)  # fmt: skip
CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")

# Module name -> what is fused in it, in the order of its rows.
FUSED = {
    "c_attn": "q+k+v",
    "query_key_value": "q+k+v",
    "qkv_proj": "q+k+v",
    "Wqkv": "q+k+v",
    "in_proj_weight": "q+k+v",
    "gate_up_proj": "gate+up",
}
# What training tools put into names: anywhere (torch.compile, FSDP), or before all (DDP, TRL).
WRAPPED = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
BEFORE = ("module.", "pretrained_model.")
# Heads that a training tool keeps beside the language model; no next token depends on them.
BESIDE = re.compile(r"(^|\.)v_head\.")
# What gives the next token's logits.
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|predictions\.decoder)\.weight$")
TOKENS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")
EXPERT = re.compile(r"(\bexperts\.)(\d+)\.")
LEADING = re.compile(r"^(model\.)+")
LANGUAGE = re.compile(r"\blanguage_model\.")
LEGACY = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class ParameterSite:
    """One parameter of the base: its name there, its layer (None outside the blocks), the component
    it is the weight of, e.g. "self_attn.q_proj", or "self_attn.q_proj.bias", and which expert's it
    is (None where there is one for all tokens)."""

    name: str
    layer: int | None
    component: str
    expert: int | None = None

    def __str__(self) -> str:
        own = self.component if self.expert is None else f"{self.component}[{self.expert}]"
        return own if self.layer is None else f"{self.layer}.{own}"

    @property
    def at(self) -> tuple[int | None, str, int | None]:
        """(layer, component, expert)."""
        return self.layer, self.component, self.expert

    @property
    def place(self) -> dict[str, int | str | None]:
        """Its columns in a table; `expert` only where it is one's."""
        found = {"layer": self.layer, "component": self.component}
        return found if self.expert is None else found | {"expert": self.expert}


def locate(names: Iterable[str]) -> dict[str, ParameterSite]:
    """Parameter name -> site, for all names of one checkpoint.

    What stands before the layer number ("model.layers") is dropped where it is the same for all
    layers and kept where a checkpoint has several stacks (T5's encoder and decoder).
    """
    split = {name: _split(name) for name in names}
    stacks = {stack for stack, layer, _ in split.values() if layer is not None}
    roots = {stack.split(".")[0] for stack in stacks if "." in stack}
    sites = {}
    for name, (stack, layer, rest) in split.items():
        if layer is None:
            head, _, tail = rest.partition(".")
            rest = tail if head in roots and tail and len(stacks) == 1 else rest
        elif len(stacks) > 1:
            rest = f"{stack}.{rest}"
        expert = EXPERT.search(rest)
        if expert:
            rest = EXPERT.sub(r"\1", rest, count=1)
        own = int(expert[2]) if expert else None
        sites[name] = ParameterSite(name, layer, _component(rest), own)
    return sites


def _split(name: str) -> tuple[str, int | None, str]:
    """("model.layers", 3, "self_attn.q_proj.weight"), or ("", None, name) outside the blocks."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and 0 < i < len(parts) - 1:
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
    return "", None, name


def _component(rest: str) -> str:
    rest = modern(rest).removesuffix(".weight")
    last = rest.removesuffix(".bias").split(".")[-1]
    fused = FUSED.get(last)
    return f"{rest} ({fused})" if fused else rest


def modern(name: str) -> str:
    """Old BERT checkpoints say gamma and beta where today's say weight and bias; a language model
    inside a multimodal one is called so, here or there, by the version of transformers, and by that
    the whole is a `model.` more or less."""
    head, dot, last = LEADING.sub("", LANGUAGE.sub("", name)).rpartition(".")
    return head + dot + LEGACY.get(last, last)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Stored name -> the name without what training tools put into it; heads beside the model are
    left out."""
    plain = {name: WRAPPED.sub("", name) for name in names}
    kept = {name: own for name, own in plain.items() if not BESIDE.search(own)}
    for prefix in BEFORE:
        if kept and all(own.startswith(prefix) for own in kept.values()):
            kept = {name: own.removeprefix(prefix) for name, own in kept.items()}
    return kept


def is_conv1d(name: str, config: Mapping[str, Any]) -> bool:
    """Whether this weight is stored (in, out), in a model of this config or in a part of it."""
    if not name.endswith(".weight") or name.split(".")[-2] not in CONV1D_MODULES:
        return False
    parts = [one for one in (config, *config.values()) if isinstance(one, Mapping)]
    return any(part.get("model_type") in CONV1D_TYPES for part in parts)


def align(base: Sequence[str], tuned: Sequence[str]) -> dict[str, str]:
    """Base name -> tuned name for every parameter the two have in common.

    A model saved with its head carries a prefix ("bert.", "model.") that the bare model lacks: one
    prefix may be dropped on either side, whichever pair of prefixes matches most names. Only what
    most names of a side begin with is such a prefix: a head's own ("lm_head.", "classifier.") tells
    what it is for, and two heads are never one.
    """
    best: dict[str, str] = {}
    for ours in _prefixes(base):
        keys = {modern(name.removeprefix(ours)): name for name in base}
        for theirs in _prefixes(tuned):
            found = {modern(name.removeprefix(theirs)): name for name in tuned}
            matched = {keys[key]: found[key] for key in keys.keys() & found.keys()}
            if len(matched) > len(best):
                best = matched
    return {name: best[name] for name in base if name in best}


def _prefixes(names: Iterable[str]) -> list[str]:
    """No prefix first, then the first segment of more than half the names."""
    names = list(names)
    firsts = Counter(name.split(".")[0] + "." for name in names if "." in name)
    return ["", *(prefix for prefix, count in firsts.items() if 2 * count > len(names))]


def embedding(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The one matrix of token embeddings, None where names do not tell it."""
    found = [n for n, shape in shapes.items() if len(shape) == 2 and TOKENS.search(n)]
    return found[0] if len(found) == 1 else None


def heads(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Output head -> the embeddings of its shape, of which it may be a second name."""
    embeddings = [n for n in shapes if "emb" in n or n.endswith("wte.weight")]
    return {
        name: [other for other in embeddings if other != name and shapes[other] == shape]
        for name, shape in shapes.items()
        if HEAD.search(name)
    }
