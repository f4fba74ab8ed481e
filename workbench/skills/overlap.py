"""Do two skills, or two ways of training one, live in the same parameters? Overlap of grafts.

overlap(i, j) = |gamma_i and gamma_j| / |gamma_j|, the share of graft j that graft i takes too,
which is |gamma_i| / N for random entries (Panigrahi et al. 2023, arXiv 2302.06600). It exceeds
chance as soon as the same matrices change most in both: hence the number that random places inside
each matrix give, if each matrix keeps its count ("within"), and the rank correlation of the counts
over matrices ("places").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.results.result import Provenance, Result
from workbench.results.validity import finished
from workbench.skills.graft import KEY as LOCALIZED
from workbench.skills.graft import Graft
from workbench.stats import spearman

KEY = "skills.overlap"


@analysis(
    "Do grafts of several models or tasks share more of their parameters than by chance?",
    paper="arXiv 2302.06600",
    example="out/ledger out/boxes",
)
def overlap(
    results: Result | Sequence[Result], *, arm: str = "learned", sparsity: float | None = None
) -> Result:
    """Compare every two grafts that `localize` saved, over models and tasks of one base.

    results: the results of `localize`. arm: which grafts: "learned" or "movement". sparsity: one of
    the sparsities that were run; None takes for each the smallest with 95% of the gain, or the
    largest.

    Returns a Result with columns first, second ("member, task"), x (share of N that `first` takes)
    and metric. "overlap": |first and second| / |second|, NaN where second is empty, baseline the
    chance value, null_low and null_high the 95% range of a random graft of first's size
    (hypergeometric), n the entries of second.
    "within": the chance value for random places inside each matrix. "places": Spearman's rho of the
    share of each matrix taken, 95% bootstrap interval over matrices.
    Raises WorkbenchError for fewer than two grafts or several bases.
    """
    given = [results] if isinstance(results, Result) else list(results)
    wrong = [one.analysis for one in given if one.analysis != LOCALIZED]
    if wrong:
        raise WorkbenchError(f"Expected Results of {LOCALIZED}, found one of {wrong[0]}.")
    bases = {one.provenance.base["fingerprint"]: one.provenance.base for one in given}
    if len(bases) > 1:
        raise WorkbenchError(
            "Grafts can only be compared over one base, but these results have "
            "several; give results of one base."
        )
    grafts: dict[str, Graft] = {}
    for one in given:
        for member in one.members:
            name = f"{member}, {task_of(one)}"
            if name in grafts:
                raise WorkbenchError(
                    f"Two of these results hold a graft of {name}; give only one of them."
                )
            grafts[name] = Graft.of(one, member, arm=arm, sparsity=sparsity)
    if len(grafts) < 2:
        raise WorkbenchError(f"Expected at least two grafts to compare, found {len(grafts)}.")
    seed = given[0].provenance.seed or 0
    rows = [
        {"first": a, "second": b} | row
        for a, b in permutations(grafts, 2)
        for row in compared(grafts[a], grafts[b], seed)
    ]
    members = {name: about for one in given for name, about in one.provenance.members.items()}
    shares = {name: graft.share for name, graft in grafts.items()}
    parameters = {"arm": arm, "sparsity": sparsity, "shares": shares}
    notes = tuple(dict.fromkeys(note for one in given for note in one.provenance.notes))
    known: dict[str, Any] = {"seed": seed, "notes": notes}
    base = next(iter(bases.values()))
    return finished(KEY, pd.DataFrame(rows), Provenance(base, members, parameters, **known))


def task_of(result: Result) -> str:
    """The task that a Result of `localize` is about."""
    return str(result.table.loc[result.table["own"].eq(True), "task"].dropna().iloc[0])


def compared(first: Graft, second: Graft, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of one ordered pair of grafts."""
    from scipy.stats import hypergeom

    both, size = len(first & second), len(second) or np.nan
    low, high = hypergeom(first.total, len(first), len(second)).ppf([0.025, 0.975])
    sizes = np.array(list(first.sizes.values()))
    ours, theirs = (
        np.array([len(graft.places.get(name, ())) for name in first.sizes])
        for graft in (first, second)
    )
    rho = spearman(ours / sizes, theirs / sizes, seed=seed)
    expected = float((ours * theirs / sizes).sum()) / size
    interval = {
        "x": first.share,
        "null_low": low / size,
        "null_high": high / size,
        "n": len(second),
    }
    return [
        {"metric": "overlap", "value": both / size, "baseline": first.share} | interval,
        {"metric": "within", "value": expected, "n": len(second), "baseline": first.share},
        {"metric": "places", "baseline": 0.0} | rho._asdict(),
    ]
