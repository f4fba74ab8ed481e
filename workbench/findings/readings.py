"""What is read of each claim: one function a claim, over the Results of one base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from workbench.equivalence import equivalence
from workbench.results import Result
from workbench.stats import Interval, difference

LOW_RANK = 16  # up to which arXiv 2410.21228 finds intruders throughout
FEW = 0.01  # of the vectors: not worth being called many
LEAST = 10  # lost answers that a share of them needs
MISSING: dict[str, Any] = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}


class Reading(NamedTuple):
    """One thing seen of a claim. member: with the task where it matters; at: where in it; control:
    the null's value; holds: None where it decides nothing."""

    member: str
    at: str
    value: float
    low: float
    high: float
    n: int
    control: float
    holds: bool | None


def _of(results: Sequence[Result], analysis: str) -> list[Result]:
    return [result for result in results if result.analysis == analysis]


def _reading(member: str, row: Any, control: float, holds: bool | None, at: str = "") -> Reading:
    return Reading(member, at, row["value"], row["low"], row["high"], int(row["n"]), control, holds)


def _above(low: float, high: float, line: float) -> bool | None:
    """Whether an interval lies above a line; None where it holds it."""
    return True if low > line else False if high < line else None


def _lower_ranks(results: Sequence[Result]) -> list[tuple[str, Any]]:
    members = {n: a for r in results for n, a in r.provenance.members.items()}
    lora = [(n, a) for n, a in members.items() if a.get("kind") == "lora" and a.get("rank")]
    return sorted(lora, key=lambda one: one[1]["rank"])


def _against_full(results: Sequence[Result], measure: str, few: float = 0.0) -> Iterator[Reading]:
    """LoRAs of low rank less the full fine-tune; few: below which a difference counts as none."""
    made = equivalence(results)
    if made is None:
        return
    table, low = made.table, {n for n, a in _lower_ranks(results) if a["rank"] <= LOW_RANK}
    nulls = table[table["metric"] == "measure"].set_index(["measure", "member"])["baseline"]
    rows = table[(table["metric"] == "difference") & (table["measure"] == measure)]
    for row in rows[rows["member"].isin(low)].to_dict("records"):
        holds = True if row["low"] > 0 else False if row["high"] < few else None
        control = float(nulls[measure, row["member"]]) if few else math.nan
        yield _reading(row["member"], row, control, holds)


