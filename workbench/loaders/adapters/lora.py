"""LoRA and its options: factors, scale and delta of an adapter, read without the model.

W = W0 + s B A with s = alpha / r (rsLoRA: alpha / sqrt r), Hu et al. 2021 (arXiv 2106.09685),
Kalajdzievski 2023 (arXiv 2312.03732); DoRA: W = m (W0 + s B A) / |W0 + s B A| by rows, Liu et al.
2024 (arXiv 2402.09353). The scale rules are those of the peft library, and so is how the experts of
a layer lie in the factors of their stack (target_parameters): expert e has the rows [e r : (e+1) r]
of A and the columns e, e + E, e + 2E ... of B, for E experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, is_number
from workbench.loaders.adapters.adapter import Adapter, Target, patterned
from workbench.loaders.adapters.factors import Factors, dora
from workbench.loaders.experts import TRANSPOSED_TYPES, Cut, apart, kinds

# How peft names the tensors it adds to a module; .default appears only in a model in memory.
ADDED = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(\.[^.]+){0,2}?(?P<bias>\.bias)?$"
)
UNSUPPORTED = {
    "layer_replication": "a model with replicated layers",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "an adapter switched on by tokens",
    "arrow_config": "a mixture of adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "block-diagonal factors",
}
# These initialisations change the base weights before training, so that base + BA is not the model.
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
CONVERT = (
    "save it again together with its initialisation, with save_pretrained(..., "
    "path_initial_model_for_weight_conversion=...), or merge it (merge_and_unload) "
    "and give the whole weights"
)
# All that decides what a trained adapter computes. Nothing else of its config reaches peft: there
# are modules to import and patterns to search with among the rest.
COMPUTES = (
    "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "task_type",
    "modules_to_save", "ensure_weight_tying", "lora_bias",
)  # fmt: skip
# Along which axis of a factor its rank lies.
RANK_AXES = (("lora_A", 0), ("lora_embedding_A", 0), ("lora_B", 1), ("lora_embedding_B", 1))
BIAS = "lora_B.bias"
# Model types whose experts are stored (in, out) and do not say so, so that peft takes the one side
# for the other.
SILENT = {"llama4", "llama4_text"}


@dataclass(frozen=True)
class Lora(Adapter):
    """A LoRA adapter."""

    def _part(self, name: str) -> tuple[str, str] | None:
        added = ADDED.match(name)
        if added is None:
            return None
        return added["module"], added["part"] + (added["bias"] or "")

    @property
    def own_biases(self) -> list[str]:
        return [module for module, parts in self.parts.items() if BIAS in parts]

    @property
    def rewrites(self) -> str:
        start = str(self.config.get("init_lora_weights", "")).lower()
        return start if start.startswith(REWRITES_BASE) else ""

    @cached_property
    def stacks(self) -> Mapping[str, str]:
        """Module as its tensors name it -> parameter of a stack of experts that it changes.

        peft puts several on one module inside each other, in the order of its parameters, so that
        the innermost is the first. Raises WorkbenchError where the config does not say which.
        """
        asked = self.config.get("target_parameters") or []
        if not isinstance(asked, list) or not all(isinstance(one, str) for one in asked):
            raise WorkbenchError(
                f"Expected adapter {self.reference} to have target_parameters as a list of names, "
                f"found {str(asked)[:60]}; save it again."
            )
        found: dict[str, str] = {}
        for module in dict.fromkeys(_outermost(one) for one in self.modules) if asked else ():
            depth = sorted((m for m in self.modules if _outermost(m) == module), key=len)[::-1]
            own = [one for one in asked if f".{module}".endswith(f".{one.rpartition('.')[0]}")]
            if not own:
                continue
            # transformers lists gate and up before down, which is also the order of the alphabet
            # turned round.
            leaves = sorted({one.rpartition(".")[2] for one in own}, reverse=True)
            leaves.sort(key=lambda leaf: "down" in leaf or "output" in leaf)
            if len(leaves) != len(depth):
                raise WorkbenchError(
                    f"Adapter {self.reference} names {len(leaves)} parameters of {module} and "
                    f"stores factors of {len(depth)}; its config belongs to other weights."
                )
            found |= {m: f"{module}.{leaf}" for m, leaf in zip(depth, leaves, strict=True)}
        return found

    def targets(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Target]:
        found = super().targets(config, names)
        silent = bool(SILENT.intersection(kinds(config)))
        for module, parameter in self.stacks.items():
            del found[f"{module}.weight"]
            shape = self._stack_shape(module, config)
            for name, where in apart({parameter: shape}, config).items():
                if not isinstance(where, Cut):
                    raise WorkbenchError(
                        f"Adapter {self.reference} changes {parameter}, which is not a "
                        "stack of experts; train it with target_modules, or merge it "
                        "and give the folder."
                    )
                found[name] = Target(module, cut=where, across=silent)
        return found | {f"{module}.bias": Target(module, "bias") for module in self.own_biases}

    def _stack_shape(self, module: str, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """(experts, ., .) of the parameter whose factors these are."""
        (up, down), _ = self._pair(module)
        (out, wide), (tall, inner) = (self.weights.info[name].shape for name in (up, down))
        experts = tall // self.ranks[module]
        if wide != tall or experts * self.ranks[module] != tall:
            raise WorkbenchError(
                f"Adapter {self.reference}: expected factors of rank {self.ranks[module]} for each "
                f"expert of {module}, found {(out, wide)} and {(tall, inner)}; save it again."
            )
        if (TRANSPOSED_TYPES - SILENT).intersection(kinds(config)):
            return experts, inner, out
        return experts, out, inner

    def scale(self, module: str) -> float:
        """s of one module, with rank_pattern, alpha_pattern and rsLoRA as peft reads them."""
        rank, alpha = self.ranks[module], self.alphas[module]
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _patterned(self, key: str, default: str) -> Mapping[str, Any]:
        """Of a stack of experts the parameter's own name is matched."""
        names = {module: self.stacks.get(module, module) for module in self.modules}
        found = patterned(
            self.config.get(key), list(dict.fromkeys(names.values())), self.config[default]
        )
        return {module: found[name] for module, name in names.items()}

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module -> r."""
        return self._patterned("rank_pattern", "r")

    @cached_property
    def alphas(self) -> Mapping[str, float]:
        """Module -> lora_alpha."""
        return self._patterned("alpha_pattern", "lora_alpha")

    def peft_config(self, *, tied: bool = False) -> Any:
        """What peft needs to attach this adapter: every module by its own name, rank and alpha.

        tied: the base's head is its embedding. Raises WorkbenchError where the base it stands on
        cannot be had.
        """
        from peft import LoraConfig

        if self.rewrites:
            raise WorkbenchError(
                f"Adapter {self.reference} was initialised by {self.rewrites}, which rewrites the "
                f"base before training: base + BA is not the model; {CONVERT}."
            )
        kept: dict[str, Any] = {
            key: self.config[key] for key in COMPUTES if self.config.get(key) is not None
        }
        names = {module: self.stacks.get(module, module) for module in self.modules}
        if self.tokens:
            kept["trainable_token_indices"] = {
                module: self.token_rows(module)[0] for module in self.own_tokens(tied)
            }
        return LoraConfig(
            **kept,
            init_lora_weights=True,
            target_modules=[module for module in self.modules if module not in self.stacks],
            target_parameters=sorted(self.stacks.values()) or None,
            rank_pattern={re.escape(names[m]): rank for m, rank in self.ranks.items()},
            alpha_pattern={re.escape(names[m]): alpha for m, alpha in self.alphas.items()},
            inference_mode=True,
        )

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the change of one module, of a stack of experts of all of them; reads
        headers only."""
        (up, down), turned = self._pair(module)
        shapes = [self.weights.info[name].shape for name in (up, down)]
        left, right = (shape[::-1] if turned else shape for shape in shapes)
        if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
            raise WorkbenchError(
                f"Adapter {self.reference}: expected lora_B (out, r) and lora_A (r, in) for "
                f"{module}, found {left} and {right}; LoRA on linear and embedding layers can be "
                "read."
            )
        return left[0], right[1]

    def factors(self, module: str) -> Factors:
        """B (scaled) and A of one module, in the orientation (out, in)."""
        self.shape(module)
        names, turned = self._pair(module)
        left, right = (self.weights[name].float() for name in names)
        left, right = (left.T, right.T) if turned else (left, right)
        return Factors((left * self.scale(module)).contiguous(), right)

    def expert_factors(self, target: Target, whole: Factors) -> Factors:
        """Those of one expert's part of a stack, whose `factors` are `whole`."""
        cut, rank = target.cut, self.ranks[target.module]
        assert cut is not None
        experts = len(whole.down) // rank
        up = whole.up.reshape(len(whole.up), rank, experts)[:, :, cut.expert]
        down = whole.down.reshape(experts, rank, -1)[cut.expert]
        up, down = (down.T, up.T) if target.across else (up, down)
        return Factors(up.chunk(cut.parts)[cut.part].contiguous(), down.contiguous())

    def bias(self, module: str) -> Float[Tensor, " out"]:
        """What is added to the bias of one module."""
        return self.weights[self.parts[module][BIAS]].float() * self.scale(module)

    def magnitude(self, module: str) -> Float[Tensor, " out"] | None:
        """DoRA's row norms of one module, None for plain LoRA."""
        name = self.parts[module].get("lora_magnitude_vector")
        return None if name is None else self.weights[name].float().flatten()

    def is_embedding(self, module: str) -> bool:
        """Whether the module is one of tokens, whose matrix is stored (tokens, out)."""
        return "lora_embedding_A" in self.parts[module]

    def formed(
        self, module: str, base: Float[Tensor, "out in"], factors: Factors
    ) -> Float[Tensor, "out in"] | None:
        """The tuned matrix of a DoRA module, float32; None where the factors are all its change."""
        magnitude = self.magnitude(module)
        if magnitude is None:
            return None
        if self.is_embedding(module):
            # Norms are over tokens, one for each number of an embedding.
            across = Factors(factors.down.T, factors.up.T)
            return dora(base.T, across, magnitude).T.contiguous()
        return dora(base, factors, magnitude)

    def _pair(self, module: str) -> tuple[tuple[str, str], bool]:
        """The names of `up` and `down` of one module, and whether they are stored transposed."""
        parts = self.parts[module]
        if {"lora_embedding_A", "lora_embedding_B"} <= parts.keys():
            # An embedding is stored (tokens, out) and peft's delta is (B A)^T.
            return (parts["lora_embedding_A"], parts["lora_embedding_B"]), True
        if not {"lora_A", "lora_B"} <= parts.keys():
            raise WorkbenchError(
                f"Adapter {self.reference} has {sorted(parts)} for {module} but needs both lora_A "
                "and lora_B; save the adapter again."
            )
        return (parts["lora_B"], parts["lora_A"]), False


