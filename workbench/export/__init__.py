"""What others read: Results in, files of other tools' kinds out. Nothing is sent anywhere that is
not asked for, and what only one of these needs is imported when it is called.
"""

from workbench.export.arrays import to_xarray
from workbench.export.card import card
from workbench.export.tables import summary, to_csv, to_latex
from workbench.export.trackers import to_mlflow, to_tensorboard, to_wandb

__all__ = [
    "card",
    "summary",
    "to_csv",
    "to_latex",
    "to_mlflow",
    "to_tensorboard",
    "to_wandb",
    "to_xarray",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
