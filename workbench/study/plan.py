"""What will a study run, for how long and in how much memory? Told before it begins."""

from __future__ import annotations

import pandas as pd

from workbench.analysis import cost
from workbench.analysis.record import Analysis
from workbench.study.study import Study


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member and analysis the matrices, the peak of memory in MiB, whether the
    model is run, and minutes on this machine (`cost.minutes`). Reads headers only."""
    tables = [_planned(one) for one in (study, *study.also.values())]
    return pd.concat(tables, ignore_index=True)


def _planned(study: Study) -> pd.DataFrame:
    """`plan` of one study."""
    rows = []
    for pair in study.family:
        own = cost.size(pair)
        for analysis in study.analyses:
            # A decomposition holds W, U, V and the tuned matrix; a run one model in float32 and
            # about as much again for activations and the edited copies.
            peak = 2 * 4 * own.weights if analysis.runs else 6 * 4 * own.largest
            long = cost.minutes(analysis.passes or 0, own, _tokens(study, analysis))
            rows.append((
                pair.name, analysis.key, own.matrices, round(peak / 2**20), analysis.runs,
                round(long, 1),
            ))  # fmt: skip
    columns = ["member", "analysis", "matrices", "peak_MiB", "runs_model", "minutes"]
    return pd.DataFrame(rows, columns=columns)


def _tokens(study: Study, analysis: Analysis) -> float:
    """About how many tokens of prompts and texts one pass of an analysis reads."""
    sources = {*(analysis.takes or {}).values()}
    further = sources & {"others", "sets", "everything"}
    sets = [study.task] if study.task is not None else []
    sampled = "texts" in sources or not sources
    return cost.tokens_of([*sets, *(study.prompts if further else ())], study.texts, sampled)
