"""Forgetting: what was lost of what the base could do, what is only hidden, what can come back."""

from workbench.forgetting.association import association
from workbench.forgetting.conjugate import conjugate
from workbench.forgetting.gains import gains
from workbench.forgetting.interpolate import interpolate
from workbench.forgetting.kinds import kinds
from workbench.forgetting.knowledge import knowledge
from workbench.forgetting.probe import probe
from workbench.forgetting.prune import prune
from workbench.forgetting.retention import retention
from workbench.forgetting.revive import revive
from workbench.forgetting.samples import samples
from workbench.forgetting.sequential import sequential
from workbench.forgetting.sharpness import sharpness
from workbench.forgetting.verdict import verdict

# In the order in which a report tells them.
ANALYSES = (
    retention,
    samples,
    kinds,
    interpolate,
    knowledge,
    conjugate,
    probe,
    prune,
    revive,
    sharpness,
    verdict,
    sequential,
    association,
    gains,
)

__all__ = [
    "association", "conjugate", "gains", "interpolate", "kinds", "knowledge", "probe", "prune",
    "retention",
    "revive", "samples", "sequential", "sharpness", "verdict",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
