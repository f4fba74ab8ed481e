"""How is an analysis of the catalogue asked by the scoreboard, and how does its table say where?

An entry is the call, the rows of the table that score places, and, where it has one, the row by
which it claims that anything was found: an interval or a value beyond its null in any row, or a p
below 0.05. Rows are not corrected for their number, so that a method with many rows claims more
often; none of these rules is fitted to the truths. The entries are in `ours` and `several`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.loaders import CheckpointPair, load_pair
from workbench.results.result import Result
from workbench.scoreboard.method import Answer, Method
from workbench.scoreboard.reading import Read, scored
from workbench.tasks.prompts import PromptSet


@dataclass(frozen=True)
class Entry:
    """ask: the call, of a pair, prompts and corrupt prompts; of an entry that `needs` anything also
    of siblings and further prompts. places: kind of place -> the rows that score it, as a condition
    on the table (their values, the largest of a place) or a function of the Result. finds: a
    condition on the rows by which it claims that something was learned. verdict: of the Result, and
    which there can be. states: the rows whose intervals are for a mean over prompts, so that they
    can be held against all prompts. needs: as of a `Method`."""

    ask: Callable[..., Result]
    places: Mapping[str, Read] = field(default_factory=dict)
    finds: str = ""
    verdict: Callable[[Result], str] | None = None
    verdicts: tuple[str, ...] = ()
    states: str = ""
    needs: tuple[str, ...] = ()

    def read(self, found: Result, prompts: PromptSet) -> Answer:
        table = found.table
        places = {
            kind: scored(table, kind, read) if isinstance(read, str) else read(found, prompts)
            for kind, read in self.places.items()
        }
        finds = bool(len(table.query(self.finds, engine="python"))) if self.finds else None
        return Answer(places, finds, self.verdict(found) if self.verdict else "")


def layers_of(pair: CheckpointPair) -> list[int]:
    return sorted({site.layer for site in pair.sites() if site.layer is not None})


@lru_cache(maxsize=1)
def _pair(base: Path, tuned: Path) -> CheckpointPair:
    """One for all methods that are asked about it in turn, so that its files are read once."""
    return load_pair(base, tuned)


def method(key: str, entry: Entry) -> Method:
    """An entry as a method like anyone's."""

    def asked(
        base: Path,
        tuned: Path,
        prompts: PromptSet,
        corrupted: PromptSet | None,
        *more: Mapping[str, Any],
    ) -> Result:
        return entry.ask(_pair(base, tuned), prompts, corrupted, *more)

    def function(
        base: Path,
        tuned: Path,
        prompts: PromptSet,
        *,
        corrupted: PromptSet | None,
        siblings: Mapping[str, Path],
        tasks: Mapping[str, PromptSet],
    ) -> Answer:
        more = (siblings, tasks) if entry.needs else ()
        return entry.read(asked(base, tuned, prompts, corrupted, *more), prompts)

    def states(*given: Any) -> pd.DataFrame:
        return asked(*given).table.query(entry.states, engine="python")

    return Method(
        key, function, tuple(entry.places), bool(entry.finds), entry.verdicts, "", entry.needs,
        states if entry.states else None,
    )  # fmt: skip
