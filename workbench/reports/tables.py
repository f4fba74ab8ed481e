"""The tables of one Result on the page: summaries a person reads, never its raw rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from workbench import figures
from workbench.figures.compare.equivalence import KEY
from workbench.results import intruder_counts
from workbench.results.result import Result, changed_rows, how_many_changed

# What tells means apart, and places of patches.
KEYS = (
    "member", "side", "direction", "circuit", "group", "first", "second", "skills", "task", "arm",
    "measure", "outcome", "rank", "sparsity", "x", "layer", "component",
)  # fmt: skip
# Of grafts, on the page; places and reliability bins are in the figures.
GRAFTED = (
    "score", "gain", "agreement", "ece", "accuracy", "brier", "free", "harmful", "overlap",
    "within", "places", "interference", "score_change", "log_probability_change",
)  # fmt: skip
SCORES = (
    "score", "score_change", "lost", "gained", "lost_adjusted", "gained_adjusted", "mcnemar",
    "chance",
)  # fmt: skip
PLACES = (
    "side",
    "direction",
    "component",
    "group",
    "layer",
    "head",
    "neuron",
    "latent",
    "position",
)
STRONGEST = ("krs", "recovered:logit_difference", "recovered:log_probability")
SHOWN = 6  # places per member and side
X = {"spectral.scale": "lambda", "tuco.scaling": "alpha"}
LONG = 16  # rows above which a table is folded away
MOST = 600  # rows above which a table is left to the Result's own file


# Intervals of every matrix would be pages.
OVER_MATRICES = ("spectral.explained",)
# What the rows of a Result without a column `member` are of.
PAIRED = ("first", "second", "method", "place")


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: text in every cell."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    members: Sequence[str] = ()  # the model that each row is of; none where rows are of several
    columns_of: Sequence[str | None] = ()  # and each column, where columns are of models

    @property
    def folded(self) -> bool:
        return len(self.rows) > LONG


def tables(result: Result) -> Iterator[Table]:
    """The summary tables of one Result: per member, rounded; never its raw rows."""
    if result.analysis == KEY:
        yield _equivalent(result)
    elif result.analysis in OVER_MATRICES:
        yield _medians(result)
    elif result.analysis == "spectral.intruders":
        yield from _counts(result)
    elif result.analysis.startswith("patching."):
        yield from _patched(result)
    elif result.analysis.startswith("skills."):
        yield from _grafted(result)
    elif result.has("item"):
        yield from _kept(result)
    elif "group" in result.table:
        yield from _groups(result)
    elif {"low", "high"} <= set(result.table):
        yield _means(result)
    else:
        yield _medians(result)


def _equivalent(result: Result) -> Table:
    """One row a member."""
    caption = (
        "= alike, ≠ different, ? undecided, against the full fine-tune (not the null); 95% "
        "intervals, Wilson's where all items of a proportion were alike"
    )
    wide = figures.cells(result).fillna("").reset_index(names="member")
    return as_table(caption, wide)


def _counts(result: Result) -> Iterator[Table]:
    """Intruders per member beside their nulls, and per member and component, at the run's eps."""
    counts = intruder_counts.intruder_counts(result)
    eps, k = counts[["eps", "k"]].iloc[0]
    changed = how_many_changed(result.table)
    rows = []
    for member in result.members:
        own = counts[counts["member"] == member].set_index("arm")
        tuned, (some, every) = own.loc[intruder_counts.TUNED], changed[member]
        nulls = {arm: own.loc[arm] for arm in intruder_counts.NULLS if arm in own.index}
        rows.append(
            {"member": member, "intruders": int(tuned["count"]), "of": int(tuned["n"])}
            | {"%": "–" if pd.isna(tuned["fraction"]) else f"{100 * tuned['fraction']:.1f}"}
            | {"matrices changed": f"{some} of {every}"}
            | {
                f"null: {intruder_counts.NULLS[arm]}": figures.interval(
                    null["count"], null["low"], null["high"], ".0f"
                )
                for arm, null in nulls.items()
            }
        )
    yield as_table(
        f"Intruders among the top {k:g} vectors at eps {eps:g}, in the matrices that changed",
        pd.DataFrame(rows),
    )
    by = intruder_counts.intruder_counts(result, by=("member", "component"))
    by = by[by["arm"] == intruder_counts.TUNED].astype({"count": int})
    places = by.pivot_table("count", "component", "member", sort=False)[result.members]
    yield as_table(
        "Intruders by component, over all layers", places.reset_index(), models=result.members
    )


def _patched(result: Result) -> Iterator[Table]:
    """The strongest places with their controls; what is not a place (scores of runs, circuits and
    masks, overlaps) as means."""
    table = result.table
    if "arm" not in table:
        table = table.assign(arm=None)
    own = table[table["metric"].isin(STRONGEST)]
    own = own[own["metric"] == own["metric"].iloc[0]] if len(own) else own
    keys = [key for key in PLACES if key in table and table[key].notna().any()]
    shown = [own[own["arm"] == "random"]]
    for _, rows in own[own["arm"] == "patch"].groupby(["member", keys[0]], sort=False):
        order = rows["value"].abs().sort_values(ascending=False).index
        shown.append(rows.loc[order[:SHOWN]])
    shown.append(own[own["arm"].isin(["picked", "shuffled"])])
    places = pd.concat(shown)
    if len(places):
        cells = [figures.interval(r.value, r.low, r.high) for r in places.itertuples(index=False)]
        metric = str(places["metric"].iloc[0])
        wide = places[["member", *keys, "arm"]].assign(**{metric: cells, "n": places["n"]})
        text = wide.astype(object).where(wide.notna(), "")
        yield as_table("The strongest patches and their controls, 95% intervals", text)
    whole = table[~table["metric"].isin(("chosen", "mask", "effect", "logit_change"))]
    for name in ("layer", "head", "neuron"):
        whole = whole[whole[name].isna()] if name in whole else whole
    if "component" in whole:
        whole = whole[whole["component"].isna() | (result.analysis == "patching.mask")]
    whole = whole[whole["n"].notna()].drop(columns=["component", "position"], errors="ignore")
    if len(whole):
        yield _means(replace(result, table=whole), "Whole runs")


