"""What is read of each claim: one function a claim, over the Results of one base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from workbench.findings.equivalence import ARMS, DIFFERENT, MEASURES, equivalence
from workbench.results.result import Result
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


def _ranked(results: Sequence[Result]) -> list[tuple[str, Any]]:
    members = {n: a for r in results for n, a in r.provenance.members.items()}
    lora = [(n, a) for n, a in members.items() if a.get("kind") == "lora" and a.get("rank")]
    return sorted(lora, key=lambda one: one[1]["rank"])


def intruders(results: Sequence[Result]) -> Iterator[Reading]:
    """A LoRA's share where full fine-tuning's is known to be below FEW."""
    for row, own, full in _low_ranks(results, "intruders"):
        holds = True if row["low"] > 0 and full["high"] < FEW else None
        none = row["high"] < FEW or full["low"] > FEW
        yield _reading(row["member"], own, float(own["baseline"]), False if none else holds)


def forgets_more(results: Sequence[Result]) -> Iterator[Reading]:
    """The difference, unless the scores are known to differ: those learned something else."""
    scores = {row["member"]: row["says"] for row, _, _ in _low_ranks(results, "score")}
    for row, _, _ in _low_ranks(results, "forgetting"):
        same = scores.get(row["member"]) != DIFFERENT
        yield _reading(
            row["member"], row, math.nan, _above(row["low"], row["high"], 0) if same else None
        )


def _low_ranks(results: Sequence[Result], measure: str) -> Iterator[tuple[Any, Any, Any]]:
    """(difference, own row, the full fine-tune's row) of LoRAs of low rank."""
    (analysis,) = {one.analysis for one in MEASURES if one.name == measure}
    made = equivalence(_of(results, analysis))
    if made is None:
        return
    table, low = made.table, {n for n, a in _ranked(results) if a["rank"] <= LOW_RANK}
    own = table[(table["metric"] == "measure") & (table["measure"] == measure)].set_index("member")
    rows = table[(table["metric"] == "difference") & (table["measure"] == measure)]
    for row in rows[rows["member"].isin(low)].to_dict("records"):
        yield row, own.loc[row["member"]], own.loc[row["versus"]]


def by_rank(results: Sequence[Result]) -> Iterator[Reading]:
    """The loss of the lowest rank less that of the highest, in each Result."""
    for result in _of(results, "forgetting.retention"):
        rows = result.table[result.table["metric"] == "loss_change"].set_index("member")
        ranked = [(name, about["rank"]) for name, about in _ranked([result]) if name in rows.index]
        if not ranked or ranked[0][1] == ranked[-1][1]:
            continue
        first, last = (Interval.of(rows.loc[name]) for name, _ in (ranked[0], ranked[-1]))
        found = difference(first, last)
        what = f"{ranked[0][0]} less {ranked[-1][0]}"
        yield _reading(what, found._asdict(), math.nan, _above(found.low, found.high, 0))


def _scaled(results: Sequence[Result]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(member, scale, "arm metric" -> row) at the scale nearest to the paper's 0.7."""
    for result in _of(results, "spectral.scale"):
        table = result.table
        tried = [x for x in table["x"].dropna().unique() if abs(x - 0.7) < 0.21]
        if not tried:
            continue
        at = min(tried, key=lambda x: abs(x - 0.7))
        rows = table[(table["x"] == at) & table["metric"].isin(("loss_change", "score_change"))]
        rows = rows[rows["arm"].isin(("top", "neighbour"))]
        for member, own in rows.groupby("member", sort=False):
            found = {
                f"{row['arm']} {row['metric']}": row
                for row in own.to_dict("records")
                if (row["metric"] == "loss_change") == (row["task"] == "pretraining")
            }
            if {"top loss_change", "neighbour loss_change"} <= set(found):
                yield str(member), float(at), found


def scaling_loss(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, rows in _scaled(results):
        top, beside = rows["top loss_change"], rows["neighbour loss_change"]
        yield _reading(member, top, beside["value"], _takes_back(top, beside), f"scale {at:g}")


def _takes_back(top: Any, beside: Any) -> bool | None:
    """Whether the loss falls, and falls by more than with the neighbour."""
    more = difference(Interval.of(top), Interval.of(beside))
    if top["high"] < 0 and more.high < 0:
        return True
    return False if top["low"] > 0 or more.low > 0 else None


def scaling_score(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose forgetting was taken back."""
    for member, at, rows in _scaled(results):
        taken = _takes_back(rows["top loss_change"], rows["neighbour loss_change"])
        top, beside = rows.get("top score_change"), rows.get("neighbour score_change")
        if taken and top and beside:
            holds = _above(top["low"], top["high"], -5)
            yield _reading(member, top, beside["value"], holds, f"scale {at:g}")


def _aucs(results: Sequence[Result]) -> Iterator[tuple[str, str, Any, Any]]:
    """(member, group, AUC of TuCo, AUC of OutputCo) of the first group over pre-training-like
    ones."""
    for result in _of(results, "tuco.contribution"):
        groups = list(result.provenance.parameters["prompts"])
        plain = [g for g in groups if g.startswith(("pre-training", "plain"))] or groups[1:2]
        for group in plain:
            rows = result.table[result.table["group"] == f"{groups[0]} > {group}"]
            for member, own in rows.groupby("member", sort=False):
                found = own.set_index("metric")
                if {"auc:tuco", "auc:output_co"} <= set(found.index):
                    yield str(member), group, found.loc["auc:tuco"], found.loc["auc:output_co"]


def tuco_groups(results: Sequence[Result]) -> Iterator[Reading]:
    for member, group, ours, plain in _aucs(results):
        holds = _above(ours["low"], ours["high"], 0.5)
        yield _reading(member, ours, plain["value"], holds, f"over {group}")


def tuco_separates(results: Sequence[Result]) -> Iterator[Reading]:
    for member, group, ours, plain in _aucs(results):
        more = difference(Interval.of(ours), Interval.of(plain))
        holds = _above(more.low, more.high, 0)
        yield _reading(member, ours, plain["value"], holds, f"over {group}")


def alpha(results: Sequence[Result]) -> Iterator[Reading]:
    """Of members whose score as tuned leaves room for a gain."""
    for result in _of(results, "tuco.scaling"):
        table = result.table
        tuned = table[(table["metric"] == "score") & (table["x"] == 1)].set_index("member")["value"]
        for row in table[table["metric"] == "gain_score"].to_dict("records"):
            if tuned.get(row["member"], 0.0) >= 1:
                continue
            certain = row["low"] < row["high"]
            holds = _above(row["low"], row["high"], 0) if certain else None
            holds = False if row["x"] == 1 else holds
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
    """The largest graft of at most a hundredth, learned where one was."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "gain") & (rows["sparsity"] <= 0.01)].dropna(subset="value")
        arm = next((a for a in ARMS if (own["arm"] == a).any()), None)
        if arm is None:
            continue
        own = own[own["arm"] == arm]
        best = own.loc[own["sparsity"].idxmax()]
        null = _at(rows, "gain", "random", best["sparsity"])
        control = math.nan if null is None else null["value"]
        holds = _above(best["low"], best["high"], 0.95)
        yield _reading(member, best, control, holds, f"{best['sparsity']:.2%}")


def learned(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _gains(results):
        ours, theirs = (_at(rows, "gain", arm, 0.1) for arm in ARMS)
        if ours is not None and theirs is not None:
            found = difference(Interval.of(ours), Interval.of(theirs))
            yield _reading(member, found._asdict(), math.nan, _above(found.low, found.high, 0))


def calibration(results: Sequence[Result]) -> Iterator[Reading]:
    """The largest learned graft's error less the tuned model's, each beyond what perfect
    calibration would give with so few prompts."""
    for member, rows in _gains(results):
        own = rows[(rows["metric"] == "ece") & (rows["arm"] == "learned")]
        tuned = rows[(rows["metric"] == "ece") & (rows["arm"] == "tuned")]
        if own.empty or tuned.empty:
            continue
        graft = own.loc[own["sparsity"].idxmax()]
        found = difference(_excess(graft), _excess(tuned.iloc[0]))
        below = _above(-found.high, -found.low, 0)
        yield _reading(member, found._asdict(), math.nan, below, f"{graft['sparsity']:.2%}")


def _excess(row: Any) -> Interval:
    found = Interval.of(row)
    value, low, high = (edge - row["baseline"] for edge in found[:3])
    return Interval(value, low, high, found.n)


def circuit(results: Sequence[Result]) -> Iterator[Reading]:
    """The base's circuit in the member, against random heads; of heads kept at all tokens it says
    nothing."""
    for result in _of(results, "patching.circuit"):
        if result.provenance.parameters.get("keep") != "position":
            continue
        table = result.table
        rows = table[(table["metric"] == "faithfulness:score") & (table["side"] == "tuned")]
        for member, own in rows[rows["circuit"] == "base"].groupby("member", sort=False):
            yield from _beyond(str(member), own)


def _beyond(member: str, rows: pd.DataFrame, at: str = "") -> Iterator[Reading]:
    """A patch against its random control, where both are known: holds where it is above."""
    arms = rows.dropna(subset="value").set_index("arm")
    if {"patch", "random"} <= set(arms.index):
        ours, null = arms.loc["patch"], arms.loc["random"]
        more = difference(Interval.of(ours), Interval.of(null))
        yield _reading(member, ours, null["value"], _above(more.low, more.high, 0), at)


def _groups(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(member, arms) of the gain that patching the whole circuit recovers."""
    for result in _of(results, "patching.cross_model"):
        table = result.table
        if "group" not in table:
            continue
        rows = table[(table["metric"] == "recovered:logit_difference")]
        rows = rows[(rows["group"] == "whole circuit") & (rows["direction"] == "tuned->base")]
        yield from ((str(member), own) for member, own in rows.groupby("member", sort=False))


def carries(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _groups(results):
        yield from _beyond(member, rows)


def carries_all(results: Sequence[Result]) -> Iterator[Reading]:
    for member, rows in _groups(results):
        for ours in rows[rows["arm"] == "patch"].to_dict("records"):
            yield _reading(member, ours, math.nan, _above(ours["low"], ours["high"], 0.9))


def crossed(results: Sequence[Result]) -> Iterator[Reading]:
    """The layer whose attention recovers most of the gain, of members that gained there."""
    for result in _of(results, "patching.cross_model"):
        table = result.table
        if "layer" not in table or "direction" not in table:
            continue
        rows = table[table["component"].eq("attn_out") & table["direction"].eq("tuned->base")]
        rows = rows[rows["metric"] == "recovered:logit_difference"].dropna(subset=["value", "low"])
        for member, own in rows.groupby("member", sort=False):
            ours, null = own[own["arm"] == "patch"], own[own["arm"] == "random"]
            if len(ours) and len(null):
                best = ours.loc[[ours["value"].idxmax()]]
                layers = f"layer {best['layer'].iloc[0]} of {len(ours)}"
                yield from _beyond(str(member), pd.concat([best, null.head(1)]), layers)


def _krs(results: Sequence[Result]) -> Iterator[tuple[str, str, Any, Any]]:
    """(member, layer, its KRS with the base's activations, with another prompt's) of members that
    unlearned: that answer less than half as often as the base. The layer is the best of all."""
    for result in _of(results, "patching.cross_model"):
        table = result.table
        back = table[table.get("direction", pd.Series("", table.index)).eq("base->tuned")]
        for member, own in back.groupby("member", sort=False):
            score = own[own["metric"] == "score"].set_index("arm")["value"]
            krs = own[(own["metric"] == "krs") & own["component"].eq("mlp_hidden")]
            ours = krs[krs["arm"] == "patch"].dropna(subset="value")
            if ours.empty or not score["destination"] < score["source"] / 2:
                continue
            best = ours.loc[ours["value"].idxmax()]
            other = krs[(krs["arm"] == "shuffled") & (krs["layer"] == best["layer"])]
            if len(other):
                yield str(member), f"layer {best['layer']} of {len(ours)}", best, other.iloc[0]


def restored(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, ours, other in _krs(results):
        yield _reading(member, ours, other["value"], _above(ours["low"], ours["high"], 0.7), at)


def restored_knowledge(results: Sequence[Result]) -> Iterator[Reading]:
    for member, at, ours, other in _krs(results):
        found = difference(Interval.of(ours), Interval.of(other))
        yield _reading(member, found._asdict(), math.nan, _above(found.low, found.high, 0.1), at)


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
    """Of members and tasks that lost what can be told from nothing."""
    for result in _of(results, "forgetting.prune"):
        for (member, task), own in result.table.groupby(["member", "task"], sort=False):
            share = own[(own["metric"] == "recovered") & (own["arm"] == "best ranked")]
            arms = own[own["metric"] == "regained"].set_index("arm")
            if share["value"].notna().any() and {"best ranked", "best random"} <= set(arms.index):
                ours, null = arms.loc["best ranked"], arms.loc["best random"]
                more = difference(Interval.of(ours), Interval.of(null))
                holds = True if ours["low"] > 0 and more.low > 0 else None
                none = ours["high"] < 0 or more.high < 0
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
            mine = own["own"].eq(True)
            task, others = own[mine], own[~mine].dropna(subset="value")
            if task.empty or others.empty:
                continue
            cost, best = task.iloc[0], others.loc[others["value"].idxmax()]
            holds = True if cost["high"] >= 0 and best["low"] > 0 else None
            lost = cost["high"] < 0 or best["high"] <= 0
            at = f"{best['task']}, best of {len(others)}, at {best['x']:g}"
            yield _reading(str(member), best, cost["value"], False if lost else holds, at)
