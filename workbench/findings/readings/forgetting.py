"""Lost, or only hidden: what is read of the claims on wrappers, conjugates and paths of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workbench.findings.readings.reading import (
    MARGIN,
    MISSING,
    Reading,
    above,
    of,
    reading,
)
from workbench.results.result import Result
from workbench.stats import LEAST, Interval, difference, proportion


def hidden(results: Sequence[Result]) -> Iterator[Reading]:
    for result in of(results, "forgetting.verdict"):
        table = result.table
        output = table[table["arm"] == "output"].set_index(["member", "task"])
        says = {"SUPPRESSED": True, "ERASED": False}
        for row in table[table["metric"] == "verdict"].to_dict("records"):
            if row["reading"] != "KEPT":
                key = row["member"], row["task"]
                shown = output.loc[key] if key in output.index else MISSING
                yield reading(", ".join(key), shown, 1.0, says.get(row["reading"]))


def _back(
    results: Sequence[Result], analysis: str, lost: str, net: str, **about: str
) -> Iterator[tuple[str, dict[str, Any], bool | None, pd.DataFrame]]:
    """(member and task, row of a net share, whether it is above a half, the other rows beside it).

    That share counts answers that go wrong, too: of the lost ones alone many come back wherever
    they are asked again. So the share of the lost ones decides only that fewer than half came back.
    Results without a net share say nothing. about: columns of both rows."""
    for result in of(results, analysis):
        beside = result.table
        for column, value in about.items():
            beside = beside[beside[column] == value]
        for (member, task), own in beside.groupby(["member", "task"], sort=False):
            of_lost = own[(own["metric"] == lost) & (own["n"] >= LEAST)].to_dict("records")
            whole = own[own["metric"] == net].dropna(subset="value").to_dict("records")
            if of_lost and whole:
                holds = True if whole[0]["low"] > 0.5 else None
                few = of_lost[0]["high"] < 0.5
                yield f"{member}, {task}", whole[0], False if few else holds, own


def conjugate(results: Sequence[Result]) -> Iterator[Reading]:
    """Of all prompts together, known or not, more must be right there, too."""
    names = "forgetting.conjugate", "recovery_lost", "recovery_net"
    for what, row, holds, beside in _back(results, *names, arm="best"):
        more = (beside.loc[beside["metric"] == "regained", "low"] > 0).any()
        yield reading(what, row, row["baseline"], None if holds and not more else holds)


def pruned(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members and tasks that lost what can be told from nothing."""
    for result in of(results, "forgetting.prune"):
        for (member, task), own in result.table.groupby(["member", "task"], sort=False):
            share = own[(own["metric"] == "recovered") & (own["arm"] == "best ranked")]
            arms = own[own["metric"] == "regained"].set_index("arm")
            if share["value"].notna().any() and {"best ranked", "best random"} <= set(arms.index):
                ours, null = arms.loc["best ranked"], arms.loc["best random"]
                more = difference(Interval.of(ours), Interval.of(null))
                holds = True if ours["low"] > 0 and more.low > 0 else None
                none = ours["high"] < 0 or more.high < 0
                yield reading(f"{member}, {task}", ours, null["value"], False if none else holds)


def revived(results: Sequence[Result]) -> Iterator[Reading]:
    names = "forgetting.revive", "savings_share_lost", "regained_share"
    for what, row, holds, _ in _back(results, *names, control="relabelled"):
        yield reading(what, row, row["baseline"], holds)


def path(results: Sequence[Result]) -> Iterator[Reading]:
    """The rise of the other task that rises most, at the point; both chosen on other prompts. A
    largest rise of several tasks, picked where it is reported, lies above 0 by luck, and the mean
    over them would ask for a rise of what was never lost."""
    for result in of(results, "forgetting.interpolate"):
        table = result.table
        rows = table[table["metric"] == "score_change"]
        for member, own in rows.groupby("member", sort=False):
            task = own[(own["arm"] == "best") & own["own"].eq(True)].dropna(subset="value")
            best = own[own["arm"] == "best other"].dropna(subset="value")
            if task.empty or best.empty:
                continue
            cost, rise = task.iloc[0], best.iloc[0]
            kept = _kept(cost)
            holds = True if kept and rise["low"] > 0 else None
            lost = kept is False or rise["high"] < 0
            others = own.loc[(own["arm"] == "best") & own["own"].eq(False), "task"].nunique()
            at = f"{rise['task']}, best of {others}, at {rise['x']:g}"
            yield reading(str(member), rise, cost["value"], False if lost else holds, at)


def _kept(cost: Any) -> bool | None:
    """Whether a task's score fell by less than MARGIN, by the whole interval, or by more. Where no
    answer changed the share lost has Wilson's interval: none of few is no certain nought."""
    lost = proportion(Interval(-cost["value"], -cost["high"], -cost["low"], int(cost["n"])))
    return above(-lost.high, -lost.low, -MARGIN)
