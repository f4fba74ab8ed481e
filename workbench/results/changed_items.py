"""Which items went from right to wrong, and from wrong to right, as text to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from workbench.results.result import Result

LOST, WON = "lost", "gained"


class Changed(NamedTuple):
    """The items of one member and task that went one way, the largest changes first. every: how
    many items there are. table: prompt, asked, expected, base_said, said."""

    member: str
    task: str
    way: str
    every: int
    table: pd.DataFrame


def changed_items(result: Result) -> Iterator[Changed]:
    """Lost, then gained items of every member and task; nothing of a Result that keeps none."""
    if not result.has("item"):
        return
    shown = ["prompt", "asked", "expected", "base_said", "said"]
    for (member, task), own in result.metric("item").groupby(["member", "task"], sort=False):
        change = own["value"] - own["baseline"]
        for way, sign in ((LOST, -1), (WON, 1)):
            order = (sign * change)[sign * change > 0].sort_values(ascending=False, kind="stable")
            table = own.loc[order.index, shown].fillna("")
            yield Changed(str(member), str(task), way, len(own), table)
