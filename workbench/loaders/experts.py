"""Every expert's matrix by itself, however a checkpoint or a model keeps it.

Of a mixture of experts some files hold one matrix per expert, others, and every model that
transformers runs, all of a layer in one tensor of three dimensions, gate and up together. Rank and
singular vectors are those of one expert's matrix, so all of these become one set of names,

    model.layers.0.mlp.experts.3.gate_proj.weight

with transformers' own module names, and a part of a tensor is read without the rest of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from workbench.loaders.config_differences import language

# Model types whose experts are stored as (in, out).
TRANSPOSED_TYPES = {
    "aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter",
}  # fmt: skip
# What experts are called; jetmoe and granitemoe name only what is in them.
EXPERTS = re.compile(r"(^|\.)experts\.|\.(input|output)_linear\.weight$")
SINGLE = re.compile(r"(^|\.)experts\.(\d+)\.")
GATE_UP = ("gate_proj", "up_proj")  # in the order of their rows


class Cut(NamedTuple):
    """One expert's part of a stored tensor `name`, (experts, ...). turned: a matrix is stored
    (in, out). part, parts: which of how many equal runs of rows, (out, in), it is."""

    name: str
    expert: int
    turned: bool = False
    part: int = 0
    parts: int = 1

    def of(self, stack: Tensor) -> Tensor:
        """It as a view of the whole tensor."""
        return self.within(stack[self.expert])

    def within(self, own: Tensor) -> Tensor:
        """It as a view of all that is stored of its expert."""
        return (own.T if self.turned else own).chunk(self.parts)[self.part]


Where = str | Cut


def kinds(config: Mapping[str, Any]) -> list[str]:
    """The model types that a config names: its own, and of a language model inside."""
    found = [one.get("model_type") for one in (config, language(config))]
    return [kind for kind in dict.fromkeys(found) if isinstance(kind, str)]


def apart(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Where]:
    """Name of every matrix of an expert -> where it is: under another name, or in a larger tensor.
    All other names stay; without experts all do.

    shapes: of the stored tensors, or of the parameters of a running model.
    """
    if not any(EXPERTS.search(name) for name in shapes):
        return {name: name for name in shapes}
    return _Known(config).everywhere(shapes)


def running(model: nn.Module) -> dict[str, Where]:
    """`apart` of what a model that runs is saved with, parameters and buffers, tied ones under each
    of their names."""
    named = model.state_dict(keep_vars=True).items()
    config: Any = getattr(model, "config", None)
    known = config.to_dict() if hasattr(config, "to_dict") else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in named}
    if not any(EXPERTS.search(name) for name in shapes):
        return {name: name for name in shapes}
    # The names are those that run already: a renaming may apply to what it made once more.
    return _Known(known, rename=False).everywhere(shapes)


def stored_name(where: Where) -> str:
    """The tensor it lies in."""
    return where if isinstance(where, str) else where.name


def view(tensors: Mapping[str, Tensor], where: Where) -> Tensor:
    """What lies there, as a view."""
    return tensors[where] if isinstance(where, str) else where.of(tensors[where.name])


class _Known:
    """What transformers knows of the names of one model's experts."""

    def __init__(self, config: Mapping[str, Any], *, rename: bool = True) -> None:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        own = [
            one for kind in kinds(config) for one in get_checkpoint_conversion_mapping(kind) or ()
        ]
        self.turned = bool(TRANSPOSED_TYPES.intersection(kinds(config)))
        renamings = [one for one in own if type(one).__name__ == "WeightRenaming"]
        self.renamings = renamings if rename else []
        self.converters = [
            one for one in own
            if type(one).__name__ == "WeightConverter" and "experts" in one.target_patterns[0]
        ]  # fmt: skip

    def everywhere(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Where]:
        """`places` of every name."""
        found: dict[str, Where] = {}
        for name, shape in shapes.items():
            found.update(self.places(name, shape))
        return found

    def places(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Where]]:
        from transformers.core_model_loading import apply_converters, apply_renamings

        running = apply_renamings(name, self.renamings) if self.renamings else name
        if SINGLE.search(running):
            whole, pattern = apply_converters(running, self.converters)
            yield self._single(running, whole, pattern), name
        elif EXPERTS.search(running) and (len(shape) == 3 or _is_bias(running, shape)):
            yield from self._stack(name, running, shape)
        else:
            yield running, name

    def _single(self, running: str, whole: str, pattern: str | None) -> str:
        """The name of a matrix that is stored by itself."""
        expert = SINGLE.search(running)
        if pattern is None or expert is None:
            return running
        (sources,) = [
            one.source_patterns for one in self.converters if pattern in one.source_patterns
        ]
        stem, _, leaf = whole.rpartition(".")
        leaf = GATE_UP[sources.index(pattern)] if len(sources) > 1 else leaf
        return f"{stem}.{expert[2]}.{leaf}.weight"

    def _stack(
        self, name: str, running: str, shape: tuple[int, ...]
    ) -> Iterator[tuple[str, Where]]:
        """All that one tensor holds."""
        plain = running.removesuffix("_bias").removesuffix(".weight")
        stem, _, leaf = plain.rpartition(".")
        stem = stem if stem.endswith("experts") else f"{stem}.experts"
        kind = "bias" if running.endswith("_bias") else "weight"
        merged = any(
            len(one.source_patterns) == len(GATE_UP)
            and running.endswith(one.target_patterns[0].lstrip("."))
            for one in self.converters
        )
        turned = self.turned and kind == "weight"
        leaves = GATE_UP if merged else (leaf,)
        for expert in range(shape[0]):
            for part, own in enumerate(leaves):
                cut = Cut(name, expert, turned, part, len(leaves))
                yield f"{stem}.{expert}.{own}.{kind}", cut


def _is_bias(running: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and running.endswith("_bias")
