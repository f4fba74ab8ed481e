"""Adapters of mlx-lm and torchtune, as peft would have saved them: other names, sides turned.

mlx-lm writes adapters.safetensors with an adapter_config.json of its own (fine_tune_type,
lora_parameters): of a module lora_a (in, r) and lora_b (r, out), y = x W^T + scale (x A) B; of DoRA
m, of the rows of W + scale (A B)^T.

torchtune writes what peft reads (adapter_model.safetensors) or, under its own names
(layers.0.attn.q_proj.lora_a.weight, in adapter_0.pt), the same factors beside a config in peft's
form. Where it runs rotary positions on neighbouring pairs of a head's numbers and transformers on
its two halves, the rows of the query's and the key's B are put in transformers' order: row h d +
c d/2 + i of transformers is h d + 2 i + c of torchtune, for heads h of d numbers and c = 0, 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, is_number
from workbench.loaders.adapters.adapter import PREFIX
from workbench.loaders.names import TOKENS
from workbench.loaders.weights import TensorInfo, Weights, from_files, inside

MLX = "adapters.safetensors"
MLX_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_a|lora_b|m)$")
TORCHTUNE = re.compile(r"^adapter_(\d+|model)\.pt$|^adapter_\d+\.safetensors$")
TUNE_PART = re.compile(
    r"^(?P<module>(layers\.\d+\..+|output|tok_embeddings))\."
    r"(?P<part>lora_a\.weight|lora_b\.weight|magnitude)$"
)
PARTS = {
    "lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector",
    "lora_a.weight": "lora_A.weight", "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}  # fmt: skip
# Module of torchtune -> of transformers.
TUNE_MODULES = {
    "attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj", "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj", "mlp.w3": "mlp.up_proj",
}  # fmt: skip
# Model types whose rotary positions torchtune runs on pairs, and on halves as transformers does.
PAIRS, HALVES = ("llama", "mistral", "gemma", "gemma2"), ("qwen2", "qwen3")


class Source(NamedTuple):
    """Where a tensor lies in the file, and what is done to it there: turned, or its rows moved."""

    name: str
    turned: bool = False
    order: Callable[[Tensor], Tensor] | None = None


def other_files(folder: Path) -> list[Path]:
    """Files of weights of either tool in a folder, the one to read first."""
    names = sorted(p for p in folder.iterdir() if TORCHTUNE.match(p.name))
    return [*([folder / MLX] if (folder / MLX).exists() else []), *names]


def in_peft_form(
    file: Path, config: Mapping[str, Any], base: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """The config and tensors of an adapter of mlx-lm or torchtune in peft's form.

    config: adapter_config.json beside it. base: config.json of the model it stands on. Raises
    WorkbenchError for what has no such form.
    """
    weights = from_files([inside(file)])
    if file.name == MLX:
        return _of_mlx(file, config, weights)
    places = {}
    for name in weights:
        found = TUNE_PART.match(name)
        if found is None:
            raise WorkbenchError(
                f"{file} holds {name}, which is not a name that torchtune gives in an "
                "adapter; give the adapter_model.safetensors that it writes for peft."
            )
        part = found["part"]
        order = _order(found["module"], base, file) if part == "lora_b.weight" else None
        stem = f"{PREFIX}{_tune_module(found['module'], file)}"
        places[f"{stem}.{PARTS[part]}"] = Source(name, order=order)
    own = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    magnitudes = any(name.endswith("magnitude_vector") for name in places)
    return own | dict(config) | {"use_dora": magnitudes}, _read_as(weights, places)


def _of_mlx(
    file: Path, config: Mapping[str, Any], weights: Weights
) -> tuple[dict[str, Any], Weights]:
    kind, told = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    places: dict[str, Source] = {}
    for name in weights:
        found = MLX_PART.match(name)
        if found is None or len(weights.info[name].shape) > 2:
            what = "a parameter saved whole" if found is None else "a factor of many experts"
            raise WorkbenchError(
                f"{name} of {file} is {what}, which cannot be read from this file; "
                "fuse it with `mlx_lm.fuse --dequantize`, and give the fused folder."
            )
        module, part = found["module"], PARTS[found["part"]]
        if TOKENS.search(f"{module}.weight"):
            part = part.removesuffix(".weight").replace("lora_", "lora_embedding_")
        if part == "lora_embedding_magnitude_vector":
            raise WorkbenchError(
                f"{name} of {file} belongs to DoRA on an embedding, which mlx-lm and "
                "peft compute differently; fuse it with `mlx_lm.fuse --dequantize`, "
                "and give the fused folder."
            )
        places[f"{PREFIX}{module}.{part}"] = Source(name, turned=found["part"] != "m")
    if kind not in ("lora", "dora") or not isinstance(told, Mapping):
        raise WorkbenchError(
            f"Expected the adapter_config.json next to {file} to have fine_tune_type "
            f"lora or dora, and lora_parameters with rank and scale, found {kind!r} "
            f"and {str(told)[:60]}; put the config that mlx-lm wrote next to it."
        )
    rank, scale, alpha = (told.get(key) for key in ("rank", "scale", "alpha"))
    if not is_count(rank) or not is_number(scale) or rank is None or scale is None:
        raise WorkbenchError(
            f"Adapter {file} needs lora_parameters with a whole rank >= 1 and a finite "
            f"scale, but has {rank!r} and {scale!r}; put the config that mlx-lm wrote next to it."
        )
    if alpha is not None and alpha != rank:
        raise WorkbenchError(
            f"Adapter {file} has alpha = {alpha!r} in addition to scale; older "
            "versions of mlx-lm multiply scale by alpha / rank, and newer ones ignore "
            "alpha; remove alpha from lora_parameters, and if an older version "
            "trained the adapter, multiply scale by alpha / rank first."
        )
    made = {"base_model_name_or_path": config.get("model"), "peft_type": "LORA", "r": rank}
    made |= {"lora_alpha": scale * rank, "use_dora": kind == "dora"}
    return made | {"task_type": "CAUSAL_LM", "bias": "none"}, _read_as(weights, places)


def _tune_module(module: str, file: Path) -> str:
    """The name in transformers of a module of torchtune."""
    if module == "output":
        return "lm_head"
    above, layer, own = [*module.split(".", 2), "", ""][:3]
    if above != "layers" or own not in TUNE_MODULES:
        raise WorkbenchError(
            f"{file} changes {module}, whose name in transformers is not known; give the "
            "adapter_model.safetensors that torchtune writes for peft."
        )
    return f"model.layers.{layer}.{TUNE_MODULES[own]}"


def _order(module: str, base: Mapping[str, Any], file: Path) -> Callable[[Tensor], Tensor] | None:
    """What brings the rows of a module's B in transformers' order; None where they are in it."""
    if not module.endswith((".q_proj", ".k_proj")):
        return None
    kind, heads = base.get("model_type"), base.get("num_attention_heads")
    if kind in HALVES:
        return None
    if module.endswith(".k_proj"):
        heads = base.get("num_key_value_heads") or heads
    if kind not in PAIRS or not is_count(heads):
        raise WorkbenchError(
            f"{file} changes {module}, whose rows torchtune stores in its own order, "
            f"and the order of a base of type {kind!r} is not known; give the "
            "adapter_model.safetensors that torchtune writes for peft."
        )
    count = heads
    assert isinstance(count, int)

    def halves(rows: Tensor) -> Tensor:
        if rows.ndim != 2 or len(rows) % (2 * count):
            raise WorkbenchError(
                f"{file} changes {module} by {len(rows)} rows, which cannot be split "
                f"into {count} heads; give the base it was trained on."
            )
        split = rows.reshape(count, len(rows) // count // 2, 2, -1)
        return split.transpose(1, 2).reshape(rows.shape)

    return halves


def _read_as(weights: Weights, places: Mapping[str, Source]) -> Weights:
    """The tensors under these names, each as its source says."""
    info = {}
    for name, source in places.items():
        known = weights.info[source.name]
        shape = known.shape[::-1] if source.turned else known.shape
        info[name] = TensorInfo(shape, known.dtype)

    def read(name: str, at: int | None) -> Tensor:
        source = places[name]
        found = weights[source.name]
        found = found.T.contiguous() if source.turned else found
        found = found if source.order is None else source.order(found)
        return found if at is None else found[at]

    return Weights(info, read, {n: weights.home[s.name] for n, s in places.items()})
