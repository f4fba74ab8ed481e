"""Are LoRA and full fine-tuning equivalent here? One row a member, over what other analyses found.

Each measure of a member (score, forgetting, intruders, effective rank, TuCo, graft, circuit) stands
beside its null or what it is held against (the base, random changes or entries or heads, for an
effective rank the LoRA's own rank, for TuCo prompts that fine-tuning was not about), and its
difference from the full fine-tune beside a margin below which a difference would not matter. The
question is that of an equivalence test, which is two tests at once:

    alike       the whole 95% interval of the difference lies within the margin
    different   the interval leaves out no difference, and does not lie within the margin
    undecided   neither: too few prompts or matrices to tell

so that a wide interval never counts as "no difference". Differences have the intervals that follow
from those of their two sides (Zou & Donner 2008, doi:10.1002/sim.3095); prompts shared by both
sides make them too wide, not too narrow. A proportion whose items were all alike takes Wilson's.
Sizes (effective rank, norm, share of the parameters) are compared as ratios, within 0.8 to 1.25 as
bioequivalence is (FDA 2001, Statistical Approaches to Establishing Bioequivalence).

When it misleads: intervals are over prompts, texts or matrices of one training run each, not over
seeds; margins are a matter of what one cares about; and members whose scores differ have not
learned the same, so that nothing else about them compares. Many measures are read at once: one of
twenty comparisons of equals comes out "different".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.results.intruder_counts import NULLS, TUNED, intruder_counts
from workbench.results.result import Result, changed_rows, describe, matrix_columns
from workbench.stats import Interval, bootstrap, difference, proportion

KEY = "compare.equivalence"
ALIKE, DIFFERENT, UNDECIDED = "alike", "different", "undecided"
ENOUGH = 0.9  # of the gain, for a graft to carry the skill
SHARE = 0.1  # of the parameters, where grafts of members are compared
ARMS = ("learned", "movement")  # choices of a graft's entries, the best first
COLUMNS = [
    "metric", "measure", "member", "value", "low", "high", "n", "baseline", "versus", "arm",
    "margin", "says",
]  # fmt: skip
Row = dict[str, Any]


def equivalence(
    results: Sequence[Result], *, margins: Mapping[str, float] | None = None
) -> Result | None:
    """Every measure of every member beside its null, and its difference from the full fine-tune.

    results: Results of one base by any of the analyses in MEASURES; others are passed over, and of
    several that measure one member that of the most items counts. Checkpoints of one name and
    other content are told apart (`told_apart`). margins: measure -> the difference that would
    not matter (for ratios the factor), other than MEASURES has them. A member is compared with the
    first full fine-tune of the same Result; where there is none, it is measured only.

    Returns a Result with rows measure (member, measure; baseline: its null) and difference (member,
    measure, versus; arm "difference" or "ratio", margin, and what it `says`: alike, different or
    undecided), each with a 95% interval and n; None where nothing was measured. Raises
    WorkbenchError for a margin of an unknown measure or one that is not positive (of a ratio: not
    above 1).
    """
    margins = _margins(margins or {})
    found: dict[tuple[str, str], Row] = {}
    compared: dict[tuple[str, str], Row] = {}
    used: dict[tuple[str, str], Result] = {}
    results = told_apart(results)
    for measure in MEASURES:
        for result in (r for r in results if r.analysis == measure.analysis):
            own = {row["member"]: row for row in measure.read(result)}
            reference = next((m for m in own if _kind(result, m) == "full"), None)
            for member, row in own.items():
                key = (measure.name, member)
                if key in found and found[key]["n"] >= row["n"]:
                    continue
                used[key] = result
                found[key] = {"metric": "measure", "measure": measure.name} | row
                compared.pop(key, None)
                if measure.margin and reference is not None and member != reference:
                    compared[key] = _compared(measure, row, own[reference], margins[measure.name])
    if not found:
        return None
    inputs = [r for r in results if any(r is one for one in used.values())]
    members = {n: about for r in inputs for n, about in r.provenance.members.items()}
    kept = {name: about for name, about in members.items() if any(n == name for _, n in found)}
    provenance = replace(
        inputs[0].provenance,
        members=kept,
        parameters={"results": describe(inputs), "margins": margins},
        notes=(),
    )
    rows = [*found.values(), *compared.values()]
    return Result(KEY, pd.DataFrame(rows, columns=COLUMNS), provenance)


def told_apart(results: Sequence[Result]) -> list[Result]:
    """The Results with another name where members of one name are different checkpoints: the first
    keeps its own, the second is "NAME (2)"."""
    seen: dict[str, list[Any]] = {}
    made = []
    for result in results:
        names = {}
        for name, about in result.provenance.members.items():
            known = seen.setdefault(name, [])
            if about.get("fingerprint") not in known:
                known.append(about.get("fingerprint"))
            place = known.index(about.get("fingerprint"))
            names[name] = f"{name} ({place + 1})" if place else name
        if "member" in result.table and any(old != new for old, new in names.items()):
            members = {names[n]: about for n, about in result.provenance.members.items()}
            table = result.table.assign(member=result.table["member"].replace(names))
            provenance = replace(result.provenance, members=members)
            result = Result(result.analysis, table, provenance, result.tensors)
        made.append(result)
    return made


@dataclass(frozen=True)
class Measure:
    """One column of the first page. read(result) -> rows of member, value, low, high, n, baseline.
    margin: the difference that would not matter, None where members are not compared; ratio: it is
    a factor."""

    name: str
    analysis: str
    margin: float | None
    read: Callable[[Result], Iterator[Row]]
    ratio: bool = False


def verdict(low: float, high: float, margin: float) -> str:
    """What the 95% interval of a difference says, beside a margin on either side of 0."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNDECIDED
    if -margin <= low and high <= margin:
        return ALIKE
    return DIFFERENT if low > 0 or high < 0 else UNDECIDED