def intruders(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _against_full(results, "intruders", FEW)


def forgets_more(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _against_full(results, "forgetting")


def by_rank(results: Sequence[Result]) -> Iterator[Reading]:
    """The loss of the lowest rank less that of the highest, in each Result."""
    for result in _of(results, "forgetting.retention"):
        rows = result.table[result.table["metric"] == "loss_change"].set_index("member")
        ranked = [name for name, _ in _lower_ranks([result]) if name in rows.index]
        if len(ranked) < 2:
            continue
        first, last = (_interval(rows.loc[name]) for name in (ranked[0], ranked[-1]))
        found = difference(first, last)
        what = f"{ranked[0]} less {ranked[-1]}"
        yield _reading(what, found._asdict(), math.nan, _above(found.low, found.high, 0))


def _interval(row: Any) -> Interval:
    return Interval(row["value"], row["low"], row["high"], int(row["n"]))


def _scaled(results: Sequence[Result]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(member, (arm, task is pre-training) -> row) at the scale nearest to the paper's 0.7."""
    for result in _of(results, "spectral.scale"):
        table = result.table
        at = min(table["x"].dropna().unique(), key=lambda x: abs(x - 0.7))
        rows = table[(table["x"] == at) & table["metric"].isin(("loss_change", "score_change"))]
        for member, own in rows[rows["arm"].isin(("top", "neighbour"))].groupby(
            "member", sort=False
        ):
            yield (
                str(member),
                {
                    f"{row['arm']} {row['metric']}": row
                    for row in own.to_dict("records")
                    if (row["metric"] == "loss_change") == (row["task"] == "pretraining")
                },
            )


def scaling_loss(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _scaled(results):
        top, beside = rows.get("top loss_change"), rows.get("neighbour loss_change")
        if top and beside:
            more = difference(_interval(top), _interval(beside))
            holds = True if top["high"] < 0 and more.high < 0 else False if more.low > 0 else None
            yield _reading(member, top, beside["value"], holds)


def scaling_score(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _scaled(results):
        top, beside = rows.get("top score_change"), rows.get("neighbour score_change")
        if top and beside:
            holds = True if top["low"] > -5 else False if top["high"] < 0 else None
            yield _reading(member, top, beside["value"], holds)


def _aucs(results: Sequence[Result]) -> Iterator[tuple[str, Any, Any]]:
    """(member, AUC of TuCo, AUC of OutputCo) of the first group over pre-training-like prompts."""
    for result in _of(results, "tuco.contribution"):
        groups = list(result.provenance.parameters["prompts"])
        plain = [g for g in groups if g.startswith(("pre-training", "plain"))] or groups[1:2]
        for group in plain:
            named = f"{groups[0]} > {group}"
            rows = result.table[result.table["group"] == named]
            for member, own in rows.groupby("member", sort=False):
                found = own.set_index("metric")
                if "auc:tuco" in found.index:
                    yield str(member), found.loc["auc:tuco"], found.loc["auc:output_co"]


def tuco_groups(results: Sequence[Result]) -> Iterator[Reading]:
    for member, ours, plain in _aucs(results):
        yield _reading(member, ours, plain["value"], _above(ours["low"], ours["high"], 0.5))


def tuco_separates(results: Sequence[Result]) -> Iterator[Reading]:
    for member, ours, plain in _aucs(results):
        holds = True if ours["low"] > plain["value"] else None
        if ours["value"] < plain["low"] or ours["high"] < plain["value"]:
            holds = False
        yield _reading(member, ours, plain["value"], holds)


def alpha(results: Sequence[Result]) -> Iterator[Reading]:
    for result in _of(results, "tuco.scaling"):
        for row in result.table[result.table["metric"] == "gain_score"].to_dict("records"):
            none = row["x"] == 1 or row["high"] <= 0
            holds = True if row["low"] > 0 else False if none else None
            yield _reading(row["member"], row, 0.0, holds, f"alpha {row['x']:g}")


def _gains(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(member, gains of grafts by arm and share) of each Result, of its own task."""
    for result in _of(results, "skills.localize"):
        table = result.table
        rows = table[table["metric"].isin(("gain", "ece")) & table["own"].eq(True)]
        for member, own in rows.groupby("member", sort=False):
            yield str(member), own


def _at(rows: pd.DataFrame, metric: str, arm: str, share: float) -> Any:
    own = rows[(rows["metric"] == metric) & (rows["arm"] == arm)]
    own = own[(own["sparsity"] - share).abs() < 1e-12]
    return own.iloc[0] if len(own) else None


def sparse(results: Sequence[Result]) -> Iterator[Reading]:
    """The best graft of at most a hundredth."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "gain") & rows["arm"].isin(("learned", "movement"))]
        own = own[own["sparsity"] <= 0.01]
        if own.empty:
            continue
        best = own.loc[own["value"].idxmax()]
        null = _at(rows, "gain", "random", best["sparsity"])
        yield _reading(
            *(
                f"{member}, {best['sparsity']:.1%}",
                best,
                math.nan if null is None else null["value"],
            ),
            _above(best["low"], best["high"], 0.95),
        )


def learned(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _gains(results):
        ours, theirs = (_at(rows, "gain", arm, 0.1) for arm in ("learned", "movement"))
        if ours is not None and theirs is not None:
            found = difference(_interval(ours), _interval(theirs))
            yield _reading(member, found._asdict(), math.nan, _above(found.low, found.high, 0))


def calibration(results: Sequence[Result]) -> Iterator[Reading]:
    """Of the learned graft that gains most, less the tuned model's."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "gain") & (rows["arm"] == "learned")]
        tuned = rows[(rows["metric"] == "ece") & (rows["arm"] == "tuned")]
        if own.empty or tuned.empty:
            continue
        graft = _at(rows, "ece", "learned", own.loc[own["value"].idxmax(), "sparsity"])
        found = difference(_interval(graft), _interval(tuned.iloc[0]))
        below = _above(-found.high, -found.low, 0)
        yield _reading(member, found._asdict(), math.nan, below)


def circuit(results: Sequence[Result]) -> Iterator[Reading]:
    made = equivalence(results)
    if made is None:
        return
    rows = made.table[made.table["metric"] == "measure"]
    for row in rows[rows["measure"] == "base's circuit"].to_dict("records"):
        holds = True if row["low"] > row["baseline"] and row["value"] >= 0.7 else None
        yield _reading(row["member"], row, row["baseline"], False if row["high"] < 0.7 else holds)


def _recovered(results: Sequence[Result], line: float | None) -> Iterator[Reading]:
    """The gain that patching the whole circuit recovers; line: None for what random heads do."""
    for result in _of(results, "patching.cross_model"):
        table = result.table
        if "group" not in table:
            continue
        rows = table[(table["metric"] == "recovered:logit_difference")]
        rows = rows[(rows["group"] == "whole circuit") & (rows["direction"] == "tuned->base")]
        for member, own in rows.groupby("member", sort=False):
            arms = own.set_index("arm")
            if {"patch", "random"} <= set(arms.index):
                ours, null = arms.loc["patch"], arms.loc["random"]
                above = null["high"] if line is None else line
                yield _reading(
                    str(member), ours, null["value"], _above(ours["low"], ours["high"], above)
                )


def carries(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _recovered(results, None)


def carries_all(results: Sequence[Result]) -> Iterator[Reading]:
    yield from _recovered(results, 0.9)


def _krs(results: Sequence[Result]) -> Iterator[tuple[str, Any, Any]]:
    """(member, best layer's KRS with the base's activations, with another prompt's) of members that
    unlearned: that answer less than half as often as the base."""
    for result in _of(results, "patching.cross_model"):
        table = result.table
        back = table[table.get("direction", pd.Series("", table.index)).eq("base->tuned")]
        for member, own in back.groupby("member", sort=False):
            score = own[own["metric"] == "score"].set_index("arm")["value"]
            krs = own[(own["metric"] == "krs") & own["component"].eq("mlp_hidden")]
            ours = krs[krs["arm"] == "patch"]
            if ours.empty or not score["destination"] < score["source"] / 2:
                continue
            best = ours.loc[ours["value"].idxmax()]
            other = krs[(krs["arm"] == "shuffled") & (krs["layer"] == best["layer"])]
            if len(other):
                yield str(member), best, other.iloc[0]


def restored(results: Sequence[Result]) -> Iterator[Reading]:
    for member, ours, other in _krs(results):
        holds = _above(ours["low"], ours["high"], 0.7)
        yield _reading(member, ours, other["value"], holds, f"layer {ours['layer']}")


def restored_knowledge(results: Sequence[Result]) -> Iterator[Reading]:
    for member, ours, other in _krs(results):
        found = difference(_interval(ours), _interval(other))
        holds = _above(found.low, found.high, 0.1)
        yield _reading(member, found._asdict(), math.nan, holds, f"layer {ours['layer']}")


def hidden(results: Sequence[Result]) -> Iterator[Reading]:
    for result in _of(results, "forgetting.verdict"):
        table = result.table
        output = table[table["arm"] == "output"].set_index(["member", "task"])
        says = {"SUPPRESSED": True, "ERASED": False}
        for row in table[table["metric"] == "verdict"].to_dict("records"):
            if row["reading"] != "KEPT":
                key = row["member"], row["task"]
                shown = output.loc[key] if key in output.index else MISSING
                yield _reading(", ".join(key), shown, 1.0, says.get(row["reading"]))


def _lost(results: Sequence[Result], analysis: str, metric: str) -> Iterator[tuple[str, Any]]:
    """(member and task, row) of shares of lost answers, where there are enough of them."""
    for result in _of(results, analysis):
        rows = result.table[result.table["metric"] == metric]
        for row in rows[rows["n"] >= LEAST].to_dict("records"):
            yield f"{row['member']}, {row['task']}", row


def conjugate(results: Sequence[Result]) -> Iterator[Reading]:
    for what, row in _lost(results, "forgetting.conjugate", "recovery_lost"):
        if row["arm"] == "best":
            yield _reading(what, row, math.nan, _above(row["low"], row["high"], 0.5))


def pruned(results: Sequence[Result]) -> Iterator[Reading]:
    for result in _of(results, "forgetting.prune"):
        rows = result.table[result.table["metric"] == "regained"]
        for (member, task), own in rows.groupby(["member", "task"], sort=False):
            arms = own.set_index("arm")
            if {"best ranked", "best random"} <= set(arms.index):
                ours, null = arms.loc["best ranked"], arms.loc["best random"]
                holds = True if ours["low"] > max(null["high"], 0) else None
                none = ours["high"] <= max(null["value"], 0)
                yield _reading(f"{member}, {task}", ours, null["value"], False if none else holds)


def revived(results: Sequence[Result]) -> Iterator[Reading]:
    for what, row in _lost(results, "forgetting.revive", "savings_share_lost"):
        if row["control"] == "relabelled":
            yield _reading(what, row, math.nan, _above(row["low"], row["high"], 0.5))


def path(results: Sequence[Result]) -> Iterator[Reading]:
    """The largest rise of another task at the point chosen on other prompts."""
    for result in _of(results, "forgetting.interpolate"):
        table = result.table
        rows = table[(table["arm"] == "best") & (table["metric"] == "score_change")]
        for member, own in rows.groupby("member", sort=False):
            task, others = own[own["own"].eq(True)].iloc[0], own[~own["own"].eq(True)]
            if others.empty:
                continue
            best = others.loc[others["value"].idxmax()]
            holds = True if task["high"] >= 0 and best["low"] > 0 else None
            lost = task["high"] < 0 or best["high"] <= 0
            at = f"{best['task']} at {best['x']:g}"
            yield _reading(str(member), best, task["value"], False if lost else holds, at)
