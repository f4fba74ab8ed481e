"""An adapter that peft saved: its config, its tensors by peft's names, and what each is for.

The file format is that of the peft library: names of a module, of what is added to it, and
whole parameters beside them. Nothing here computes a change; see `lora`, `shell` and `tuning`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import regex
from torch import Tensor

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import is_count, is_number
from workbench.loaders.adapters.kinds import KINDS, Kind
from workbench.loaders.experts import Cut
from workbench.loaders.names import HEAD
from workbench.loaders.weights import Weights

PREFIX = "base_model.model."
# Single tokens that were trained beside the rest, or alone.
TOKEN_ROWS = re.compile(r"^(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta$")
# Of a config what decides no number of a trained adapter, or leads elsewhere: modules to import,
# patterns to search with, and which modules there are, which the tensors' names say.
LEFT_OUT = frozenset((
    "alora_invocation_tokens", "arrow_config", "auto_mapping", "base_model_name_or_path",
    "corda_config", "eva_config", "exclude_modules", "feedforward_modules", "inference_mode",
    "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_ga_config", "megatron_config", "megatron_core", "monteclora_config", "peft_type",
    "peft_version", "progressbar", "revision", "runtime_config", "target_modules",
    "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config",
))  # fmt: skip
# Whole numbers in a config that are no sizes of what is stored.
NO_SIZES = re.compile(
    r"seed|prng|alpha|scal|lambda|step|^t(init|final)$|deltaT|token|warmup|interval"
)
PLAIN = re.compile(r"[\w.-]+")  # a module's name, which peft will search with as a pattern
PATIENCE = 5.0  # seconds for all patterns of an adapter on all its modules


class Target(NamedTuple):
    """What an adapter changes of a parameter of its base. module: as the adapter names it, of a
    bare parameter with that one's name. leaf: "weight", "bias", or "tokens" for rows of a weight.
    cut: of an expert's matrix, which part of the stack it is. across: its factors are those of the
    transposed matrix."""

    module: str
    leaf: str = "weight"
    cut: Cut | None = None
    across: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter: `config` as saved by peft, `weights` with peft's names.

    Module names are those of the base model, without peft's own prefix. translated: another tool
    saved it, under other names.
    """

    reference: str
    config: Mapping[str, Any]
    weights: Weights
    translated: bool = False

    @property
    def type(self) -> str:
        """peft's type, a key of KINDS."""
        return str(self.config["peft_type"]).upper()

    @property
    def kind(self) -> Kind:
        return KINDS[self.type]

    @cached_property
    def _names(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """(module -> part -> tensor name, replaced parameter -> tensor name)."""
        parts: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        for name in self.weights:
            plain = name.removeprefix(PREFIX)
            rows, part = TOKEN_ROWS.match(plain), self._part(plain)
            if rows:
                continue
            if part:
                parts.setdefault(part[0], {})[part[1]] = name
            elif plain != name or not plain.startswith("base_model."):
                plain = re.sub(r"\.modules_to_save\.([^.]+\.)?(?=[^.]+$)", ".", plain)
                plain = re.sub(r"\.ln_tuning_layers\.([^.]+\.)?(?=[^.]+$)", ".", plain)
                if ".original_module." not in plain:
                    replaced[plain.replace(".base_layer.", ".")] = name
        return parts, replaced

    def _part(self, name: str) -> tuple[str, str] | None:
        """(module, part) of a tensor that is added to one; None for any other."""
        prefix = self.kind.prefix
        module, found, part = name.rpartition(f".{prefix}")
        if not found or module == "base_model" or self.type == "LN_TUNING":
            return None
        return module, prefix + part

    @property
    def parts(self) -> Mapping[str, Mapping[str, str]]:
        """Module -> part ("lora_A") -> tensor name."""
        return self._names[0]

    @property
    def modules(self) -> list[str]:
        """Modules to which something is added."""
        return list(self.parts)

    @cached_property
    def tokens(self) -> Mapping[str, str]:
        """Module of tokens -> name of the tensor of its rows that were trained."""
        found = {name: TOKEN_ROWS.match(name.removeprefix(PREFIX)) for name in self.weights}
        return {match["module"]: name for name, match in found.items() if match}

    @property
    def changed_modules(self) -> list[str]:
        """Modules with a change of any sort."""
        return [*self.modules, *self.tokens]

    @property
    def replaced(self) -> list[str]:
        """Parameters saved whole (modules_to_save, trained biases, LN tuning's norms)."""
        return list(self._names[1])

    @cached_property
    def norms(self) -> list[str]:
        """Modules that LN tuning trained whole."""
        inside = (name.removeprefix(PREFIX).partition(".ln_tuning_layers") for name in self.weights)
        return list(dict.fromkeys(module for module, found, _ in inside if found))

    @property
    def overwrites(self) -> list[str]:
        """Parameters saved whole that peft loads over the base's, so that no switch gives those
        back: embeddings that were saved without being trained by name."""
        kept = {*(self.config.get("modules_to_save") or ())}
        adapted = {f"{module}.weight" for module in (*self.changed_modules, *self.norms)}
        return [
            name for name in self.replaced
            if not name.endswith(".bias") and name not in adapted
            and not kept.intersection(name.split("."))
        ]  # fmt: skip

    @property
    def own_biases(self) -> list[str]:
        """Modules that get a bias even where the base has none."""
        return self.modules if self.kind.leaves == ("bias",) else []

    @property
    def rewrites(self) -> str:
        """The initialisation by which the base was rewritten before training; "" for none."""
        return ""

    def targets(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Target]:
        """Parameter of the base, as the adapter names it -> what is changed there.

        config: the base's, which says how it keeps the matrices of experts. names: of the base's
        parameters, among which target_modules are looked for where no tensor names a module.
        """
        modules = self.modules
        if not modules and not self.changed_modules and self.type != "LN_TUNING":
            ends = tuple(f".{one}.weight" for one in self._targeted(False)["target_modules"])
            modules = [n.removesuffix(".weight") for n in names if f".{n}".endswith(ends)]
        own = {
            f"{module}.{leaf}": Target(module, leaf)
            for module in modules for leaf in self.kind.leaves
        }  # fmt: skip
        return own | {
            f"{module}.weight": Target(module, "tokens")
            for module in self.own_tokens(bool(config.get("tie_word_embeddings")))
        }  # fmt: skip

    def own_tokens(self, tied: bool) -> list[str]:
        """Modules whose tokens were trained, less a head whose are those of the embedding that it
        is tied to."""
        second = tied and len(self.tokens) > 1
        return [m for m in self.tokens if not (second and HEAD.search(f"{m}.weight"))]

    def token_rows(self, module: str) -> tuple[list[int], Tensor]:
        """(ids, rows) of a module of tokens. Raises WorkbenchError where they do not belong
        together."""
        told: Any = self.config.get("token_indices") or self.config.get("trainable_token_indices")
        if isinstance(told, Mapping):
            own = (v for k, v in told.items() if module == k or module.endswith(f".{k}"))
            told = next(own, None)
        rows = self.weights[self.tokens[module]].float()
        if not (isinstance(told, list) and all(is_count(one, 0) for one in told)) or (
            rows.ndim != 2 or len(rows) != len(told)
        ):
            raise WorkbenchError(
                f"Adapter {self.reference} stores {tuple(rows.shape)} for trained tokens of "
                f"{module}, and its config names {told}; its config belongs to other weights."
            )
        return told, rows

    def replacement_shape(self, parameter: str) -> tuple[int, ...]:
        """Of a parameter saved whole; reads headers only."""
        return self.weights.info[self._names[1][parameter]].shape

    def replacement(self, parameter: str) -> Tensor:
        return self.weights[self._names[1][parameter]]

    def peft_config(self, *, tied: bool = False) -> Any:
        """What peft needs to attach this adapter: every module by its own name, and of its config
        what decides numbers. tied: the base's head is its embedding. Raises WorkbenchError where
        the config says what the tensors do not bear."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[self.type]  # pyright: ignore[reportArgumentType]
        known = {field.name for field in dataclasses.fields(made)} - LEFT_OUT
        kept = {k: v for k, v in self.config.items() if k in known and v is not None}
        self._require_plain(kept)
        for key, value in kept.items():
            if key.endswith("_pattern") and self.type != "ADALORA":
                found = patterned(value, self.modules, None)
                kept[key] = {name: one for name, one in found.items() if one is not None}
        try:
            return made(**kept, **self._targeted(tied), inference_mode=True)
        except (TypeError, ValueError, AttributeError) as error:  # what peft asks of its values
            raise WorkbenchError(
                f"The config of adapter {self.reference} does not describe "
                f"{self.kind.name} ({reason(error)}); save it again with save_pretrained."
            ) from error

    def _targeted(self, tied: bool) -> dict[str, Any]:
        """The arguments that say which modules there are."""
        if self.type == "LN_TUNING":
            return {"target_modules": self.norms}
        if self.type == "TRAINABLE_TOKENS":
            return {"target_modules": self.own_tokens(tied)}
        modules = self.modules
        if not modules:  # no tensor names one: all of them share a vector
            told = self.config.get("target_modules")
            modules = told if isinstance(told, list) else []
        odd = [one for one in modules if not isinstance(one, str) or not PLAIN.fullmatch(one)]
        if odd or not modules:
            raise WorkbenchError(
                f"Adapter {self.reference} changes {odd[0] if odd else 'no module by name'}; give "
                "one whose config lists its target_modules by plain names."
            )
        fed = self.config.get("feedforward_modules")
        if self.type != "IA3":
            return {"target_modules": modules}
        ends = fed if isinstance(fed, list) else [fed] if fed else []
        matched = patterned({str(end): True for end in ends}, modules, None)
        return {
            "target_modules": modules,
            "feedforward_modules": [name for name in modules if matched[name]],
        }

    def _require_plain(self, kept: Mapping[str, Any]) -> None:
        """Raise WorkbenchError for sizes beyond what is stored, of which peft would make tensors,
        and for values that are no plain numbers, words or lists of them."""
        entries = sum(math.prod(known.shape) for known in self.weights.info.values())
        for key, value in kept.items():
            if isinstance(value, Mapping) != key.endswith("_pattern"):
                raise WorkbenchError(
                    f"Adapter {self.reference} has {key} = {str(value)[:60]}, which is "
                    "not a plain value, or not a valid pattern; save it again with save_pretrained."
                )
            ones = value.values() if isinstance(value, Mapping) else [value]
            for one in ones:
                if is_count(one, entries + 1) and not NO_SIZES.search(key):
                    raise WorkbenchError(
                        f"Adapter {self.reference} declares {key} = {one}, more than the {entries} "
                        "numbers it stores; its config belongs to other weights."
                    )
                plain = one if isinstance(one, list) else [one]
                if not all(isinstance(x, bool | str) or is_number(x) for x in plain):
                    raise WorkbenchError(
                        f"Adapter {self.reference} has {key} = {str(one)[:60]}, which "
                        "is not a plain value; save it again with save_pretrained."
                    )


def patterned(pattern: Mapping[str, Any] | None, modules: list[str], default: Any) -> Any:
    """Module -> value by peft's rule: a key matches the end of the module's name, as a regular
    expression. Raises WorkbenchError where that is none, or takes longer than PATIENCE."""
    found, until = dict.fromkeys(modules, default), time.monotonic() + PATIENCE
    for module in modules:
        for key, value in (pattern or {}).items():
            try:
                left = max(until - time.monotonic(), 1e-3)
                if regex.match(rf"(.*\.)?({key})$", module, timeout=left):
                    found[module] = value
                    break
            except (regex.error, TimeoutError) as error:
                raise WorkbenchError(
                    f"The adapter's pattern {key!r} cannot be matched with {module} "
                    f"({error}); list the modules by plain names."
                ) from error
    return found
