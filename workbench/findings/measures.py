"""What is compared between models: how each measure is read of a Result, item by item where it has
items, and the difference of it that would not matter.

A measure of a member stands beside its null or what it is held against: the base, random changes or
entries or heads, for an effective rank the LoRA's own rank, for TuCo prompts that fine-tuning was
not about. What is measured on the same prompts, texts or matrices of two members is compared on
them one by one; the others are compared as two independent intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.results.intruder_counts import NULLS, TUNED, intruder_counts
from workbench.results.result import Result, changed_rows, matrix_columns
from workbench.stats import Interval, bootstrap, proportion

PRETRAINING = "pretraining"  # the task whose loss is forgetting, see `forgetting.retention`
ENOUGH = 0.9  # of the gain, for a graft to carry the skill
SHARE = 0.1  # of the parameters, where grafts of members are compared
ARMS = ("learned", "movement")  # choices of a graft's entries, the best first
Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One column of the first page. read(result) -> rows of member, value, low, high, n, baseline.
    items(result) -> (member, item, value, weight), whose weighted mean over items the value is;
    None where it has none. margin: the difference that would not matter, None where members are not
    compared; ratio: it is a factor; score: its items are right, wrong or in between; share: it lies
    between 0 and 1."""

    name: str
    analysis: str
    margin: float | None
    read: Callable[[Result], Iterator[Row]]
    items: Callable[[Result], pd.DataFrame] | None = None
    ratio: bool = False
    score: bool = False
    share: bool = False


def _items(rows: pd.DataFrame, weight: str = "") -> pd.DataFrame:
    """(member, item, value, weight), every item once a member. Items are prompts by name, or
    matrices by place; none where the table tells neither. weight: the column that holds it."""
    names = [name for name in ("prompt", *matrix_columns(rows)) if name in rows]
    if rows.empty or not names:
        return pd.DataFrame(columns=pd.Index(["member", "value", "item", "weight"]))
    item = [" ".join(parts) for parts in zip(*(rows[name].map(str) for name in names), strict=True)]
    heavy = rows[weight].astype(float) if weight in rows else 1.0
    made = rows[["member", "value"]].assign(item=item, weight=heavy)
    return made.dropna(subset="value").drop_duplicates(["member", "item"])


def _rows(rows: pd.DataFrame) -> Iterator[Row]:
    for _, row in rows.iterrows():
        yield {name: row[name] for name in ("member", "value", "low", "high", "n", "baseline")}


def _shares(rows: pd.DataFrame) -> Iterator[Row]:
    """`_rows` of proportions: one without width is given Wilson's interval over its items."""
    for row in _rows(rows):
        yield row | proportion(Interval.of(row))._asdict()


def _score(result: Result) -> Iterator[Row]:
    table, task = result.table, result.provenance.parameters.get("task")
    yield from _shares(table[(table["metric"] == "score") & (table["task"] == task)])


def _prompts(result: Result) -> pd.DataFrame:
    task = result.provenance.parameters.get("task")
    rows = result.table[(result.table["metric"] == "item") & (result.table["task"] == task)]
    return _items(rows)


def _forgetting(result: Result) -> Iterator[Row]:
    rows = result.table[(result.table["metric"] == "loss_change")]
    rows = rows[rows["task"] == PRETRAINING]
    yield from _rows(rows.assign(baseline=0.0))


def _texts(result: Result) -> pd.DataFrame:
    rows = result.table[(result.table["metric"] == "item_loss")]
    rows = rows[rows["task"] == PRETRAINING]
    rows = rows.assign(value=rows["value"] - rows["baseline"])
    return _items(rows, "tokens")


def _intruders(result: Result) -> Iterator[Row]:
    """Share of the top vectors, over the matrices that changed; null: the first of NULLS, of a
    null of several draws their mean."""
    by = intruder_counts(result, by=("member", *matrix_columns(result.table)))
    by = by[by["n"] > 0]
    for member, own in by.groupby("member", sort=False):
        tuned = own[own["arm"] == TUNED]
        found = bootstrap(tuned["fraction"], tuned["n"])
        share = proportion(found)  # matrices, since the vectors of one are no independent items
        null = next((arm for arm in NULLS if (own["arm"] == arm).any()), None)
        counted = own.loc[own["arm"] == null, ["count", "n"]].sum()
        beside = math.nan if null is None else float(counted["count"] / counted["n"])
        yield {"member": member, "baseline": beside} | share._asdict()


