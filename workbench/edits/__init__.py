"""From finding to model: which edit repairs what fine-tuning broke, and the better checkpoint."""

from workbench.edits.kinds import KINDS, Settings, edits
from workbench.edits.merging import summed, ties
from workbench.edits.places import within
from workbench.edits.repair import repair
from workbench.edits.save import save
from workbench.edits.siblings import siblings

# In the order in which a report tells them.
ANALYSES = (repair, siblings)

__all__ = ["KINDS", "Settings", "edits", "repair", "save", "siblings", "summed", "ties", "within"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
