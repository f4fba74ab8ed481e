"""One figure as data: what draws it, how it is read, and when it misleads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """One figure of one analysis.

    draw(result, [companion,] ax=None, **options) -> Figure. caption: how to read it. misleads: when
    not to. companion: the key of the second Result that `draw` takes; alone: it does without, too.
    applies: whether these Results can be drawn so.
    """

    analysis: str
    name: str
    title: str
    draw: Callable[..., Figure]
    caption: str
    misleads: str
    companion: str | None = None
    alone: bool = False
    applies: Callable[..., bool] = lambda *results: True


def has(name: str) -> Callable[..., bool]:
    """Whether a Result has this metric."""
    return lambda result, *others: result.has(name)