def _compared(measure: Measure, row: Row, reference: Row, margin: float) -> Row:
    ours, theirs = Interval.of(row), Interval.of(reference)
    if measure.ratio:
        ours, theirs = _logarithm(ours), _logarithm(theirs)
    found = difference(ours, theirs)
    says = verdict(found.low, found.high, math.log(margin) if measure.ratio else margin)
    if measure.ratio:
        value, low, high = (math.exp(edge) for edge in found[:3])
        found = Interval(value, low, high, found.n)
    return {
        "metric": "difference", "measure": measure.name, "member": row["member"],
        "versus": reference["member"], "arm": "ratio" if measure.ratio else "difference",
        "margin": margin, "baseline": 1.0 if measure.ratio else 0.0, "says": says,
    } | found._asdict()  # fmt: skip


def _logarithm(side: Interval) -> Interval:
    value, low, high = (math.log(edge) if edge > 0 else math.nan for edge in side[:3])
    return Interval(value, low, high, side.n)


def _kind(result: Result, member: str) -> str | None:
    return result.provenance.members[member].get("kind")


def _margins(given: Mapping[str, float]) -> dict[str, float]:
    known = {measure.name: measure for measure in MEASURES if measure.margin}
    for name, margin in given.items():
        if name not in known:
            raise WorkbenchError(f"Unknown measure {name!r}; there are {', '.join(known)}.")
        least = 1 if known[name].ratio else 0
        if not margin > least:
            raise WorkbenchError(f"Expected a margin of {name} above {least}, found {margin}.")
    return {name: float(given.get(name, measure.margin or 0)) for name, measure in known.items()}


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


def _forgetting(result: Result) -> Iterator[Row]:
    rows = result.table[result.table["metric"] == "loss_change"]
    yield from _rows(rows.assign(baseline=0.0))


def _intruders(result: Result) -> Iterator[Row]:
    """Share of the top vectors, over the matrices that changed; null: the first of NULLS, of a
    null of several draws their mean."""
    by = intruder_counts(result, by=("member", *matrix_columns(result.table)))
    by = by[by["n"] > 0]
    for member, own in by.groupby("member", sort=False):
        tuned = own[own["arm"] == TUNED]
        found = bootstrap(tuned["fraction"], tuned["n"])
        share = proportion(found._replace(n=int(tuned["n"].sum())))
        null = next((arm for arm in NULLS if (own["arm"] == arm).any()), None)
        counted = own.loc[own["arm"] == null, ["count", "n"]].sum()
        beside = math.nan if null is None else float(counted["count"] / counted["n"])
        yield {"member": member, "baseline": beside} | share._asdict() | {"n": found.n}


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


def _tuco(result: Result) -> Iterator[Row]:
    """The first group's mean; beside it the second's, which fine-tuning was not about."""
    rows = result.table[(result.table["metric"] == "mean:tuco") & result.table["layer"].isna()]
    for _, own in rows.groupby("member", sort=False):
        beside = float(own["value"].iloc[1]) if len(own) > 1 else math.nan
        yield from _rows(own.head(1).assign(baseline=beside))


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


MEASURES = (
    Measure("score", "forgetting.retention", 0.05, _score),
    Measure("forgetting", "forgetting.retention", 0.1, _forgetting),
    Measure("intruders", "spectral.intruders", 0.02, _intruders),
    Measure("effective rank", "spectral.delta_spectrum", 1.25, _per_matrix("effective_rank"), True),
    Measure("relative norm", "spectral.delta_spectrum", 1.25, _per_matrix("relative_norm"), True),
    Measure("TuCo", "tuco.contribution", 0.05, _tuco),
    Measure("gain in a tenth", "skills.localize", 0.1, _graft_gain),
    Measure("graft size", "skills.localize", 1.25, _graft_size, True),
    Measure("base's circuit", "patching.circuit", 0.1, _faithfulness),
    Measure("circuit overlap", "patching.circuit", None, _overlap),
)
