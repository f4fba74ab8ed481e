"""Forgetting: what was lost of what the base could do."""

from workbench.forgetting.retention import retention

__all__ = ["retention"]
