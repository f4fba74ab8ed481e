"""Checkpoints to study: members trained by one recipe, and pairs with a planted change."""

from workbench.lab import planted
from workbench.lab.build import build, manifest
from workbench.lab.recipe import Recipe
from workbench.lab.train import train

__all__ = ["Recipe", "build", "manifest", "planted", "train"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