def _beyond_rows(result: Result) -> Iterator[Row]:
    items = _beyond_items(result)
    for member, own in items.groupby("member", sort=False):
        found = bootstrap(own["value"], own["weight"])
        yield {"member": member, "baseline": 0.0} | found._asdict()


def _beyond_items(result: Result) -> pd.DataFrame:
    """By matrix the share of the top vectors that are intruders, less that of its null."""
    by = intruder_counts(result, by=("member", *matrix_columns(result.table)))
    by = by[by["n"] > 0]
    keys = ["member", *matrix_columns(by)]
    null = next((arm for arm in NULLS if (by["arm"] == arm).any()), None)
    both = by[by["arm"] == TUNED].merge(
        by.loc[by["arm"] == null, [*keys, "fraction"]], on=keys, suffixes=("", "_null")
    )
    return _items(both.assign(value=both["fraction"] - both["fraction_null"]), "n")


def _vectors(result: Result) -> pd.DataFrame:
    by = intruder_counts(result, by=("member", *matrix_columns(result.table)))
    by = by[(by["n"] > 0) & (by["arm"] == TUNED)]
    return _items(by.assign(value=by["fraction"]), "n")


def _per_matrix(metric: str) -> Callable[[Result], Iterator[Row]]:
    """The mean over the matrices that changed; beside an effective rank a LoRA's ceiling, its rank.
    A member that changed fewer kinds of matrices has its mean over fewer."""

    def read(result: Result) -> Iterator[Row]:
        rows = changed_rows(result.table)
        for member, own in rows[rows["metric"] == metric].groupby("member", sort=False):
            about = result.provenance.members[str(member)]
            ceiling = about.get("rank") if metric == "effective_rank" else None
            beside = float(ceiling) if about.get("kind") == "lora" and ceiling else math.nan
            yield {"member": member, "baseline": beside} | bootstrap(own["value"])._asdict()

    return read


def _matrices(metric: str) -> Callable[[Result], pd.DataFrame]:
    def items(result: Result) -> pd.DataFrame:
        rows = changed_rows(result.table)
        rows = rows[rows["metric"] == metric]
        return _items(rows)

    return items


def _tuco(result: Result) -> Iterator[Row]:
    """The first group's mean; beside it the second's, which fine-tuning was not about."""
    rows = result.table[(result.table["metric"] == "mean:tuco") & result.table["layer"].isna()]
    for _, own in rows.groupby("member", sort=False):
        beside = float(own["value"].iloc[1]) if len(own) > 1 else math.nan
        yield from _rows(own.head(1).assign(baseline=beside))


def _first_group(result: Result) -> pd.DataFrame:
    rows = result.table[result.table["metric"] == "tuco"]
    rows = rows[rows["group"] == next(iter(rows["group"]), None)]
    return _items(rows)


