"""The two studies anyone can run: the shipped family, and a real 135M language model."""

from workbench.demo.family import FAMILY, shipped_study
from workbench.demo.smollm2 import fast_bfloat16, smollm2_study

__all__ = ["FAMILY", "fast_bfloat16", "shipped_study", "smollm2_study"]
