"""Which models are checkpoints of one run, and which is the strongest intruder of each?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.results.intruder_counts import decided_only, settings
from workbench.results.result import Result, matrix_columns

RUN = ("kind", "rank", "alpha", "seed")  # what the checkpoints of one training run share
DRAW = r":\d+$"  # how the metrics of a null's draws end


def has_steps(result: Result) -> bool:
    """Whether some run of `result` has two or more checkpoints with a training step, and their
    cosines."""
    return not decided_only(result) and any(len(run) > 1 for run in runs(result).values())


def runs(result: Result) -> dict[str, list[str]]:
    """Run label -> its models in order of step; models without a step are left out.

    Checkpoints that share kind, rank, alpha and seed are one run.
    """
    grouped: dict[tuple[Any, ...], list[str]] = {}
    members = result.provenance.members
    for name, about in members.items():
        if about.get("step") is not None:
            grouped.setdefault(tuple(about.get(key) for key in RUN), []).append(name)
    labelled = {}
    for (kind, rank, alpha, seed), names in grouped.items():
        label = f"{kind or 'run'} r = {rank}" if rank else str(kind or "run")
        for what, value in (("α", alpha), ("seed", seed)):
            label += f", {what} {value}" if value is not None and len(grouped) > 1 else ""
        labelled[label] = sorted(names, key=lambda n: members[n]["step"])
    return labelled


def strongest(
    result: Result, members: list[str] | None = None, k: int | None = None
) -> pd.DataFrame:
    """The strongest intruder of each of `members` (default all), checkpoints of one run.

    Strength of a vector among the top k: (1 - max_cosine^2) * sigma / sigma_1, the part of it that
    its nearest base vector does not explain, times its singular value over the matrix's largest;
    0 for a vector of the base, near 1 for a new direction as strong as the strongest. The last of
    `members` names the matrix; every member then gives the strongest vector of that matrix, which
    need not be the same vector from step to step.
    Returns, indexed by member: layer (-1 outside the layers), component, rank, sigma, max_cosine,
    strength, and each null's max_cosine of that rank, of several draws their mean.
    """
    _, k = settings(result, None, k)
    matrix = matrix_columns(result.table)
    keys = ["member", *matrix, "rank"]
    names = ["sigma", *(m for m in result.table["metric"].unique() if m.startswith("max_cosine"))]
    rows = result.table[result.table["metric"].isin(names) & (result.table["rank"] < k)]
    drawn = rows["metric"].str.replace(DRAW, "", regex=True)
    rows = rows.assign(layer=rows["layer"].fillna(-1), metric=drawn)  # a matrix outside the layers
    wide = (
        rows.groupby([*keys, "metric"], sort=False, dropna=False)["value"]
        .mean()
        .unstack()
        .reset_index()
    )
    wide = wide.dropna(subset=["sigma", "max_cosine"])
    largest = wide.groupby(keys[:-1], dropna=False)["sigma"].transform("max")
    wide["strength"] = (1 - wide["max_cosine"] ** 2) * wide["sigma"] / largest
    chosen = result.members if members is None else members
    last = wide[wide["member"] == chosen[-1]]
    top = last.loc[last["strength"].idxmax()]
    wide = wide.merge(top[matrix].to_frame().T, on=matrix)
    best = wide.loc[wide.groupby("member")["strength"].idxmax()].set_index("member")
    return best.loc[[name for name in chosen if name in best.index]]
