"""How does the table of an analysis say where? From a Result to scores of places and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from workbench.lab.known import PLACES, Place
from workbench.models import Site
from workbench.results.result import Result
from workbench.tasks.prompts import PromptSet

Read = str | Callable[[Result, PromptSet], Mapping[Place, float]]


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


def taken(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """How much of every head is taken from the other prompt."""
    left = scored(found.table, "head", "metric == 'mask'", -1.0)
    return {place: 1 + value for place, value in left.items()}


def steered(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much the direction behind each layer does more than that behind the layer before."""
    rows = found.table.query("arm == 'steered' and metric == 'log_probability'")
    best = (rows["value"] - rows["baseline"]).groupby(rows["layer"].astype(int)).max()
    return {(int(at),): float(best[at] - best.get(at - 1, 0.0)) for at in best.index}


def carried(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much more often the tuned model's subspace decides the answer behind each layer than
    behind the one before, beyond random ones."""
    rows = found.table.query("side == 'tuned' and arm == 'beyond random' and metric == 'score'")
    own = rows.set_index(rows["layer"].astype(int))["value"]
    return {(int(at),): float(own[at] - own.get(at - 1, 0.0)) for at in own.index}


def by_layer(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """Of each layer, the largest change of what a head or an MLP of it writes."""
    rows = found.table.query("side == 'tuned - base' and layer.notna() and arm.isna()")
    best = rows["value"].abs().groupby(rows["layer"].astype(int)).max()
    return {(int(at),): float(value) for at, value in best.items()}  # pyright: ignore


def grouped(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """Of every head, the most that a group of heads with it carries."""
    rows = found.table.query("arm == 'patch' and metric == 'recovered:logit_difference'").set_index(
        "group"
    )["value"]
    best: dict[Place, float] = {}
    for name, sites in found.provenance.parameters["groups"].items():
        for site in map(Site.parse, sites):
            at = (site.layer, site.head)
            best[at] = max(best.get(at, -1.0), float(rows[name]))
    return best


def written(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """Of every example, the largest share that it wrote of a direction."""
    own = found.table.query("metric == 'written' and prompt.notna()")
    return {(str(one),): float(v) for one, v in own.groupby("prompt")["value"].max().items()}


def novel(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """How new the tuned model's own text behind every prompt is to the base."""
    own = found.table.query("metric == 'text' and arm == 'tuned'").sort_values("x")
    return {(prompts[int(row.x)].id,): float(row.value) for row in own.itertuples()}  # pyright: ignore


def drawn(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """How much more of its attention every head gives a prefix than random ones."""
    rows = found.table.query("metric == 'prefix_mass' and head.notna()")
    beyond = rows.assign(value=rows["value"] - rows["baseline"])
    return scored(beyond, "prefixed head", "value.notna()")


def overconfident(found: Result) -> str:
    """Overconfident where the tuned model is, beyond a perfectly calibrated one of the same
    confidences, and more so than the base for certain."""
    rows = found.table.query("own == True")
    tuned = rows.query("metric == 'overconfidence' and arm == 'tuned'").iloc[0]
    base = rows.query("metric == 'overconfidence' and arm == 'base'").iloc[0]
    beyond = tuned["low"] > tuned["null_high"] and tuned["low"] > base["high"]
    return "overconfident" if beyond else "kept"
