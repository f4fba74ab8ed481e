"""The workbench inside other people's training: what fine-tuning does, seen while it does it."""

from workbench.integrations.watch import Watch

__all__ = ["Watch"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
