"""Adapters that change no weight: trained vectors that stand in front of every text.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691), p-tuning (Liu et al. 2021, arXiv 2103.10385)
and CPT (arXiv 2410.17222) put embeddings of N virtual tokens before those of a text; prefix tuning
(Li & Liang 2021, arXiv 2101.00190) and cartridges (arXiv 2506.06266) put keys and values of N
virtual tokens into every layer. peft saves either as one matrix, prompt_embeddings: (N, width), or
(N, layers * 2 * width) with width that of all keys of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count
from workbench.loaders.adapters.adapter import Adapter, Target

STORED = "prompt_embeddings"
# What a config says of the sizes; all else in it is of training.
SIZES = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
APPLY = (
    "only analyses that run the model on texts and answers apply, such as "
    "behaviour.tokens, behaviour.generate, behaviour.faithfulness, "
    "forgetting.retention, forgetting.knowledge and forgetting.conjugate"
)


@dataclass(frozen=True)
class SoftPrompt(Adapter):
    """An adapter whose every number stands in front of a text."""

    @cached_property
    def _names(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        return {}, {}

    @property
    def count(self) -> int:
        """Virtual tokens, N."""
        return self.weights.info[STORED].shape[0]

    @property
    def width(self) -> int:
        """Numbers of a virtual token."""
        return self.weights.info[STORED].shape[1]

    @property
    def front(self) -> str:
        """What stands where, in words."""
        return f"{self.count} virtual token{'s' if self.count > 1 else ''} in front of a text"

    @property
    def told(self) -> str:
        """What it is, for a sentence."""
        return (
            f"{self.reference} is an adapter of {self.kind.name}, which changes no weight "
            f"and puts {self.front}"
        )

    @property
    def applies(self) -> str:
        """What can be asked of it, in words."""
        own = "; patching.prefix tells what it does to attention" if self.kind.in_layers else ""
        return APPLY + own

    def targets(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Target]:
        return {}

    def refusal(self) -> WorkbenchError:
        """What is said where the change of a weight, or a place in the model, is asked for."""
        return WorkbenchError(
            f"Adapter {self.told}, so there is no change of weights to analyse, and no "
            f"token is at the same position in both models; {self.applies}."
        )

    def peft_config(self, *, tied: bool = False) -> Any:
        """Of its config the sizes alone: the rest says how the prompt was begun and by what it was
        made in training, and would have files and tokenizers read."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[self.type]  # pyright: ignore[reportArgumentType]
        if self.type == "CPT":  # which counts the tokens it was begun with, and has no other sizes
            kept: dict[str, Any] = {"cpt_token_ids": [0] * self.count}
        else:
            kept = {key: self.config[key] for key in SIZES if self.config.get(key) is not None}
            kept["num_transformer_submodules"] = 1
        return made(**kept, task_type="CAUSAL_LM", inference_mode=True)


def require_soft_prompt(adapter: SoftPrompt) -> None:
    """Raise WorkbenchError for what is no whole prompt of a language model: other tensors, of other
    sizes than the config says, in a form that is not safetensors."""
    config, where = adapter.config, f"Adapter {adapter.reference} ({adapter.kind.name})"
    if set(adapter.weights) != {STORED}:
        other = next((name for name in adapter.weights if name != STORED), "nothing")
        raise WorkbenchError(
            f"{where} needs the tensor {STORED} and no other, but has {other}; save it "
            "with peft's save_pretrained."
        )
    files = [file for file in adapter.weights.home.values() if file.suffix != ".safetensors"]
    if files:
        raise WorkbenchError(
            f"{where} is stored in {files[0].name}, but prompts are only read from "
            "safetensors; save it again with save_pretrained(..., safe_serialization=True)."
        )
    task = config.get("task_type")
    if config.get("num_transformer_submodules") not in (None, 1):
        task = "an encoder and a decoder"
    if task not in (None, "CAUSAL_LM"):
        raise WorkbenchError(
            f"{where} is for {task}; give one of a causal language model (CAUSAL_LM)."
        )
    if wrong := [key for key in SIZES if not is_count(config.get(key) or 1)]:
        raise WorkbenchError(
            f"{where} needs whole numbers >= 1 for sizes, but has {wrong[0]} = "
            f"{config[wrong[0]]!r}; save it again with save_pretrained."
        )
    shape = adapter.weights.info[STORED].shape
    claimed = [config.get("num_virtual_tokens"), config.get("token_dim")]
    if claimed[1] is not None and adapter.kind.in_layers and config.get("num_layers") is not None:
        claimed[1] *= 2 * config["num_layers"]
    if len(shape) != 2 or any(c not in (None, s) for c, s in zip(claimed, shape, strict=True)):
        raise WorkbenchError(
            f"{where} stores {STORED} of shape {shape}, but its config describes "
            f"{tuple(claimed)}; its config belongs to other weights."
        )
