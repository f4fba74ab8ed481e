"""Forgetting: what was lost of what the base could do, what is only hidden, what can come back."""

from workbench.forgetting.conjugate import conjugate
from workbench.forgetting.interpolate import interpolate
from workbench.forgetting.knowledge import knowledge
from workbench.forgetting.retention import retention
from workbench.forgetting.sequential import sequential

__all__ = ["conjugate", "interpolate", "knowledge", "retention", "sequential"]
