"""What was lost and gained, by the logs of an evaluation?"""

from __future__ import annotations

import pandas as pd

from workbench.figures.drawing import Drawing, has
from workbench.figures.forgetting.transitions import item_transitions
from workbench.figures.wording import Findings, change
from workbench.results.changed_items import LOST, WON, changed_items
from workbench.results.result import Result

KEY = "forgetting.samples"
HEADING = "What was lost and gained, by logs"
SAID = 3  # tasks of a sentence

DRAWINGS = (
    Drawing(
        KEY,
        "transitions",
        "Lost and gained, item by item",
        item_transitions,
        "For every task the figure shows the share of items that the base answered and the tuned "
        "model did not (left), and the opposite (right), with 95% intervals over items or over "
        "clusters of them. The hollow marks subtract what guessing among the choices again on each "
        "side would give, and are at least 0.",
        "The logs come from one run of each model: if answers were sampled, two runs of the same "
        "model swap items too. Both logs must have been measured in the same way; what they report "
        "about it is in the notes.",
        applies=has("lost"),
    ),
)


def sentence(result: Result) -> Findings:
    """The score, its change, and how many items went either way; of many tasks the three whose
    score changed most."""
    moved = {(one.member, one.task, one.way): (len(one.table), one.every)
             for one in changed_items(result)}  # fmt: skip
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        changes = own[own["metric"] == "score_change"].set_index("task")["value"].abs()
        said = set(changes.sort_values(ascending=False, kind="stable").index[:SAID])
        told = []
        for task in changes.index[[task in said for task in changes.index]]:
            (lost, n), (won, _) = (moved[member, task, way] for way in (LOST, WON))
            told.append(
                f"{_scores(own[own['task'] == task], task)}, lost {lost}, gained {won} of {n}"
            )
            told[-1] += _p(own[own["task"] == task])
        more = len(changes) - len(told)
        rest = f" | and {more} more task{'s' if more > 1 else ''}" if more else ""
        parts.append(f"{member}: {' | '.join(told)}{rest}")
    return "The scores are compared item by item with the base (95% intervals over items)", parts


def _scores(rows: pd.DataFrame, task: str) -> str:
    """ "gsm8k 0.41 to 0.38 (-0.03 [-0.08, +0.02])" """
    by = rows.drop_duplicates("metric").set_index("metric")
    score = by.loc["score"]
    moved = change(by.loc["score_change"], "+.2f")
    return f"{task} {score['baseline']:.2f} to {score['value']:.2f} ({moved})"


def _p(rows: pd.DataFrame) -> str:
    found = rows.loc[rows["metric"] == "mcnemar", "value"]
    return f", McNemar p = {found.iloc[0]:.2g}" if len(found) else ""
