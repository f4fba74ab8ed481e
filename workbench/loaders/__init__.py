"""Checkpoints in, aligned pairs out."""

from workbench.loaders.checkpoint import Checkpoint
from workbench.loaders.pair import CheckpointPair, Delta, Family, load_family, load_pair
from workbench.loaders.pair_report import PairReport
from workbench.loaders.steps import load_steps

__all__ = [
    "Checkpoint",
    "CheckpointPair",
    "Delta",
    "Family",
    "PairReport",
    "load_family",
    "load_pair",
    "load_steps",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
