"""LoRA and its relatives: factors, scale and delta of an adapter, read without the model.

W = W0 + s B A with s = alpha / r (rsLoRA: alpha / sqrt r), Hu et al. 2021 (arXiv 2106.09685),
Kalajdzievski 2023 (arXiv 2312.03732); DoRA: W = m (W0 + s B A) / |W0 + s B A| by rows, Liu et al.
2024 (arXiv 2402.09353). The file format and the scale rules are those of the peft library.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, is_number, read_json
from workbench.loaders.foreign_formats import pointers
from workbench.loaders.weights import Weights, from_files, from_module, inside

FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
# How peft names the tensors it adds to a module; .default appears only in a model in memory.
ADDED = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(\.[^.]+){0,2}(?<!bias)$"
)
UNSUPPORTED = {
    "layer_replication": "a model with replicated layers",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trained single tokens",
    "lora_bias": "a bias on lora_B",
    "target_parameters": "LoRA on bare parameters",
    "alora_invocation_tokens": "an adapter switched on by tokens",
    "arrow_config": "a mixture of adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "block-diagonal factors",
}
# These initialisations change the base weights before training, so that base + BA is not the model.
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
CONVERT = (
    "save it again beside its initialisation with save_pretrained(..., "
    "path_initial_model_for_weight_conversion=...), or merge it (merge_and_unload) and give the "
    "whole weights"
)
# All that decides what a trained adapter computes. Nothing else of its config reaches peft: there
# are modules to import and patterns to search with among the rest.
COMPUTES = (
    "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "task_type",
    "modules_to_save", "ensure_weight_tying",
)  # fmt: skip
# Along which axis of a factor its rank lies.
RANK_AXES = (("lora_A", 0), ("lora_embedding_A", 0), ("lora_B", 1), ("lora_embedding_B", 1))
PATIENCE = 5.0  # seconds for all patterns of an adapter on all its modules


@dataclass(frozen=True)
class Factors:
    """A low-rank change, up @ down, in float32; the scale s is inside `up`."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    @property
    def product(self) -> Float[Tensor, "out in"]:
        return self.up @ self.down

    @property
    def norm(self) -> float:
        """|up @ down|_F from the two r x r Gram matrices: |BA|^2 = <B^T B, A A^T>."""
        left, right = self.up.double(), self.down.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: `config` as saved by peft, `weights` with peft's names.

    Module names are those of the base model, without peft's own prefix.
    """

    reference: str
    config: Mapping[str, Any]
    weights: Weights

    @cached_property
    def _names(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """(module -> part -> tensor name, replaced parameter -> tensor name)."""
        parts: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        for name in self.weights:
            plain = name.removeprefix(PREFIX)
            added = ADDED.match(plain)
            if added:
                parts.setdefault(added["module"], {})[added["part"]] = name
            else:
                plain = re.sub(r"\.modules_to_save\.([^.]+\.)?(?=[^.]+$)", ".", plain)
                if ".original_module." not in plain:
                    replaced[plain.replace(".base_layer.", ".")] = name
        return parts, replaced

    @property
    def parts(self) -> Mapping[str, Mapping[str, str]]:
        """Module -> part ("lora_A") -> tensor name."""
        return self._names[0]

    @property
    def modules(self) -> list[str]:
        """Modules with a low-rank change."""
        return list(self.parts)

    @property
    def replaced(self) -> list[str]:
        """Parameters saved whole (modules_to_save, trained biases)."""
        return list(self._names[1])

    @property
    def overwrites(self) -> list[str]:
        """Parameters saved whole that peft loads over the base's, so that no switch gives those
        back: embeddings that were saved without being trained by name."""
        kept = {*(self.config.get("modules_to_save") or ())}
        adapted = {f"{module}.weight" for module in self.modules}
        return [
            name for name in self.replaced
            if not name.endswith(".bias") and name not in adapted
            and not kept.intersection(name.split("."))
        ]  # fmt: skip

    @property
    def rewrites(self) -> str:
        """The initialisation by which the base was rewritten before training; "" for none."""
        start = str(self.config.get("init_lora_weights", "")).lower()
        return start if start.startswith(REWRITES_BASE) else ""

    def scale(self, module: str) -> float:
        """s of one module, with rank_pattern, alpha_pattern and rsLoRA as peft reads them."""
        rank, alpha = self.ranks[module], self.alphas[module]
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module -> r."""
        return _patterned(self.config.get("rank_pattern"), self.modules, self.config["r"])

    @cached_property
    def alphas(self) -> Mapping[str, float]:
        """Module -> lora_alpha."""
        return _patterned(self.config.get("alpha_pattern"), self.modules, self.config["lora_alpha"])

    def peft_config(self) -> Any:
        """What peft needs to attach this adapter: every module by its own name, rank and alpha.

        Raises WorkbenchError where the base it stands on cannot be had.
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
        return LoraConfig(
            **kept,
            init_lora_weights=True,
            target_modules=self.modules,
            rank_pattern={re.escape(module): rank for module, rank in self.ranks.items()},
            alpha_pattern={re.escape(module): alpha for module, alpha in self.alphas.items()},
            inference_mode=True,
        )

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the change of one module; reads headers only."""
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

    def magnitude(self, module: str) -> Float[Tensor, " out"] | None:
        """DoRA's row norms of one module, None for plain LoRA."""
        name = self.parts[module].get("lora_magnitude_vector")
        return None if name is None else self.weights[name].float().flatten()

    def replacement_shape(self, parameter: str) -> tuple[int, ...]:
        """Of a parameter saved whole; reads headers only."""
        return self.weights.info[self._names[1][parameter]].shape

    def replacement(self, parameter: str) -> Tensor:
        return self.weights[self._names[1][parameter]]

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


