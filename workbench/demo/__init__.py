"""The studies anyone can run: the shipped family, its recipes over seeds, and a real 135M language
model."""

from workbench.demo.family import FAMILY, shipped_study
from workbench.demo.seeds import seeds_study
from workbench.demo.smollm2 import fast_bfloat16, smollm2_family, smollm2_study

__all__ = [
    "FAMILY",
    "fast_bfloat16",
    "seeds_study",
    "shipped_study",
    "smollm2_family",
    "smollm2_study",
]
