"""What does an analysis say in one sentence, with its numbers, n and intervals?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd

from workbench.figures import (
    associated,
    behaviour,
    delta,
    equivalence,
    forgetting,
    forgotten,
    grafted,
    intruders,
    lenses,
    patching,
    similarity,
    sweep,
    tuco,
)
from workbench.figures.wording import change, interval
from workbench.results import intruder_counts as counting
from workbench.results.result import Result, how_many_changed, matrix_columns
from workbench.stats import bootstrap

LAMBDA = 0.7  # where arXiv 2410.21228 reads its sweep
Findings = tuple[str, list[str]]


def headline(result: Result) -> str:
    """One sentence per analysis, derived from its table alone.

    An analysis without a sentence of its own gets one that says what its table holds.
    """
    lead, parts = findings(result)
    return f"{lead} — {'; '.join(parts)}." if parts else f"{lead}."


def findings(result: Result) -> tuple[str, list[str]]:
    """The headline in its parts: what was measured, and a clause per member that begins with it."""
    return SENTENCES.get(result.analysis, _generic)(result)


def _intruders(result: Result) -> Findings:
    eps, k = counting.settings(result)
    parts = []
    by = counting.intruder_counts(result, eps, k, by=("member", *matrix_columns(result.table)))
    counts = counting.intruder_counts(result, eps, k).set_index(["member", "arm"])
    changed = how_many_changed(result.table)
    for name in result.members:
        tuned = by[(by["member"] == name) & (by["arm"] == counting.TUNED)]
        if not tuned["n"].sum():
            parts.append(f"{name}: no matrix changed")
            continue
        share = bootstrap(100 * tuned["fraction"], tuned["n"])
        count = int(tuned["count"].sum())
        nulls = [
            _null(label, counts.loc[(name, arm)], count)
            for arm, label in counting.NULLS.items()
            if (name, arm) in counts.index
        ]
        told = [f"{interval(share.value, share.low, share.high, '.1f')}%", *nulls]
        parts.append(
            f"{name}: {count} of {tuned['n'].sum()} ({'; '.join([*told, *_of(changed[name])])})"
        )
    return f"Intruders among the top-{k} vectors at eps {eps:g}, {_over(changed)}", parts


def _null(label: str, null: pd.Series, count: int) -> str:
    """A null's count; of several draws with their spread, and what that says of the member's."""
    if pd.isna(null["low"]):
        return f"{label}: {null['count']:g}"
    said = counting.against_chance(count, null["low"], null["high"])
    return f"{label}: {interval(null['count'], null['low'], null['high'], '.0f')}, {said}"


def _over(changed: Mapping[str, tuple[int, int]]) -> str:
    """What the intervals of a headline are over."""
    every = {count for pair in changed.values() for count in pair}
    if len(every) == 1:
        return f"95% interval over {every.pop()} matrices"
    return "95% interval over the matrices that changed"


def _of(changed: tuple[int, int]) -> list[str]:
    """How many matrices changed, where not all did."""
    some, every = changed
    return [f"{some} of {every} matrices changed"] if some < every else []


def _spectrum(result: Result) -> Findings:
    rows = result.metric("effective_rank")
    rows = rows[rows["value"] > 0]
    changed = how_many_changed(result.table)
    parts = []
    for name in result.members:
        mean = bootstrap(rows.loc[rows["member"] == name, "value"])
        if not mean.n:
            parts.append(f"{name}: no matrix changed")
            continue
        about = result.provenance.members[name]
        ceiling = about.get("rank") if about.get("kind") == "lora" else None
        beside = [
            f"n = {mean.n}",
            *([f"ceiling {ceiling}"] if ceiling else []),
            *_of(changed[name]),
        ]
        parts.append(f"{name}: {interval(mean.value, mean.low, mean.high)} ({', '.join(beside)})")
    return "Mean effective rank of the change, 95% interval over the n matrices that changed", parts


def _similarity(result: Result) -> Findings:
    top = 10
    parts = []
    for name, named in similarity.matrices(result).items():
        best = [float(value) for array in named.values() for value in array[:top].max(1)]
        weak = min(best, default=float("nan"))
        parts.append(
            f"{name}: median {pd.Series(best).median():.3f}, weakest {weak:.3f} "
            f"(n = {len(best)} vectors, matrices: {len(named)})"
        )
    return f"Largest cosine of the top-{top} tuned vectors with the base", parts


def _scale(result: Result) -> Findings:
    table = result.table
    at = min(table["x"].dropna().unique(), key=lambda x: (abs(x - LAMBDA), x))
    here = replace(result, table=table[table["x"] == at])
    parts = []
    for name in result.members:
        arms = []
        for arm in ("top", "neighbour"):
            rows = replace(here, table=here.table[here.table["arm"] == arm])
            said = [
                f"{what} {change(measured.loc[name], '+.2f')}%"
                for what, measured in _pair(rows, result, "score_change")
                if name in measured.index
            ]
            if said:
                arms.append(f"{sweep.LABELS[arm]}: {', '.join(said)}")
        parts.append(f"{name}: {'; '.join(arms) or 'nothing to scale'}")
    return f"Scaled by {at:g}, change against as tuned ({_items(here)})", parts


def _retention(result: Result) -> Findings:
    (what, score), (loss_of, loss) = _pair(result, result, "score")
    parts = []
    for name in result.members:
        said = []
        if name in loss.index:
            said.append(f"{loss_of} {change(loss.loc[name], '+.3f')} nats/token")
        if name in score.index:
            base = score.loc[name, "baseline"]
            before = "" if pd.isna(base) else f"{base:.2f} to "
            said.append(f"{what} {before}{change(score.loc[name], '.2f')}")
        parts.append(f"{name}: {', '.join(said) or 'not measured'}")
    return f"Against the base ({_items(result)})", parts


def _contribution(result: Result) -> Findings:
    names = tuco.groups_of(result)
    means = result.metric("mean:tuco").set_index(["member", "group"])
    parts = []
    for member in result.members:
        said = [f"{name} {change(means.loc[member, name], '.2f')}" for name in names]
        for measure, label in (("tuco", "TuCo"), ("output_co", "OutputCo")):
            separation = tuco.separation(result, member, measure).head(1)
            said += [
                f"AUC of {label} over {other} {change(row, '.2f')}"
                for other, row in separation.iterrows()
            ]
        for other, row in tuco.separation(result, member, "tuco", matched=True).head(1).iterrows():
            pairs = int(row["n"])
            by = "length and perplexity" if result.has("base_loss") else "length"
            said.append(
                f"matched in {by} {change(row, '.2f')} (n = {pairs} pairs)"
                if pairs
                else f"no prompt of {other} matches one in {by}"
            )
        parts.append(f"{member}: {', '.join(said)}")
    few, many = int(means["n"].min()), int(means["n"].max())
    count = f"{few}" if few == many else f"{few} to {many}"
    return f"Mean TuCo, 95% interval over {count} prompts a group", parts


def _scaling(result: Result) -> Findings:
    best = result.metric("best").set_index("member")
    gain = result.metric("gain_score").set_index("member")
    parts = [
        f"{member}: α = {best.loc[member, 'value']:g}, score "
        f"{change(gain.loc[member], '+.3f')} (n = {int(gain.loc[member, 'n'])})"
        for member in result.members
    ]
    return "Best α on half of the prompts, and its gain over α = 1 on the other half", parts


def _located(result: Result) -> Findings:
    """The strongest patch of each component, beside a random one."""
    table = result.table
    unlearning = result.provenance.parameters.get("answer") == "base"
    metric = "krs" if unlearning and result.has("krs") else patching.metric_of(result)
    by = "side" if "side" in table else "direction"
    parts = []
    for member in result.members:
        own = table[(table["member"] == member) & (table["metric"] == metric)]
        said = []
        for (side, component), rows in own.groupby([by, "component"], sort=False):
            patch = rows[rows["arm"] == "patch"].dropna(subset="value")
            if patch.empty:
                said.append(f"{side}, {component}: undefined")
                continue
            if patch["low"].isna().all():
                said.append(f"{side}, {component}: not meaningful, the two runs hardly differ")
                continue
            held = rows[rows["arm"] == "picked"].dropna(subset="value")
            best = held.iloc[0] if len(held) else patch.loc[patch["value"].idxmax()]
            random = rows.loc[rows["arm"] == "random", "value"]
            beside = f", random {random.mean():.2f}" if len(random) else ""
            said.append(f"{side}, {component} {_where(best)}: {change(best, '.2f')}{beside}")
        parts.append(f"{member}: {', '.join(said)}")
    held = (table["arm"] == "picked") & (table["metric"] == metric)
    prompts = int(table.loc[held if held.any() else table["arm"] == "patch", "n"].max())
    what = metric.replace("recovered:", "recovered ").replace("_", " ")
    same = "chosen and measured on the same" if not held.any() else "chosen on others, measured on"
    return f"Strongest patch by {what}, {same} {prompts} prompts (95%)", parts


def _where(row: pd.Series) -> str:
    if isinstance(row.get("group"), str):
        return f"({row['group']})"
    told = [f"layer {row['layer']}"] if pd.notna(row.get("layer")) else ["outside the blocks"]
    told += [f"head {row['head']}"] if pd.notna(row.get("head")) else []
    told += [f"at {row['position']}"] if row.get("position") not in (None, "all") else []
    return f"({', '.join(map(str, told))})"


def _circuit(result: Result) -> Findings:
    table = result.table
    rows = table[table["metric"] == "faithfulness:score"]
    shared = table[(table["metric"] == "jaccard") & table["group"].isna()]
    parts = []
    for member in result.members:
        own = rows[rows["member"] == member].set_index(["circuit", "side", "arm"])
        said = []
        for circuit, side, told in (
            ("base", "base", "the base's circuit in the base"),
            ("base", "tuned", "in the member"),
            ("tuned", "tuned", "the member's own"),
        ):
            if (circuit, side, "patch") in own.index:
                value = change(own.loc[(circuit, side, "patch")], ".2f")
                drawn = (circuit, side, "random")
                beside = f" (random {own.loc[drawn, 'value']:.2f})" if drawn in own.index else ""
                said.append(f"{told} {value}{beside}")
        overlap = shared[(shared["member"] == member) & (shared["circuit"] == "base & tuned")]
        for _, row in overlap.iterrows():
            said.append(f"heads in common {row['value']:.2f} (chance {row['baseline']:.2f})")
        parts.append(f"{member}: {', '.join(said)}")
    prompts = int(rows.loc[rows["arm"] == "patch", "n"].max())
    return f"Faithfulness by score, 95% interval over {prompts} prompts", parts


def _path(result: Result) -> Findings:
    """The head that supports the answer most, per side; without foils by its probability."""
    foils = result.has("logit_change")
    own = result.metric("logit_change" if foils else "effect")
    own = own[own["arm"] == "patch"]
    parts = []
    for (member, side), rows in own.groupby(["member", "side"], sort=False):
        if rows["value"].isna().all():
            parts.append(f"{member}: {side} gives none of the answers")
            continue
        best = rows.loc[rows["value"].idxmin()]
        parts.append(f"{member}: {side} {_where(best)} {change(best, '.2f')}")
    what = "the logit difference" if foils else "the answer's probability, relative,"
    return f"Largest fall of {what} by one head, {int(own['n'].max())} prompts", parts


def _lens(result: Result) -> Findings:
    """The first layer whose stream already reads the answer best, per side."""
    own = result.metric("score")
    parts = []
    for member in result.members:
        said = []
        for side in ("base", "tuned"):
            rows = own[(own["member"] == member) & (own["side"] == side)].sort_values("layer")
            last = rows.iloc[-1]
            half = rows[rows["value"] >= last["value"] / 2].iloc[0]
            said.append(
                f"{side} {change(last, '.2f')} at the end, half of it from layer {half['layer']}"
            )
        parts.append(f"{member}: {', '.join(said)}")
    return f"Answers read off the stream, {int(own['n'].max())} prompts", parts


def _patterns(result: Result) -> Findings:
    """The head whose last-token pattern moved most."""
    own = result.metric("tvd")
    own = own[own["position"] == "last token"]
    parts = []
    for member in result.members:
        rows = own[own["member"] == member]
        best = rows.loc[rows["value"].idxmax()]
        parts.append(
            f"{member}: layer {best['layer']}, head {best['head']} {change(best, '.2f')}, "
            f"median head {rows['value'].median():.2f}"
        )
    return f"Largest change of a last-token pattern (0: none), {int(own['n'].max())} prompts", parts


def _attribution(result: Result) -> Findings:
    """How well the gradient ranks what exact patches show."""
    own = result.metric("rank_correlation")
    parts = []
    for member in result.members:
        said = [
            f"{row['side']}, {row['group']} entries {change(row, '.2f')} (n = {int(row['n'])})"
            for _, row in own[own["member"] == member].iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return "Spearman of attribution with the exact patch", parts


def _mask(result: Result) -> Findings:
    scores = result.metric("score")
    sizes = result.metric("size")
    parts = []
    for member in result.members:
        said = []
        for side, rows in scores[scores["member"] == member].groupby("side", sort=False):
            own = rows.set_index("arm")
            size = sizes[(sizes["member"] == member) & (sizes["side"] == side)].iloc[0]
            said.append(
                f"{side} {change(own.loc['patch'], '.2f')} with {int(size['value'])} of "
                f"{int(size['n'])} (random {own.loc['random', 'value']:.2f})"
            )
        parts.append(f"{member}: {', '.join(said)}")
    kind = result.provenance.parameters.get("kind", "the desideratum")
    return f"Pairs that turn to the {kind}, 95% interval over {int(scores['n'].max())} pairs", parts


def _pair(rows: Result, whole: Result, metric: str) -> list[tuple[str, pd.DataFrame]]:
    """(name, measured) of `metric` on the fine-tuned task and of the pre-training loss change."""
    task = forgetting.task_of(whole)
    return [
        (f"score on {task}", forgetting.measured(rows, task, metric)),
        (
            "pre-training loss",
            forgetting.measured(rows, forgetting.PRETRAINING, "loss_change"),
        ),
    ]


def _items(result: Result) -> str:
    """How many items the intervals are over, e.g. "95% intervals over 200 prompts, 64 texts"."""
    task = forgetting.task_of(result)
    said = []
    for of, what in ((task, "prompts"), (forgetting.PRETRAINING, "texts")):
        counts = result.table.loc[result.table["task"] == of, "n"].dropna()
        if len(counts):
            few, many = int(counts.min()), int(counts.max())
            said.append(f"{few} {what}" if few == many else f"{few} to {many} {what}")
    return f"95% intervals over {', '.join(said)}"


def _generic(result: Result) -> Findings:
    metrics = list(dict.fromkeys(result.table["metric"]))
    others = " and others" if len(metrics) > 6 else ""
    members = ", ".join(result.members)
    return f"{len(result.table)} values of {', '.join(metrics[:6])}{others} for {members}", []


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    equivalence.KEY: equivalence.sentence,
    intruders.KEY: _intruders,
    delta.KEY: _spectrum,
    similarity.KEY: _similarity,
    sweep.KEY: _scale,
    forgetting.KEY: _retention,
    tuco.KEY: _contribution,
    tuco.SCALING: _scaling,
    patching.ACTIVATION: _located,
    patching.CROSS: _located,
    patching.RESTORE: _located,
    patching.CIRCUIT: _circuit,
    patching.MASK: _mask,
    patching.PATH: _path,
    lenses.LENS: _lens,
    lenses.PATTERNS: _patterns,
    lenses.ATTRIBUTION: _attribution,
    **grafted.SENTENCES,
    **forgotten.SENTENCES,
    associated.KEY: associated.sentence,
    **behaviour.SENTENCES,
}
