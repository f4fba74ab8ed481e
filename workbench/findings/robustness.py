"""Effective robustness: is a model better elsewhere than its score on the task would let expect?

Over a family the score y on prompts outside of the task often lies on a line over the score x on
the task's own, after both are put on logit axes:

    logit y = a + b logit x.

What a model has above that line is its effective robustness (Taori et al. 2020, arXiv 2007.00644v2;
for models tuned on few examples Singh et al. 2023, arXiv 2304.11263):

    y - expit(a + b logit x).

The line goes through the base and all other members, never through the model itself, which would
pull it towards itself. A score of k of n items is (k + 1/2) / (n + 1) before its logit is taken, so
that 0 and 1 have one. Members on the line have 0, which is the null.

It misleads if the family has no line: with few members, or members that differ in more than how
long they were trained, `correlation` is low and the distance from the line says little. Where all
members score alike on the task, the slope is not determined, and nothing is told. Where all items
are right, resampling them changes nothing, so that intervals near 0 and 1 are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.results.result import Result
from workbench.stats import edges, share

KEY = "compare.robustness"
RETENTION = "forgetting.retention"
LEAST = 4  # members: the line then goes through four points or more beside the model's own
DRAWS = 1000
Floats = NDArray[np.float64]


def logits(right: Floats, n: int) -> Floats:
    """logit of (k + 1/2) / (n + 1). right: (...), the share of n items that are right."""
    share = (right * n + 0.5) / (n + 1)
    return np.log(share / (1 - share))


def effective(x: Floats, y: Floats, n: tuple[int, int]) -> Floats:
    """(models, ...) y less the line through all other models; NaN where those have one x.

    x, y: (models, ...), shares of right answers on the task and elsewhere. n: items of either.
    """
    across, up = logits(x, n[0]), logits(y, n[1])
    found = np.full(y.shape, np.nan)
    for place in range(len(x)):
        others = np.delete(across, place, axis=0), np.delete(up, place, axis=0)
        slope, start = line(*others)
        expected = 1 / (1 + np.exp(-(start + slope * across[place])))
        found[place] = y[place] - (expected * (n[1] + 1) - 0.5) / n[1]  # as `logits` takes it
    return found


def line(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept of least squares over the first axis; NaN where x does not vary."""
    apart = x - x.mean(0)
    spread = (apart**2).sum(0)
    varies = spread > 1e-12
    slope = np.where(varies, (apart * y).sum(0) / np.where(varies, spread, 1.0), np.nan)
    return slope, y.mean(0) - slope * x.mean(0)


def robustness(results: Sequence[Result], *, seed: int = 0) -> Result | None:
    """How far each model lies above the line through the rest of its family.

    results: of them the first of `forgetting.retention` that holds the items of the fine-tuned task
    and of others, of four members or more.

    Returns a Result with rows point (member, task; x: the score on the fine-tuned task; value: that
    on `task`; baseline: the base's; base_x: the base's on the fine-tuned task), effective (value:
    the share of right answers above the line through base and other members; baseline 0), with 95%
    intervals over items, those of either task resampled together for all models, and of each task
    slope, intercept and correlation of the points on logit axes (column member is empty). None
    where no result has such members.
    """
    for result in (one for one in results if one.analysis == RETENTION):
        scores = _scores(result)
        own = result.provenance.parameters.get("task")
        if own not in scores or len(scores) < 2 or len(result.members) < LEAST:
            continue
        rows = [
            row
            for task, values in scores.items()
            if task != own
            for row in _rows(result.members, task, scores[own], values, seed)
        ]
        parameters = {"results": result.fingerprint, "task": own}
        provenance = replace(result.provenance, parameters=parameters, seed=seed, notes=())
        return Result(KEY, pd.DataFrame(rows), provenance)
    return None


def _scores(result: Result) -> dict[str, Floats]:
    """task -> (1 + members, items), the base first; tasks of which every member has all items."""
    if not result.has("item"):
        return {}
    table = result.metric("item")
    found = {}
    for task, rows in table.groupby("task", sort=False):
        wide = rows.pivot_table(index="prompt", columns="member", values="value", sort=False)
        base = rows.drop_duplicates("prompt").set_index("prompt")["baseline"]
        if not set(result.members) <= set(wide) or wide.isna().any(axis=None):
            continue
        values = wide[result.members].T.to_numpy(float)
        found[str(task)] = np.vstack([base.reindex(wide.index).to_numpy(float), values])
    return found


def _rows(
    members: Sequence[str], task: str, own: Floats, other: Floats, seed: int
) -> Iterator[dict[str, Any]]:
    n = own.shape[1], other.shape[1]
    draw = np.random.default_rng(seed)
    x, y = own.mean(1), other.mean(1)
    above = effective(x, y, n)
    times = [draw.multinomial(size, np.full(size, 1 / size), size=DRAWS).T / size for size in n]
    drawn = effective(own @ times[0], other @ times[1], n)
    for place, member in enumerate(members, start=1):
        about = {"member": member, "task": task}
        yield about | {
            "metric": "point", "x": x[place], "base_x": x[0], **share(other[place])._asdict(),
            "baseline": y[0],
        }  # fmt: skip
        known = drawn[place][np.isfinite(drawn[place])]
        low, high = edges(known, min(n)) if known.size else (np.nan, np.nan)
        yield about | {
            "metric": "effective", "value": above[place], "low": low, "high": high, "n": n[1],
            "baseline": 0.0,
        }  # fmt: skip
    across, up = logits(x, n[0]), logits(y, n[1])
    slope, start = line(across, up)
    varies = across.std() > 0 and up.std() > 0
    fit = float(np.corrcoef(across, up)[0, 1]) if varies else np.nan
    for metric, value in (("slope", slope), ("intercept", start), ("correlation", fit)):
        yield {"task": task, "metric": metric, "value": float(value), "n": len(x), "baseline": 0.0}
