"""Checkpoints to study: members trained by one recipe, pairs whose change is known, and phantoms:
members that learned nothing."""

from workbench.lab import compiled, planted
from workbench.lab.build import build, manifest
from workbench.lab.known import Known
from workbench.lab.phantom import phantom
from workbench.lab.recipe import Recipe
from workbench.lab.train import train

__all__ = ["Known", "Recipe", "build", "compiled", "manifest", "phantom", "planted", "train"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