def _grafted(result: Result) -> Iterator[Table]:
    """Scores of grafts on their own task's prompts, then on the others."""
    table = result.table[result.table["metric"].isin(GRAFTED)]
    own = table["own"].eq(True) if "own" in table else pd.Series(True, table.index)
    yield _means(replace(result, table=table[own]))
    if not own.all():
        yield _means(replace(result, table=table[~own]), "Other prompts")


def _kept(result: Result) -> Iterator[Table]:
    """Scores, losses and groups; items are texts, which the chapter's explorer shows."""
    table = result.table[result.table["metric"] != "item"]
    group = table["metric"].str.startswith("group_")
    score = table["metric"].isin(SCORES)
    for caption, rows in (
        ("Scores", table[score]),
        ("Losses and what else was measured", table[~score & ~group]),
        ("By group", table[group]),
    ):
        if len(rows):
            short = rows.assign(metric=rows["metric"].str.removeprefix("group_"))
            yield _means(replace(result, table=short), caption)


def _groups(result: Result) -> Iterator[Table]:
    """Means per member and group of prompts, and how well every two groups are told apart."""
    table = result.table
    over = table["n"].notna() & table["layer"].isna()
    for sign, caption in ((" > ", "First group above the second"), ("", "Groups of prompts")):
        rows = table[over & table["group"].str.contains(" > ", regex=False).eq(bool(sign))]
        if len(rows):
            short = rows.assign(metric=rows["metric"].str.removeprefix("mean:"))
            yield _means(replace(result, table=short), caption)
    if result.has("invisible"):
        rows = result.metric("invisible")[["member", "component", "value"]]
        yield as_table("Changes outside the blocks, |change| / |base|", rows)


def _means(result: Result, caption: str = "Means") -> Table:
    """Means with their intervals: a row per member and whatever else is told apart."""
    table = result.table
    keys = [key for key in KEYS if key in table and table[key].notna().any()]
    shown = table.assign(
        cell=[
            _said(row) if pd.isna(row.value) else figures.interval(row.value, row.low, row.high)
            for row in table.itertuples(index=False)
        ]
    )
    shown[keys] = shown[keys].astype(object).where(shown[keys].notna(), "")
    wide = shown.groupby([*keys, "metric"], sort=False)["cell"].first().unstack()
    # A metric may be called as a column is.
    wide = wide.rename(columns={name: f"{name} (value)" for name in keys})
    wide = wide.reset_index().fillna("")
    if "n" in table:
        counts = shown.groupby(keys, sort=False)["n"].agg(_counts_of)
        wide = wide.merge(counts.reset_index(), on=keys)
    return as_table(
        f"{caption}, 95% intervals", wide.rename(columns={"x": X.get(result.analysis, "x")})
    )


def _said(row: Any) -> str:
    """What stands for a value that is none: a verdict where there is one."""
    says = getattr(row, "says", None)
    return says if isinstance(says, str) else "–"


def _counts_of(counts: pd.Series) -> str:
    """How many items the values of a row are over; several numbers where they differ."""
    ends = sorted({int(n) for n in counts.dropna()})
    return " to ".join(str(n) for n in dict.fromkeys([ends[0], ends[-1]])) if ends else ""


def _medians(result: Result) -> Table:
    """Median and quartiles of every metric over its rows, a column per member.

    Where a table has values per matrix beside values per singular vector, only the former, and of
    matrices only: a bias or a norm has no spectrum to compare.
    """
    table = result.table
    caption = "Median [quartiles]"
    if "rank" in table and table["rank"].isna().any():
        table = table[table["rank"].isna()]
        if (table["metric"] == "effective_rank").any():
            table = changed_rows(table)
            caption += " over the matrices that changed"
    of = ["member"] if "member" in table else [name for name in PAIRED if name in table]
    groups = table.groupby(["metric", *of], sort=False, dropna=False)
    spread = groups["value"].quantile([0.5, 0.25, 0.75])
    text = spread.unstack().apply(lambda row: figures.interval(*row), axis=1)
    if of != ["member"]:
        return as_table(caption, text.rename("value").reset_index().fillna(""))
    wide = text.unstack().reindex(columns=result.members)
    return as_table(caption, wide.reset_index().fillna(""), models=result.members)


def as_table(caption: str, frame: pd.DataFrame, *, models: Sequence[str] = ()) -> Table:
    """`frame` as text; of a very long one the first rows, and the caption says so. models: those
    that have a column each."""
    if len(frame) > MOST:
        caption += f" (the first {MOST} of {len(frame)} rows; all are in the saved Result)"
    rows = [
        ["" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.head(MOST).itertuples(index=False)
    ]
    return Table(
        caption,
        [str(n) if n in models else str(n).replace("_", " ") for n in frame.columns],
        rows,
        [str(one) for one in frame["member"].head(MOST)] if "member" in frame else (),
        [n if n in models else None for n in frame.columns] if models else (),
    )
