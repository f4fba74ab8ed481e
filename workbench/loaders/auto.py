"""Which of transformers' classes makes the model of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def auto_class(config: Mapping[str, Any]) -> Any:
    """AutoModelForCausalLM, or, for a family that reads images too and has no class that reads text
    alone (Qwen2.5-VL, Mistral 3), AutoModelForImageTextToText, which runs on text as well.

    config: what config.json says.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    kind = config.get("model_type")
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
