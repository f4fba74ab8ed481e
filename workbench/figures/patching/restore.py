"""What do the other model's parameters restore? Drawn beside its activations, by `cross_model`."""

from __future__ import annotations

from workbench.figures.patching.recovered import strongest_patch
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "patching.restore"
HEADING = "One model with the other's parameters"


def sentence(result: Result) -> Findings:
    """The strongest patch of each component, beside a random one."""
    return strongest_patch(result)
