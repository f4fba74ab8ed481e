"""What an object offers of a floor above its own: `result.plot()`, `pair.models()`, a notebook's
view.

The floor above says what it provides when it is imported, as plotting libraries do for pandas; the
floor below asks for it by name, and imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# Where each is provided: imported when it is first asked for.
HOMES = {
    "Result.plot": "workbench.figures",
    "Result.explore": "workbench.reports.explore",
    "Result.to_csv": "workbench.export.tables",
    "Result.to_latex": "workbench.export.tables",
    "Result.to_xarray": "workbench.export.arrays",
    "Result._repr_html_": "workbench.reports.notebook",
    "PromptSet.load": "workbench.tasks.formats.reading",
    "PromptSet._repr_html_": "workbench.reports.notebook",
    "PairReport._repr_html_": "workbench.reports.notebook",
    "CheckpointPair._repr_html_": "workbench.reports.notebook",
    "Family._repr_html_": "workbench.reports.notebook",
    "CheckpointPair.check": "workbench.loaders.check",
    "CheckpointPair.limits": "workbench.loaders.check",
    "CheckpointPair.models": "workbench.models.sides",
    "CheckpointPair.to_transformer_lens": "workbench.models.transformer_lens",
    "CheckpointPair.to_nnsight": "workbench.models.nnsight",
}
_PROVIDED: dict[str, Callable[..., Any]] = {}


def provides(name: str) -> Callable[[F], F]:
    """The function is what the method `name` of HOMES does; its first argument is the object."""

    def provided(function: F) -> F:
        _PROVIDED[name] = function
        return function

    return provided


def convenience(name: str) -> Callable[..., Any]:
    """What the floor above provides as `name`."""
    if name not in _PROVIDED:
        import_module(HOMES[name])
    return _PROVIDED[name]
