"""What will a study run, for how long and in how much memory? Told before it begins."""

from __future__ import annotations

import pandas as pd

from workbench.analysis import cost
from workbench.analysis.record import Analysis
from workbench.lab.phantom import names
from workbench.study.study import Study
from workbench.tasks import PromptSet


def plan(study: Study) -> pd.DataFrame:
    """What will run: per member, its phantoms included, and analysis the matrices, the peak of
    memory in MiB, whether the model is run, and minutes on this machine (`cost.minutes`). Reads
    headers only."""
    tables = [_planned(one, study.phantoms) for one in (study, *study.also.values())]
    return pd.concat(tables, ignore_index=True)


def _planned(study: Study, phantoms: int) -> pd.DataFrame:
    """`plan` of one study; a phantom costs what its member does."""
    rows = []
    for pair in study.family:
        own = cost.size(pair)
        for analysis in study.analyses:
            models = (1 if pair.shared_base else 2) if analysis.runs else 0
            width = 2 if study.dtype == "bfloat16" else 4
            peak = cost.memory(own, models=models, width=width, longest=_longest(study, analysis))
            long = cost.minutes(analysis.passes or 0, own, _tokens(study, analysis))
            rows += [
                (name, analysis.key, own.matrices, round(peak / 2**20), analysis.runs,
                 round(long, 1))
                for name in (pair.name, *names(pair.name, phantoms))
            ]  # fmt: skip
    columns = ["member", "analysis", "matrices", "peak_MiB", "runs_model", "minutes"]
    return pd.DataFrame(rows, columns=columns)


def _read(study: Study, analysis: Analysis) -> tuple[list[PromptSet], bool]:
    """The prompt sets that an analysis reads, and whether it reads texts, too."""
    sources = {*(analysis.takes or {}).values()}
    further = sources & {"others", "sets", "everything"}
    own = [study.task] if study.task is not None else []
    return [*own, *(study.prompts if further else ())], "texts" in sources or not sources


def _tokens(study: Study, analysis: Analysis) -> float:
    """About how many tokens of prompts and texts one pass of an analysis reads."""
    sets, texts = _read(study, analysis)
    return cost.tokens_of(sets, study.texts, texts)


def _longest(study: Study, analysis: Analysis) -> float:
    """About how many tokens the longest of them has."""
    sets, texts = _read(study, analysis)
    longest = max((len(text) for one in sets for text in one.texts), default=0) / cost.CHARACTERS
    if not texts:
        return longest
    given = max(map(len, study.texts), default=0) / cost.CHARACTERS if study.texts else cost.TOKENS
    return max(longest, given)
