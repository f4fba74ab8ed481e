"""How few parameters carry what fine-tuning taught? Masks of the change, and what they carry."""

from workbench.skills.alignment import alignment
from workbench.skills.blocks import blocks
from workbench.skills.calibration import calibration
from workbench.skills.compose import Skill, alike, compose
from workbench.skills.compression import compression
from workbench.skills.graft import Graft
from workbench.skills.localize import localize, reported
from workbench.skills.overlap import overlap
from workbench.skills.restore import restore

# In the order in which a report tells them.
ANALYSES = (localize, alignment, blocks, restore, compression, calibration, compose, overlap)

__all__ = [
    "Graft",
    "Skill",
    "alignment",
    "alike",
    "blocks",
    "calibration",
    "compose",
    "compression",
    "localize",
    "overlap",
    "reported",
    "restore",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
