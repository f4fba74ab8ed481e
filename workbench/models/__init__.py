"""Running checkpoints: models loaded to measure, and edits of their weights."""

from workbench.models.edits import merged, overlay

__all__ = ["merged", "overlay"]
