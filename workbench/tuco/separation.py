"""Does a measure tell one group of prompts from another, and still once they are matched?

Two groups that differ in length or perplexity differ in TuCo for that alone. So every AUC stands
beside one over pairs of prompts, one of each group, that agree in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.stats import auc, auc_difference, nearest_pairs, share

MATCHED_BY = ("length", "base_loss")
TUCO, OUTPUTS = "tuco", "output_co"  # is the first the better measure?


@dataclass(frozen=True)
class Group:
    """One group of prompts, measured. prompts: a row a prompt, a column a measure. layers:
    (prompt, layer, 3). tokens: rows of the prompts whose every token is profiled."""

    name: str
    prompts: pd.DataFrame
    layers: np.ndarray
    tokens: list[dict[str, Any]]


def between(groups: Sequence[Group], measures: Sequence[str], seed: int) -> pd.DataFrame:
    """`auc:MEASURE` and `auc_matched:MEASURE` of every two groups, and `auc_difference`, that of
    tuco less that of output_co over the prompts that have both, with 95% intervals and n.

    The AUC is the chance that a prompt of the first group has the larger value. n counts prompts of
    both groups, or matched pairs.
    """
    made = []
    for first, second in combinations(groups, 2):
        by = [m for m in MATCHED_BY if m in first.prompts and m in second.prompts]
        ours, theirs = nearest_pairs(first.prompts[by], second.prompts[by], seed=seed)
        for measure in measures:
            if measure not in first.prompts or measure not in second.prompts:
                continue
            a, b = first.prompts[measure].to_numpy(), second.prompts[measure].to_numpy()
            name = {"group": f"{first.name} > {second.name}", "baseline": 0.5}
            whole = auc(a[np.isfinite(a)], b[np.isfinite(b)])
            made.append(name | {"metric": f"auc:{measure}"} | whole._asdict())
            larger = np.sign(a[ours] - b[theirs]) / 2 + 0.5
            pairs = share(larger[np.isfinite(larger)], seed=seed)
            made.append(name | {"metric": f"auc_matched:{measure}"} | pairs._asdict())
        made += _better(first, second, measures)
    return pd.DataFrame(made)


def _better(first: Group, second: Group, measures: Sequence[str]) -> list[dict[str, Any]]:
    """Whether TuCo tells the two groups apart better than the outputs do: one row, or none."""
    both = [TUCO, OUTPUTS]
    if not set(both) <= {*measures} & {*first.prompts} & {*second.prompts}:
        return []
    ours, theirs = (
        values[np.isfinite(values).all(1)].T
        for values in (one.prompts[both].to_numpy(float) for one in (first, second))
    )
    found = auc_difference(ours[0], theirs[0], ours[1], theirs[1])
    told = {"group": f"{first.name} > {second.name}", "metric": "auc_difference", "baseline": 0.0}
    return [told | found._asdict()]
