"""Which patches are the strongest, and what becomes of them on prompts that did not pick them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from workbench import stats
from workbench.files.large import less
from workbench.patching.metrics import Metric
from workbench.patching.patches import Patch
from workbench.patching.sweep import Sweep, Values
from workbench.stats import ratios


def halves(prompts: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the prompts that pick the strongest patches, and of those that report them, as
    `stats.halves` draws them. One prompt does both."""
    pick, report = (sorted(half.tolist()) for half in stats.halves(prompts, seed))
    return pick or report, report


def said_of_halves(pick: Sequence[int], report: Sequence[int], what: str) -> str:
    """The note on them."""
    if list(pick) == list(report):
        return f"{what} were picked on the one prompt that reports them."
    return f"{what} were picked on {len(pick)} prompts; their rows report the other {len(report)}."


def headline_metric(table: pd.DataFrame, metric: Metric | None = None) -> str:
    """The recovered measure to sort by: the metric that was asked for, else the logit difference,
    or without foils the answer's log-probability."""
    known = set(table["metric"])
    asked = [] if metric is None else [metric.name]
    names = [f"recovered:{m}" for m in (*asked, "logit_difference", "log_probability")]
    return next(name for name in names if name in known)


def strongest(
    made: Sweep, patches: Sequence[Patch], measure: str, zero: Values, most: int
) -> list[int]:
    """Numbers of the patches that move a measure furthest from `zero` on the mean, of each
    component, the strongest first."""
    sizes = np.abs(ratios(less(made.patched[measure], zero[measure]), draws=1).value)
    found: dict[str, list[int]] = {}
    for i in np.argsort(-sizes, kind="stable"):
        own = found.setdefault(patches[i].about["component"], [])
        if len(own) < most and np.isfinite(sizes[i]):
            own.append(int(i))
    return [i for own in found.values() for i in own]


def controlled(
    made: Sweep,
    patches: Sequence[Patch],
    table: pd.DataFrame,
    rows_of: Callable[[Sweep, Sequence[Patch], str], pd.DataFrame],
    shuffled: Callable[[Sequence[Patch]], Sweep],
    *,
    zero: Values,
    most: int,
    seed: int,
    metric: Metric | None = None,
) -> tuple[list[pd.DataFrame], list[str]]:
    """The strongest patches of each component, picked on one half of the prompts by the measure of
    the table's headline: their rows on the other half (arm "picked"), the same with another
    prompt's activations ("shuffled"), and a note. Nothing where no share of it is defined.

    rows_of: (sweep, its patches, arm) -> rows; shuffled: the sweep of these patches so taken.
    """
    headline = headline_metric(table, metric)
    if not table.loc[table["metric"] == headline, "value"].notna().any():
        return [], []
    pick, report = halves(made.destination["score"].size, seed)
    measure = headline.removeprefix("recovered:")
    first = {metric: values[pick] for metric, values in zero.items()}
    best = strongest(made.of(pick), patches, measure, first, most)
    if not best:
        return [], []
    own = [patches[i] for i in best]
    arms = {"picked": made.of(report, best), "shuffled": shuffled(own).of(report)}
    note = said_of_halves(pick, report, "The strongest patches")
    return [rows_of(one, own, arm) for arm, one in arms.items()], [note]
