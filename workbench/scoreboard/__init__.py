"""How often is a method right? Methods of the workbench and of others, held against pairs whose
answer is known."""

from workbench.scoreboard.method import Answer, Method

__all__ = ["Answer", "Method"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