def dora(
    base: Float[Tensor, "out in"], factors: Factors, magnitude: Float[Tensor, " out"]
) -> Float[Tensor, "out in"]:
    """The tuned matrix of a DoRA module, float32."""
    direction = base.float() + factors.product
    return magnitude[:, None] * direction / torch.linalg.vector_norm(direction, dim=1)[:, None]


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter's weights that are there, the one to read first."""
    return [folder / name for name in FILES if (folder / name).exists()]


def read_adapter(folder: Path) -> Adapter:
    """A PEFT adapter folder; raises WorkbenchError for what is not a readable LoRA adapter."""
    for pointer in pointers(folder):
        raise WorkbenchError(
            f"{pointer} is a Git LFS pointer and not the file itself; run `git lfs pull` there."
        )
    config = read_json(folder / "adapter_config.json", remedy="save the adapter again")
    files = adapter_files(folder)
    if not files:
        raise WorkbenchError(f"Expected {' or '.join(FILES)} in {folder}, found neither.")
    return _checked(Adapter(str(folder), config, from_files([inside(files[0])])))


def adapter_in(model: nn.Module) -> Adapter | None:
    """The adapter with which a model in memory runs now, None for one without adapters.

    Raises WorkbenchError where `model(...)` computes anything but its base and one adapter of the
    strength its config says.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    name = _running(model)
    config = {k: getattr(v, "value", v) for k, v in vars(configs[name]).items()}
    weights = from_module(model)
    part = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
    own = {n for n in weights if part.search(n)}
    found = _checked(Adapter(type(model).__name__, config, weights.without(set(weights) - own)))
    _require_strength(model, found, name)
    return found


def _running(model: Any) -> str:
    """The name of the one adapter that is active in every layer and merged into none."""
    layers = [
        m for m in model.modules() if hasattr(m, "_disable_adapters") and hasattr(m, "merged")
    ]
    if any(layer.merged for layer in layers):
        raise WorkbenchError(
            "An adapter of this model is merged into its weights, so that the base is gone from "
            "memory; call unmerge_adapter(), or give base and merged weights as folders."
        )
    if any(layer.disable_adapters for layer in layers):
        raise WorkbenchError(
            "The adapters of this model are switched off, so that it runs as its base; call "
            "enable_adapter_layers() or set_adapter(...)."
        )
    active = {name for layer in layers for name in layer.active_adapters}
    alike = all(set(layer.active_adapters) == active for layer in layers)
    if len(active) != 1 or not alike:
        raise WorkbenchError(
            f"Expected one adapter that is active in all layers, found {sorted(active)}; choose "
            "one with set_adapter(...), or combine them with add_weighted_adapter(...)."
        )
    return active.pop()


def _require_strength(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Raise WorkbenchError where a layer scales its factors by other than alpha / r."""
    for path, layer in model.named_modules():
        scaling = getattr(layer, "scaling", None)
        module = path.removeprefix(PREFIX)
        if not isinstance(scaling, dict) or name not in scaling or module not in adapter.parts:
            continue
        if not math.isclose(scaling[name], adapter.scale(module), rel_tol=1e-6):
            raise WorkbenchError(
                f"{module} runs with its adapter scaled by {scaling[name]:g}, where its config "
                f"says {adapter.scale(module):g}; set the scale back, or save it as it runs."
            )


