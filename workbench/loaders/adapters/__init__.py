"""Adapters: read as peft saved them, and what they make of the parameters of their base.

Of one file the next makes use: `kinds` (a record for each of peft's types), `adapter` (the file),
`lora` (by formula), `soft_prompt` (what changes no weight), `shell` (by peft's own layers),
`tuning` (on one base), `reading`.
"""

from workbench.loaders.adapters.adapter import PREFIX, Adapter, Target
from workbench.loaders.adapters.factors import Factors, dora
from workbench.loaders.adapters.kinds import KINDS
from workbench.loaders.adapters.lora import CONVERT, Lora
from workbench.loaders.adapters.reading import (
    adapter_files,
    adapter_in,
    base_weights_in,
    read_adapter,
)
from workbench.loaders.adapters.soft_prompt import SoftPrompt
from workbench.loaders.adapters.tuning import Tuning

__all__ = [
    "CONVERT",
    "KINDS",
    "PREFIX",
    "Adapter",
    "Factors",
    "Lora",
    "SoftPrompt",
    "Target",
    "Tuning",
    "adapter_files",
    "adapter_in",
    "base_weights_in",
    "dora",
    "read_adapter",
]
