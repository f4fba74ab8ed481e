"""Does a measure tell one group of prompts from another, and still once they are matched?

Two groups that differ in length or perplexity differ in TuCo for that alone. So every AUC stands
beside one over pairs of prompts, one of each group, that agree in both; where no two agree, nothing
can be said of the measure itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.stats import auc, auc_difference, bootstrap, nearest_pairs, share

MATCHED_BY = ("length", "base_loss")


@dataclass(frozen=True)
class Group:
    """One group of prompts, measured. prompts: a row a prompt, a column a measure. layers:
    (prompt, layer, 3). tokens: rows of the prompts whose every token is profiled."""

    name: str
    prompts: pd.DataFrame
    layers: np.ndarray
    tokens: list[dict[str, Any]]


def between(groups: Sequence[Group], measures: Sequence[str], seed: int) -> pd.DataFrame:
    """`auc:MEASURE` and `auc_matched:MEASURE` of every two groups, with 95% intervals and n.

    The AUC is the chance that a prompt of the first group has the larger value. n counts prompts of
    both groups, or matched pairs. `auc_difference:FIRST-OTHER` and `auc_difference_matched:`: the
    first measure's AUC less another's, of the same prompts or pairs.
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
        made += _differences(first, second, (ours, theirs), measures, seed)
    return pd.DataFrame(made)


def _differences(
    first: Group, second: Group, pairs: tuple[Any, Any], measures: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """The rows that hold the first measure beside each other one. pairs: matched prompts."""
    about = {"group": f"{first.name} > {second.name}", "baseline": 0.0}
    known = [m for m in measures if m in first.prompts and m in second.prompts]
    for other in known[1:] if known[:1] == list(measures[:1]) else []:
        a, b = (side.prompts[[measures[0], other]].to_numpy() for side in (first, second))
        name = f"{measures[0]}-{other}"
        a_known, b_known = (part[np.isfinite(part).all(1)].T for part in (a, b))
        whole = auc_difference(a_known[0], b_known[0], a_known[1], b_known[1])
        yield about | {"metric": f"auc_difference:{name}"} | whole._asdict()
        larger = np.sign(a[pairs[0]] - b[pairs[1]]) / 2
        more = larger[:, 0] - larger[:, 1]
        matched = bootstrap(more[np.isfinite(more)], seed=seed)
        yield about | {"metric": f"auc_difference_matched:{name}"} | matched._asdict()