def base_weights_in(model: nn.Module) -> Weights:
    """The base weights inside a PeftModel, under the base's own names."""
    weights = from_module(model)
    plain: dict[str, str] = {}
    for name in weights:
        if "lora_" in name or ".modules_to_save." in name:
            continue
        own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        plain[own.replace(".original_module.", ".")] = name
    return weights.placed(plain)


def _checked(adapter: Adapter) -> Adapter:
    config, where = adapter.config, adapter.reference
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise WorkbenchError(
            f"Adapter {where} is of type {kind or 'unknown'}; LoRA, rsLoRA and DoRA can be read. "
            "Merge it into its base with peft and give the merged folder."
        )
    for key, what in UNSUPPORTED.items():
        if config.get(key):
            raise WorkbenchError(
                f"Adapter {where} uses {what} ({key}), which cannot be read; merge it into its "
                "base with peft and give the merged folder."
            )
    empty = [name for name, known in adapter.weights.info.items() if 0 in known.shape]
    if empty:
        raise WorkbenchError(
            f"{len(empty)} tensors of adapter {where} are empty, {empty[0]} the first: it was "
            "saved under DeepSpeed ZeRO-3 without gathering; save it from the gathered model."
        )
    if not adapter.weights:
        raise WorkbenchError(f"Adapter {where} holds no tensors; save it again.")
    _require_numbers(config, where)
    _require_ranks(adapter)
    return adapter


def _require_numbers(config: Mapping[str, Any], where: str) -> None:
    """Raise WorkbenchError unless ranks are whole numbers >= 1 and alphas finite and positive."""
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    saved = config.get("modules_to_save") or []
    if not all(isinstance(pattern, Mapping) for pattern in patterns) or not (
        isinstance(saved, list | set) and all(isinstance(name, str) for name in saved)
    ):
        raise WorkbenchError(
            f"Expected adapter {where} to have rank_pattern and alpha_pattern as objects and "
            "modules_to_save as a list of names; save it again."
        )
    ranks, alphas = (
        [config.get(key), *pattern.values()]
        for key, pattern in zip(("r", "lora_alpha"), patterns, strict=True)
    )
    if not all(is_count(rank) for rank in ranks) or not all(
        is_number(alpha) and alpha > 0 for alpha in alphas
    ):
        raise WorkbenchError(
            f"Adapter {where} needs whole numbers r >= 1 and finite lora_alpha > 0, has r "
            f"{ranks} and lora_alpha {alphas}; for less than nothing of a change use an edit with "
            "alpha < 0."
        )


def _require_ranks(adapter: Adapter) -> None:
    """Raise WorkbenchError where a stored factor has another rank than the config gives it: the
    scale would be wrong in silence, and peft would make matrices of the rank that is claimed."""
    for module, parts in adapter.parts.items():
        claimed = adapter.ranks[module]
        for part, axis in RANK_AXES:
            shape = adapter.weights.info[parts[part]].shape if part in parts else ()
            if len(shape) > axis and shape[axis] != claimed:
                raise WorkbenchError(
                    f"Adapter {adapter.reference} declares rank {claimed} for {module} but stores "
                    f"{part} of shape {shape}; its config belongs to other weights."
                )


def _patterned(pattern: Mapping[str, Any] | None, modules: list[str], default: Any) -> Any:
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
                    f"The adapter's pattern {key!r} cannot be matched with {module} ({error}); "
                    "name the modules plainly."
                ) from error
    return found
