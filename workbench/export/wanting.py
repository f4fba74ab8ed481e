"""A package that only some exports need, or one sentence that says how to have it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from workbench.errors import WorkbenchError


def wanted(package: str) -> Any:
    """The module of this name, imported now; raises WorkbenchError where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise WorkbenchError(
            f"Expected the package {package.partition('.')[0]}, found none that can be imported "
            f"({error}); run: pip install 'finetune-workbench[export]'."
        ) from error
