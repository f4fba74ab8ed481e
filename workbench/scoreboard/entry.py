"""How is an analysis of the catalogue asked by the scoreboard, and how does its table say where?

An entry is the call, the rows of the table that score places, and, where it has one, the row by
which it claims that anything was found: always an interval that lies beyond its null, none of these
rules is fitted to the truths. The entries are in `ours` and `several`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.lab.known import PLACES, Place
from workbench.loaders import load_pair
from workbench.results.result import Result
from workbench.scoreboard.method import Answer, Method
from workbench.tasks.prompts import PromptSet

Read = str | Callable[[Result, PromptSet], Mapping[Place, float]]


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


def scored(table: pd.DataFrame, kind: str, rows: str, sign: float = 1.0) -> dict[Place, float]:
    """Place -> sign x value, the largest of those that it has among these rows. kind: names its
    columns."""
    own = table.query(rows, engine="python")
    columns = [*PLACES[kind]]
    best = (sign * own["value"]).groupby([own[column] for column in columns]).max()
    return dict(zip(map(_named, best.index), best.astype(float), strict=True))


def _named(place: Any) -> Place:
    """Numbers stay numbers, whole ones as such, and all else is text, whatever the columns' types
    are."""
    place = place if isinstance(place, tuple) else (place,)
    return tuple(i if isinstance(i, str) else int(i) if i == int(i) else float(i) for i in place)


def fewer(kind: str, rows: str) -> Read:
    """Rows of which the lowest value is the surest place."""
    return lambda found, prompts: scored(found.table, kind, rows, -1.0)


def sized(kind: str, rows: str) -> Read:
    """Rows whose value says most where it is far from 0, in whichever direction."""

    def read(found: Result, prompts: PromptSet) -> dict[Place, float]:
        return scored(found.table.assign(value=found.table["value"].abs()), kind, rows)

    return read


def rises(metric: str) -> Read:
    """By how much more the two sides differ after each layer than before it."""

    def read(found: Result, prompts: PromptSet) -> dict[Place, float]:
        rows = found.table.query(f"metric == '{metric}'").sort_values("layer")
        there = dict(zip(rows["layer"].astype(int), rows["value"], strict=True))
        return {(at,): value - there.get(at - 1, 0.0) for at, value in there.items() if at >= 0}

    return read


def turned(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """How far the singular vectors of each matrix are from the base's, on average."""
    means = found.table.query("metric == 'max_cosine'").groupby(["layer", "component"])["value"]
    return {(int(at), str(name)): 1 - float(v) for (at, name), v in means.mean().items()}  # pyright: ignore


def counted(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """Intruders of each matrix."""
    own = found.table.query("metric == 'intruder'").groupby(["layer", "component"])["value"]
    return {(int(at), str(name)): float(v) for (at, name), v in own.sum().items()}  # pyright: ignore


def items(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much the score of every prompt changed."""
    own = found.table.query("metric == 'item'")
    each = zip(own["prompt"], (own["value"] - own["baseline"]).abs(), strict=True)
    return {(str(prompt),): float(value) for prompt, value in each}


def texts(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """KL of the answers of every prompt."""
    own = pd.Series(found.tensors["kl"]).groupby(found.tensors["text"]).sum()
    return {(prompts[int(at)].id,): float(value) for at, value in own.items()}  # pyright: ignore


def returns(metric: str) -> Callable[[Result], str]:
    """Suppressed where at least half of what was lost is still there, by the middle of the
    interval; erased where less is."""

    def read(found: Result) -> str:
        rows = found.table.query(f"metric == '{metric}'")["value"].dropna()
        return "undecided" if rows.empty else "suppressed" if rows.max() >= 0.5 else "erased"

    return read


def method(key: str, entry: Entry) -> Method:
    """An entry as a method like anyone's."""

    def asked(
        base: Path,
        tuned: Path,
        prompts: PromptSet,
        corrupted: PromptSet | None,
        *more: Mapping[str, Any],
    ) -> Result:
        return entry.ask(load_pair(base, tuned), prompts, corrupted, *more)

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
