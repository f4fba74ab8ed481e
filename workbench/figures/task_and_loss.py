"""What was learned and what was forgotten: the fine-tuned task's score, and the loss on text like
the pre-training corpus, by fine-tuned model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workbench.figures import style
from workbench.results.result import Result

PRETRAINING = "pretraining"
LOSS = "change of pre-training loss\n(nats/token)"


def task_of(result: Result) -> str:
    """The fine-tuned task: the provenance's, else the first that is not pre-training text; "" where
    only texts were read."""
    named = result.provenance.parameters.get("task")
    named = named.get("name") if isinstance(named, Mapping) else named
    tasks = [task for task in result.table["task"].dropna().unique() if task != PRETRAINING]
    if named in tasks:
        return str(named)
    return tasks[0] if tasks else ""


def measured(result: Result, task: str, metric: str) -> pd.DataFrame:
    """value, low, high, n, baseline of one task and metric, indexed by member in its order."""
    rows = result.table[(result.table["task"] == task) & (result.table["metric"] == metric)]
    rows = rows.drop_duplicates("member").set_index("member")
    return rows.reindex([name for name in result.members if name in rows.index])


def point(here: Axes, x: float, row: pd.Series, look: style.Look) -> None:
    """One model's value, labelled, with its 95% interval."""
    below, above = row["value"] - row["low"], row["high"] - row["value"]
    error = None if np.isnan([below, above]).any() else [[max(below, 0)], [max(above, 0)]]
    here.errorbar(
        *(x, row["value"]),
        yerr=error,
        fmt="none",
        ecolor=look.colour,
        capsize=2,
        elinewidth=1,
    )
    here.plot(x, row["value"], look.marker, color=look.colour, label=look.label)


def task_and_loss(rows: Result, whole: Result, metric: str) -> list[tuple[str, pd.DataFrame]]:
    """(name, measured) of `metric` on the fine-tuned task and of the pre-training loss change."""
    task = task_of(whole)
    return [
        (f"score on {task}", measured(rows, task, metric)),
        ("pre-training loss", measured(rows, PRETRAINING, "loss_change")),
    ]


def items(result: Result) -> str:
    """How many items the intervals are over, e.g. "95% intervals over 200 prompts, 64 texts"."""
    task = task_of(result)
    said = []
    table = result.table[~result.table["metric"].str.startswith("group_")]
    for of, what in ((task, "prompts"), (PRETRAINING, "texts")):
        counts = table.loc[table["task"] == of, "n"].dropna()
        if len(counts):
            few, many = int(counts.min()), int(counts.max())
            said.append(f"{few} {what}" if few == many else f"{few} to {many} {what}")
    return f"95% intervals over {', '.join(said)}"