def _outermost(module: str) -> str:
    """A module of a model, of what peft has put on it."""
    return module.replace(".base_layer", "")


def require_lora(adapter: Lora) -> None:
    """Raise WorkbenchError for options that cannot be read, and for numbers that are none."""
    config, where = adapter.config, adapter.reference
    for key, what in UNSUPPORTED.items():
        if config.get(key):
            raise WorkbenchError(
                f"Adapter {where} uses {what} ({key}), which cannot be read; merge it into its "
                "base with peft and give the merged folder."
            )
    _require_numbers(config, where)
    _require_ranks(adapter)


def _require_numbers(config: Mapping[str, Any], where: str) -> None:
    """Raise WorkbenchError unless ranks are whole numbers >= 1 and alphas finite and positive."""
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(pattern, Mapping) for pattern in patterns):
        raise WorkbenchError(
            f"Expected adapter {where} to have rank_pattern and alpha_pattern as objects; save it "
            "again."
        )
    ranks, alphas = (
        [config.get(key), *pattern.values()]
        for key, pattern in zip(("r", "lora_alpha"), patterns, strict=True)
    )
    if not all(is_count(rank) for rank in ranks) or not all(
        is_number(alpha) and alpha > 0 for alpha in alphas
    ):
        raise WorkbenchError(
            f"Adapter {where} needs whole numbers r >= 1 and finite lora_alpha > 0, "
            f"has r {ranks} and lora_alpha {alphas}; to subtract a change use an edit "
            "with alpha < 0."
        )


def _require_ranks(adapter: Lora) -> None:
    """Raise WorkbenchError where a stored factor has another rank than the config gives it: the
    scale would be wrong in silence, and peft would make matrices of the rank that is claimed."""
    for module, parts in adapter.parts.items():
        claimed = adapter.ranks[module]
        for part, axis in RANK_AXES:
            shape = adapter.weights.info[parts[part]].shape if part in parts else ()
            stacked = module in adapter.stacks and len(shape) > axis and shape[axis] % claimed == 0
            if len(shape) > axis and shape[axis] != claimed and not stacked:
                raise WorkbenchError(
                    f"Adapter {adapter.reference} declares rank {claimed} for {module} but stores "
                    f"{part} of shape {shape}; its config belongs to other weights."
                )
