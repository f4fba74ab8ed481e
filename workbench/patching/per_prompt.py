"""What did each single prompt score? The values that a patching table is the means of.

Every patching Result keeps them among its tensors, one array (rows, prompts) for a side, an arm and
a metric, named "per_prompt/SIDE/ARM/METRIC". Its rows are in the order of the table's rows of that
side, arm and metric, its columns in the order of the prompts; NaN where a prompt has no value. So
other statistics, subsets of prompts and paired comparisons need no second run:

    tuned = per_prompt(result, "logit_difference", side="tuned")
    base = per_prompt(result, "logit_difference", side="base")
    tuned.less(base).table()                    the paired difference, place by place
    tuned.of([0, 3, 5]).table(np.median)        the median over three of the prompts

An array beyond 256 MiB (every neuron, every edge) is written as it is made to a temporary file
without a name, in the folder that TMPDIR names, and from there to the Result's folder when that is
saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.files.large import converted
from workbench.patching.sweep import Sweep
from workbench.results.result import Result
from workbench.stats import ratios

Floats = NDArray[np.floating]
ROOT = "per_prompt"
SIDES = ("side", "direction")  # the column that names a side
ABOUT = ("component", "layer", "head", "neuron", "position", "group", "sender", "receiver")


def stored(side: str, arm: str, values: Mapping[str, Floats]) -> dict[str, Floats]:
    """Tensors of a Result from metric -> (rows, prompts), or (prompts,) of a run without patch;
    what is large lies in a file that goes away with the Result (`files.large`)."""
    return {
        f"{ROOT}/{side}/{arm}/{metric}": converted(np.atleast_2d(own), np.float32)
        for metric, own in values.items()
    }


def stored_sweep(side: str, made: Sweep) -> dict[str, Floats]:
    """The tensors of every patch and of the two runs without any."""
    arms = {"patch": made.patched, "destination": made.destination, "source": made.source}
    found: dict[str, Floats] = {}
    for arm, values in arms.items():
        # A measure that no prompt has (a logit difference without foils) has no rows either.
        known = {metric: own for metric, own in values.items() if not np.isnan(own).all()}
        found |= stored(side, arm, known)
    return found


@dataclass(frozen=True)
class PerPrompt:
    """places: what names each row, in the columns of the Result's table. values: (rows, prompts),
    float64."""

    metric: str
    places: pd.DataFrame
    values: NDArray[np.float64]

    def of(self, prompts: Sequence[int]) -> PerPrompt:
        """These prompts alone."""
        return replace(self, values=self.values[:, list(prompts)])

    def less(self, other: PerPrompt) -> PerPrompt:
        """This less the other, prompt by prompt, at the places that both have; one row without a
        place, such as an unpatched run, is taken from all. Raises WorkbenchError where they have
        other numbers of prompts or no place in common."""
        ours, theirs = self.values.shape[1], other.values.shape[1]
        if ours != theirs:
            raise WorkbenchError(
                f"Expected values of the same prompts, found {ours} and {theirs}; compare runs of "
                "one set of prompts."
            )
        if len(other.values) == 1 and other.places.isna().all(axis=None):
            return replace(self, values=self.values - other.values)
        if self.places.isna().all(axis=None) and other.places.isna().all(axis=None):
            if len(self.values) != len(other.values):
                raise WorkbenchError(
                    f"Expected as many rows without places, found {len(self.values)} and "
                    f"{len(other.values)}; compare runs of the same sizes."
                )
            return replace(self, values=self.values - other.values)
        here, there = (
            {tuple(row): i for i, row in enumerate(one.places.astype(str).to_numpy())}
            for one in (self, other)
        )
        both = [place for place in here if place in there]
        if not both:
            raise WorkbenchError(
                "Expected places that both have, found none in common; compare runs of the same "
                "sites and positions."
            )
        own, less = [here[place] for place in both], [there[place] for place in both]
        places = self.places.iloc[own].reset_index(drop=True)
        return replace(self, places=places, values=self.values[own] - other.values[less])

    def table(
        self, statistic: Callable[[Floats], float] | None = None, *, seed: int = 0
    ) -> pd.DataFrame:
        """A row a place: the mean over prompts with its 95% bootstrap interval and n; or another
        statistic of the prompts' known values, then without an interval."""
        if statistic is None:
            told = ratios(self.values, seed=seed)._asdict()
        else:
            known = [row[np.isfinite(row)] for row in self.values]
            told = {
                "value": [float(statistic(row)) if row.size else np.nan for row in known],
                "n": [row.size for row in known],
            }
        return self.places.assign(metric=self.metric, **told)


def per_prompt(
    result: Result,
    metric: str,
    *,
    side: str | None = None,
    arm: str = "patch",
    member: str | None = None,
) -> PerPrompt:
    """The values behind a metric's rows of a patching Result.

    metric: a measure ("logit_difference"), not a share of it: of shares the parts are kept, those
    of `recovered:` under the arms "patch", "destination" and "source". side: base, tuned, or a
    direction ("tuned->base"); None where there is one. arm: as in the table. member: of several
    models in one Result, None where it has one. Edges have no places: they are in the order of
    `patching.edges.links`. Raises WorkbenchError for what was not kept.
    """
    members = result.members
    if member is None and len(members) > 1:
        raise WorkbenchError(f"Expected a member of {', '.join(members)}; give member=.")
    begins = [f"{member or members[0]}/{ROOT}/", f"{ROOT}/"]
    kept = {
        tuple(name.removeprefix(begin).split("/", 2)): array
        for begin in begins
        for name, array in result.tensors.items()
        if name.startswith(begin)
    }
    sides = list(dict.fromkeys(own for own, _, _ in kept))
    if side is None and len(sides) == 1:
        side = sides[0]
    if side is None or (side, arm, metric) not in kept:
        known = sorted(f"{own}, {which}, {name}" for own, which, name in kept)
        raise WorkbenchError(
            f"{result.analysis} keeps no values of single prompts of side {side}, arm {arm}, "
            f"metric {metric}; it has {'; '.join(known) or 'none'}."
        )
    table = result.table
    rows = table[(table["metric"] == metric) & (table["arm"] == arm)]
    rows = rows[rows["member"] == (member or members[0])]
    for column in SIDES:
        if column in rows:
            rows = rows[rows[column] == side]
    array = np.asarray(kept[side, arm, metric], dtype=np.float64)
    columns = [column for column in ABOUT if column in rows]
    places = rows[columns].reset_index(drop=True)
    # Edges are kept in the order of `edges.links` and stand in the table by their strength.
    if metric == "edge_attribution" or len(places) != len(array):
        places = pd.DataFrame(index=range(len(array)), columns=pd.Index(columns))
    return PerPrompt(metric, places, array)
