"""What did fine-tuning do to this model? A base and its fine-tuned checkpoints, side by side.

    import workbench as wb
    family = wb.load_family("BASE", {"full": "FULL_FOLDER", "lora-r8": "ADAPTER_FOLDER"})
    wb.over(family, wb.spectral.intruders, k=10).plot()

Names are imported when they are first used, so that `import workbench` costs nothing.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.version import __version__

if TYPE_CHECKING:
    from workbench import (
        behaviour,
        edits,
        export,
        figures,
        forgetting,
        integrations,
        lab,
        models,
        patching,
        scoreboard,
        skills,
        spectral,
        tasks,
        tuco,
    )
    from workbench.analysis.running import running
    from workbench.errors import WorkbenchError
    from workbench.loaders import (
        Checkpoint,
        CheckpointPair,
        Family,
        load_family,
        load_pair,
        load_steps,
    )
    from workbench.reports.page import report
    from workbench.results.result import Provenance, Result
    from workbench.scoreboard.board import truth
    from workbench.study.units import over

# tqdm would ask in every notebook for a widget that nothing here uses.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "Checkpoint": "workbench.loaders",
    "CheckpointPair": "workbench.loaders",
    "Family": "workbench.loaders",
    "Provenance": "workbench.results.result",
    "Result": "workbench.results.result",
    "WorkbenchError": "workbench.errors",
    "load_family": "workbench.loaders",
    "load_pair": "workbench.loaders",
    "load_steps": "workbench.loaders",
    "over": "workbench.study.units",
    "report": "workbench.reports.page",
    "running": "workbench.analysis.running",
    "truth": "workbench.scoreboard.board",
}
_PARTS = (
    "behaviour", "edits", "export", "figures", "forgetting", "integrations", "lab", "models",
    "patching", "scoreboard", "skills", "spectral", "tasks", "tuco",
)  # fmt: skip

__all__ = [
    "Checkpoint",
    "CheckpointPair",
    "Family",
    "Provenance",
    "Result",
    "WorkbenchError",
    "__version__",
    "behaviour",
    "edits",
    "export",
    "figures",
    "forgetting",
    "integrations",
    "lab",
    "load_family",
    "load_pair",
    "load_steps",
    "models",
    "over",
    "patching",
    "report",
    "running",
    "scoreboard",
    "skills",
    "spectral",
    "tasks",
    "truth",
    "tuco",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        # The function, not the module of the same name that the import binds here.
        found = getattr(import_module(_HOME[name]), name)
    elif name in _PARTS:
        found = import_module(f"workbench.{name}")
    else:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
