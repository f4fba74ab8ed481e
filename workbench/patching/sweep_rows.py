"""What a sweep's scores say, as rows of a table: means, shares of the gap between the two plain
runs, and which of these are shares of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.files.large import parts
from workbench.patching.metrics import MEASURES, SCORED
from workbench.patching.patches import COLUMNS, Patch
from workbench.patching.sweep import Sweep, Values
from workbench.stats import Intervals, ratios
from workbench.stats import shares as scored

ROUNDING = 1e-5  # of a float32 logit or log-probability, both of the size of tens
ERROR = 1e-7  # of a squared error over a vocabulary of logits, or of a KL
CANCELS = 0.01
LEAST = 0.1  # logits, nats or a score: a gap of one prompt that something can be a share of


def summary(
    made: Sweep,
    patches: Sequence[Patch],
    *,
    zero: Values,
    one: Values,
    arm: str = "patch",
    seed: int = 0,
    measures: Sequence[str] = MEASURES,
    restored: bool = False,
) -> pd.DataFrame:
    """Rows of every patch: each measure's mean (baseline: the destination's), `recovered:MEASURE`,
    the ratio of sums (patched - zero) / (one - zero), as in `shares`, and where `restored` krs,
    kl_krs and agreement with the source; 95% intervals over prompts, n.

    zero, one: the plain runs that stand for 0 and 1.
    """
    columns = pd.DataFrame([patch.about for patch in patches])
    columns = columns.reindex(columns=pd.Index(COLUMNS))
    tables = []

    def add(metric: str, values: np.ndarray, baseline: float, *share: Any, error: bool = False):
        """values: of the measure; share: the run that they are more than, of an error less, and
        what that is a share of."""
        size = ROUNDING if metric.startswith("recovered:") else ERROR
        alone = LEAST if size == ROUNDING else size  # an error is never negative
        some = []
        for part in parts(values):
            if not share:
                some.append(means(metric, values[part], seed))
                continue
            tops = share[0] - values[part] if error else values[part] - share[0]
            some.append(shares(tops, share[1], seed, rounding=size, alone=alone))
        found = Intervals(*map(np.concatenate, zip(*some, strict=True)))
        about = {"arm": arm, "metric": metric} | found._asdict()
        tables.append(columns.assign(**about, baseline=baseline))

    for measure in measures:
        values = made.patched[measure]
        if np.isnan(made.destination[measure]).all():
            continue
        add(measure, values, float(np.nanmean(made.destination[measure])))
        add(f"recovered:{measure}", values, 0.0, zero[measure], one[measure] - zero[measure])
    if restored:
        for name, measure in (("krs", "squared_error"), ("kl_krs", "kl")):
            before = made.destination[measure]
            add(name, made.patched[measure], 0.0, before, before, error=True)
        agreed = made.destination["agreement"]
        add("agreement", made.patched["agreement"], float(np.nanmean(agreed)))
    table = pd.concat(tables, ignore_index=True)
    return table.astype({name: "Int64" for name in ("layer", "head", "neuron")})


def plain(made: Sweep, *, seed: int = 0, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Rows of the two runs without a patch, arm "destination" and "source"."""
    rows = []
    for arm, values in (("destination", made.destination), ("source", made.source)):
        for measure in measures:
            found = means(measure, values[measure], seed)
            row = found.first._asdict()
            rows.append({"arm": arm, "metric": measure} | row)
    return pd.DataFrame(rows)


def means(measure: str, values: np.ndarray, seed: int) -> Intervals:
    """A measure's means over prompts: a score is a share of them. values: (k, prompts)."""
    return (scored if measure in SCORED else ratios)(values, seed=seed)


def random_site(table: pd.DataFrame, by: Sequence[str] = ("component", "position")) -> pd.DataFrame:
    """Arm "random": what a site picked at random among those swept gives, with the interval of
    middle 95% of them; n counts sites."""
    rows = []
    for key, own in table.groupby([*by, "metric"], dropna=False, sort=False):
        values = own["value"].dropna().to_numpy(float)
        if values.size < 2:
            continue
        low, high = np.quantile(values, [0.025, 0.975])
        rows.append(
            dict(zip([*by, "metric"], key, strict=True))
            | {"arm": "random", "value": values.mean(), "low": low, "high": high, "n": values.size}
        )
    return pd.DataFrame(rows)


def shares(
    tops: np.ndarray,
    gap: np.ndarray,
    seed: int = 0,
    *,
    rounding: float = ROUNDING,
    alone: float = LEAST,
) -> Intervals:
    """Ratios of sums, sum(tops) / sum(gap) over prompts. tops: (k, prompts); gap: (prompts,).

    Each is judged by the gap of its own prompts, those where it is known. Without an interval
    unless that of the gap leaves out 0: the share of a gap that may be none has none worth the
    name. NaN where the gap is nothing: its mean no more than `rounding`, or, over prompts, than
    CANCELS of their own gaps, or, of one prompt, below `alone`.
    """
    found = ratios(tops, gap, seed=seed)
    known = np.isfinite(np.atleast_2d(tops)) & np.isfinite(gap)
    value, low, high = (part.copy() for part in found[:3])
    for which in np.unique(known, axis=0):
        rows, own = (known == which).all(1), gap[which]
        least = max(rounding, CANCELS * np.abs(own).mean()) if len(own) else rounding
        if not len(own) or abs(own.mean()) < (alone if len(own) == 1 else least):
            value[rows] = low[rows] = high[rows] = np.nan
        elif not differs(own, seed):
            low[rows] = high[rows] = np.nan
    return found._replace(value=value, low=low, high=high)


def differs(gap: np.ndarray, seed: int = 0) -> bool:
    """Whether the 95% interval of a mean difference (prompts,) leaves out 0."""
    found = ratios(gap, seed=seed)
    return bool(found.low[0] > 0 or found.high[0] < 0)


def meaningful(
    zero: Values, one: Values, what: str, seed: int = 0, *, measures: Sequence[str] = MEASURES
) -> list[str]:
    """A note for each measure in which the two plain runs do not differ reliably: shares of that
    difference say nothing then."""
    notes = []
    for measure in measures:
        gap = one[measure] - zero[measure]
        if np.isnan(gap).all():
            continue
        found = ratios(gap, seed=seed)
        # Of one prompt no interval is to be had, which every Result says by itself.
        if found.n[0] > 1 and not differs(gap, seed):
            notes.append(
                f"{what} do not differ reliably in {measure} ({found.value[0]:.3g}, 95% "
                f"{found.low[0]:.3g} to {found.high[0]:.3g}, n = {found.n[0]}): "
                f"recovered:{measure} is not meaningful."
            )
    return notes