def _grafts(result: Result) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(member, gains of the best choice of entries by share, those of random entries)."""
    table = result.table
    gains = table[(table["metric"] == "gain") & table["own"].eq(True)].sort_values("x")
    for member, own in gains.groupby("member", sort=False):
        arm = next((arm for arm in ARMS if (own["arm"] == arm).any()), None)
        if arm is not None:
            yield str(member), own[own["arm"] == arm], own[own["arm"] == "random"]


def _graft_gain(result: Result) -> Iterator[Row]:
    """The gain at about SHARE of the entries, where such a graft was cut."""
    for _, own, random in _grafts(result):
        at = own[(own["sparsity"] - SHARE).abs() < SHARE / 5].head(1)
        if at.empty:
            continue
        null = random[random["sparsity"] == at["sparsity"].iloc[0]]["value"]
        # The items of a share of the gain are the prompts that fine-tuning turned, which are not
        # told: where all of them agree there is no interval.
        sure = at["low"].eq(at["high"])
        at = at.assign(low=at["low"].mask(sure), high=at["high"].mask(sure))
        yield from _rows(at.assign(baseline=null.mean() if len(null) else math.nan))


def _graft_size(result: Result) -> Iterator[Row]:
    """The smallest share tried that carries ENOUGH of the gain; NaN where none does. What is needed
    lies between the largest share that surely does not and the smallest that surely does."""
    for member, own, random in _grafts(result):
        short = own.loc[own["high"] < ENOUGH, "x"]
        found = {
            "value": _first(own, "value"),
            "low": float(short.max()) if len(short) else math.nan,
            "high": _first(own, "low"),
        }
        null = _first(random, "value")
        yield {"member": member, "n": int(own["n"].max()), "baseline": null} | found


def _first(gains: pd.DataFrame, edge: str) -> float:
    reached = gains.loc[gains[edge] >= ENOUGH, "x"]
    return float(reached.min()) if len(reached) else math.nan


def _faithfulness(result: Result) -> Iterator[Row]:
    """Of the base's circuit in the member, by score; null: as many random heads."""
    table = result.table
    rows = table[(table["metric"] == "faithfulness:score") & (table["side"] == "tuned")]
    rows = rows[rows["circuit"] == "base"]
    null = rows[rows["arm"] == "random"].set_index("member")["value"]
    own = rows[rows["arm"] == "patch"]
    # Where no draw differs, as of a circuit that does nothing on any prompt, nothing is decided.
    sure = own["low"].eq(own["high"])
    own = own.assign(low=own["low"].mask(sure), high=own["high"].mask(sure))
    yield from _rows(own.assign(baseline=own["member"].map(null).astype(float)))


def _overlap(result: Result) -> Iterator[Row]:
    """Jaccard index of the circuits found in base and member; null: of random circuits of these
    sizes. Heads are no sample of anything, so it has no interval."""
    table = result.table
    rows = table[(table["metric"] == "jaccard") & (table["arm"] == "overlap")]
    rows = rows[rows["group"].isna()]
    # What stands beside it in the table is the range of its null.
    yield from _rows(rows.assign(low=math.nan, high=math.nan))


def _per_changed_matrix(name: str, metric: str) -> Measure:
    made = _per_matrix(metric), _matrices(metric)
    return Measure(name, "spectral.delta_spectrum", 1.25, *made, ratio=True)


# Why these margins; they are settings (`margins=`), and `findings.sensitivity` shows what hangs on
# them. Score, 0.05: one prompt in twenty, and about the least that 400 prompts can confirm, whose
# interval of a difference of scores near 0.9 is +-0.04. Forgetting, 0.1 nats a token: a tenth in
# perplexity. Intruders, 0.02: one vector in fifty, of ten a matrix one in every fifth matrix.
# Sizes, a factor of 1.25: as in bioequivalence, since they have no unit of their own. TuCo, 0.05: a
# twentieth of its range. Gain in a tenth and the base's circuit, 0.1: a tenth of all of it.
MEASURES = (
    Measure("score", "forgetting.retention", 0.05, _score, _prompts, score=True, share=True),
    Measure("forgetting", "forgetting.retention", 0.1, _forgetting, _texts),
    Measure("intruders", "spectral.intruders", 0.02, _intruders, _vectors, share=True),
    _per_changed_matrix("effective rank", "effective_rank"),
    _per_changed_matrix("relative norm", "relative_norm"),
    Measure("TuCo", "tuco.contribution", 0.05, _tuco, _first_group, share=True),
    Measure("gain in a tenth", "skills.localize", 0.1, _graft_gain),
    Measure("graft size", "skills.localize", 1.25, _graft_size, ratio=True),
    Measure("base's circuit", "patching.circuit", 0.1, _faithfulness),
    Measure("circuit overlap", "patching.circuit", None, _overlap),
)
# Not compared between members, but of each: what it has beyond changes in random directions.
BEYOND_CHANCE = Measure("intruders", "spectral.intruders", None, _beyond_rows, _beyond_items)
