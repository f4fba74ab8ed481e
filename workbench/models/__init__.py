"""Running checkpoints: places in a model, activations read and replaced, both sides of a pair, and
edits of their weights."""

from workbench.models.edits import Edit, edit, entries, merged, one_bit, only, tiered, truncated
from workbench.models.hooks import capture, replace, run
from workbench.models.layout import Layout
from workbench.models.sides import Sides, models
from workbench.models.sites import KINDS, Site

__all__ = [
    "KINDS",
    "Edit",
    "Layout",
    "Sides",
    "Site",
    "capture",
    "edit",
    "entries",
    "merged",
    "models",
    "one_bit",
    "only",
    "replace",
    "run",
    "tiered",
    "truncated",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
