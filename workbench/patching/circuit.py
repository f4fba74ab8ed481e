"""Is it the base's own circuit that the fine-tuned model uses, and does the circuit suffice?

A circuit is a set of heads in groups, each group at its own position in the prompt. Every head is
ablated (by default its z is replaced by the mean over other prompts at the same token) at every
token, but a circuit's heads where their group acts; MLPs stay. With F the mean score and M the
whole model,

    faithfulness = F(C) / F(M)                         for accuracy, as in the paper
    faithfulness = (F(C) - F(0)) / (F(M) - F(0))       for the logit difference, 0: all ablated
    incompleteness = mean over parts K of C of |F(M without K) - F(C without K)|
    minimality of a head = F(C) - F(C without it)

(Wang et al. 2022, arXiv 2211.00593; Prakash et al. 2024, arXiv 2402.14811, for which heads stay
active where.) With keep="everywhere" a circuit's heads stay active at every token: this is another
measure, and a larger one, since it includes what the same heads do at other tokens. A head left out
(K) is ablated at every token. The last token stands for all that predict an answer's tokens; a
group that is not in `paths` has no position of its own and stays active everywhere. Circuits are
found on one half of the prompts and judged on the other, together with random circuits of as many
heads. It misleads if ablated heads take the MLPs away from their usual inputs, and a circuit of
nearly all heads is always faithful: compare with the random ones, and look at the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Site
from workbench.models.sides import named_dtype
from workbench.patching import places as meant
from workbench.patching import sweep_rows
from workbench.patching.activation import KNOWN, SIDES, asked, partners, require_sides
from workbench.patching.circuit_discovery import GROUPS, Circuit, Group, discover, heads, nearest
from workbench.patching.circuit_files import placed
from workbench.patching.circuit_runs import Judge, Kept
from workbench.patching.metrics import Asked, metric_of
from workbench.patching.patches import Position, require_one_width
from workbench.patching.path_ends import Head, every_head
from workbench.patching.per_prompt import stored
from workbench.patching.replacements import (
    OTHER,
    Running,
    With,
    require_with,
)
from workbench.patching.sweep import Side
from workbench.patching.sweep_plan import counted
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.stats import shares as scored
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, pad_id
from workbench.tasks.prompts import require_halves

KEY = "patching.circuit"
RANDOM = 10
RUNS = ("model", "all ablated", "circuit", "random")
Keep = Literal["position", "everywhere"]
KEEP: tuple[Keep, ...] = get_args(Keep)


@analysis(
    "Does the tuned model answer with the base's own circuit?",
    paper="arXiv 2402.14811",
    example="--prompts boxes.jsonl --out circuits",
    passes=80,
    plans=True,
    takes={"prompts": "task", "corrupted": "corrupted"},
    quick={"depth": 1, "random": 3, "minimal": False},
    few={"prompts": 16, "corrupted": 16},
)
def circuit(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    circuits: Mapping[str, Mapping[str, Sequence[Head | str]]] | None = None,
    sides: Sequence[str] = SIDES,
    paths: Sequence[Group] = GROUPS,
    depth: int | None = None,
    most: int = 8,
    keep: Keep = "position",
    metric: Asked | None = None,
    with_: With = "mean",
    random: int = RANDOM,
    minimal: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Find the circuit of each side, and judge every circuit in both sides.

    prompts: boxes prompts with answers; a random half finds the circuits, the other half judges
    them. corrupted: as in `activation`. circuits: name -> group -> [(layer, head) or
    "LAYER.HEAD@PLACE", ...], further circuits to judge: one's own (`load_circuits`), or those of
    other models (`circuits_of`). sides: the models in
    which circuits are found and judged: base, tuned. paths: the groups that are looked for, in
    order; those of `circuit_discovery.GROUPS`. depth: the number of groups that are looked for,
    from the logits back; None for all. most: the largest number of heads in a group. keep: where a
    circuit's heads stay active, at their group's "position" (the paper's definition), or
    "everywhere". metric: as in `activation`; what circuits are found and, beside the usual two,
    judged by. with_: what stands for an ablated head's z: "mean", over the other half's prompts, at
    each token where all are of one length; "zero", "mean_position", "resample", "corrupted" or
    "other", as in `activation`. random: the number of random circuits of the same size, at the same
    positions. minimal: judge each head and group by leaving it out. dtype: "float32" or "bfloat16";
    None means as stored. large: as in `activation`; the plan counts the most heads that can be
    found.

    The command line takes 16 prompts of a file, the first group, 3 random circuits and no
    minimality; with --full all prompts, six groups, 10 and minimality.

    Returns a Result with columns side (judged in), circuit (found in, "base" or "tuned", or its
    name), group, layer, head, arm, metric. `effect` and `logit_change`: the path effects the
    circuits were found by; `chosen`: its heads; `size`; `score`, `logit_difference` and the
    `metric` with their `faithfulness:` (arms "patch" and "random", of size-matched ones),
    `incompleteness:`, `minimality:` (per head); `shared`, `jaccard`: overlap of two circuits ("base
    & tuned"), its baseline the mean of random ones of the two sizes. 95% intervals over prompts, or
    over the circuits for arm "random". tensors "per_prompt/SIDE/CIRCUIT, RUN/METRIC", (1 or runs,
    prompts), for the runs of `RUNS`. Raises WorkbenchError without prompts to split in two.
    """
    require_halves(len(prompts), least=4)
    require_sides(sides)
    require_with(with_, KNOWN)
    looked = nearest(paths, depth)
    if keep not in KEEP:
        raise WorkbenchError(f"Expected keep {' or '.join(KEEP)}, found {keep!r}.")
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    asking = metric_of(metric, words)
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    at = {group.name: group.position for group in paths} if keep == "position" else {}
    theirs = {name: placed(own) for name, own in (circuits or {}).items()}
    taken = [name for name in theirs if name in SIDES or "/" in name]
    if taken:
        raise WorkbenchError(
            "Expected circuits of other names than base and tuned, and without '/', found "
            f"{taken[0]!r}; rename it in the file."
        )
    named = meant.asked([place for _, at in theirs.values() for place in at.values()])
    clean, _ = meant.placed(named, clean, clean)
    for own, places in theirs.values():
        _require_placed(own, at | places, clean)
    order = np.random.default_rng(seed).permutation(len(clean))
    find, judge = order[: len(order) // 2].tolist(), order[len(order) // 2 :].tolist()
    options: dict[str, Any] = {"batch_size": batch_size, "device": device}
    known: dict[str, Circuit] = {name: own for name, (own, _) in theirs.items()}
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        models = {"base": run.base, "tuned": run.tuned}
        total = len(every_head(run.layout))
        for own in known.values():
            for layer, head in heads(own):
                run.layout.check(Site("z", layer, head))
        most_heads = len(looked) * (most + 1) if minimal else 0
        forwards = len(SIDES) * len(looked) * total / 2 / 2  # half the prompts, from halfway up
        forwards += len(sides) * (len(known) + len(SIDES)) * (3 + random + 2 * most_heads) / 2
        kinds = [Site("z", layer) for layer in run.layout.where("z")]
        patches = len(SIDES) * len(looked) * total
        ahead = counted(run.tuned, clean, patches, forwards, kinds, words, batch_size, device)
        ahead.require("circuit", device, large)
        for side in SIDES:
            one, other = (Side(models[side], [rows[i] for i in find]) for rows in (clean, dirty))
            own, table, cost = discover(
                one, other, words, groups=looked, most=most, metric=asking, seed=seed, **options
            )
            known[side] = own
            tables += [table.assign(side=side, circuit=side), _chosen(own, side)]
            notes.append(f"{pair.name}: finding {side}'s circuit cost {cost:.1f} forward passes.")
        for side in sides:
            model, other = (run.base, run.tuned)[:: 1 if side == "base" else -1]
            giver = (other, clean) if with_ == OTHER else (model, dirty)
            how = Running(pad_id(words), batch_size, device)
            judged = Judge.of(model, clean, (find, judge), with_, giver, how, asking)
            for name, own in known.items():
                where = at | theirs[name][1] if name in theirs else at
                table, made = _judged(judged, own, where, random, minimal, seed)
                tables.append(table.assign(side=side, circuit=name))
                for which, values in made.items():
                    tensors |= stored(side, f"{name}, {which}", values)
    tables.append(overlaps(known, total, seed))
    table = pd.concat(tables, ignore_index=True)
    # An empty circuit's rows would make every value an object.
    table = table.astype({"layer": "Int64", "head": "Int64", "value": float})
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "sides": list(sides),
        "circuits": describe(circuits), "paths": [group.name for group in looked], "most": most,
        "keep": keep, "metric": describe(metric), "with_": with_, "random": random, "minimal":
        minimal,
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **about)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


def circuits_of(result: Result) -> dict[str, dict[str, list[Head]]]:
    """The circuits in a Result, by the model they were found in: "base", or the member's name."""
    found: dict[str, dict[str, list[Head]]] = {}
    rows = result.metric("chosen")
    for (member, side), own in rows.groupby(["member", "circuit"], sort=False):
        name = "base" if side == "base" else str(member)
        if side in SIDES:
            groups = found.setdefault(name, {group.name: [] for group in GROUPS})
            for group, layer, head in own[["group", "layer", "head"]].drop_duplicates().to_numpy():
                if (int(layer), int(head)) not in groups.setdefault(group, []):
                    groups[group].append((int(layer), int(head)))
    return found


def places_of(circuit: Circuit, at: Mapping[str, Position]) -> dict[Head, frozenset[Position]]:
    """Where each head of a circuit is kept: at the positions of its groups, and everywhere with a
    group that has none."""
    found: dict[Head, frozenset[Position]] = {}
    for group, own in circuit.items():
        for head in own:
            found[head] = found.get(head, frozenset()) | {at.get(group)}
    return dict(sorted(found.items()))


def _require_placed(circuit: Circuit, at: Mapping[str, Position], rows: Sequence[Row]) -> None:
    """Raises where a group of a given circuit acts at a place that the prompts do not have."""
    for group in [name for name, own in circuit.items() if own]:
        position = at.get(group)
        if isinstance(position, str):
            require_one_width(rows, position)


def _judged(
    judge: Judge,
    circuit: Circuit,
    at: Mapping[str, Position],
    random: int,
    minimal: bool,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """Faithfulness, incompleteness and minimality of one circuit in one model; and what each prompt
    scored, by run (`RUNS`) and metric."""
    where, every = places_of(circuit, at), judge.every
    own = list(where)
    draw = np.random.default_rng(seed)
    others = [
        {every[i]: where[head] for i, head in zip(draw.permutation(len(every)), own, strict=False)}
        for _ in range(random)
    ]
    groups = {name: list(group) for name, group in circuit.items() if group} if minimal else {}
    singles = own if minimal else []
    parts = [*groups.values(), *([head] for head in singles)]

    def alone(circuit: Kept, less: Sequence[Head] = ()) -> Kept:
        """All but the circuit ablated, and of it what is left out."""
        kept = {head: () if head in less else circuit.get(head, ()) for head in every}
        return {head: frozenset(own) for head, own in kept.items() if None not in own}

    runs: list[Kept] = [{}, dict.fromkeys(every, frozenset()), alone(where), *map(alone, others)]
    runs += [alone(where, less) for less in parts]  # the circuit without K
    runs += [dict.fromkeys(part, frozenset()) for part in parts]  # the model without K
    made = judge.ablated(runs)
    tables = [pd.DataFrame([{"metric": "size", "value": float(len(own)), "n": len(every)}])]
    for metric in judge.measures:
        whole, none, kept = made[metric][0], made[metric][1], made[metric][2]
        drawn = made[metric][3 : 3 + random]
        less = made[metric][3 + random : 3 + random + len(parts)]
        without = made[metric][3 + random + len(parts) :]
        # Of a share of right answers 0 is none at all, as in the paper.
        floor = np.zeros_like(none) if metric == "score" else none
        kinds = {"circuit": kept, "model": whole, "all ablated": none}
        for arm, values in kinds.items():
            tables.append(_rows(values[None], None, metric, seed, arm, float(whole.mean())))
        name = f"faithfulness:{metric}"
        tables.append(_rows((kept - floor)[None], (whole - floor)[None], name, seed, "patch", 1.0))
        if random:
            each = sweep_rows.shares(drawn - floor, whole - floor, seed)
            found = each.value
            # Where one has no interval the gap may be none, and the middle of many says nothing.
            told = random > 1 and np.isfinite(each.low).all()
            low, high = np.quantile(found, [0.025, 0.975]) if told else (np.nan, np.nan)
            row = {"value": found.mean(), "low": low, "high": high, "n": random, "baseline": 1.0}
            tables.append(pd.DataFrame([row | {"arm": "random", "metric": name}]))
        if parts:
            gap = np.abs(without.mean(1) - less.mean(1))
            about = {"arm": "patch", "metric": f"incompleteness:{metric}", "n": len(parts)}
            row = about | {"value": gap.mean()}
            if len(parts) > 1:
                row |= {"low": gap.min(), "high": gap.max()}
            tables.append(pd.DataFrame([row]))
            lost = _rows(kept - less, None, f"minimality:{metric}", seed, "patch", 0.0)
            names = [{"group": group} for group in groups]
            names += [{"layer": layer, "head": head} for layer, head in singles]
            tables.append(pd.concat([pd.DataFrame(names), lost], axis=1))
    places = dict(zip(RUNS, (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 3 + random)),
                      strict=True))  # fmt: skip
    kept = {
        name: {metric: values[own] for metric, values in made.items()}
        for name, own in places.items()
        if random or name != RUNS[-1]
    }
    return pd.concat(tables, ignore_index=True), kept


def _rows(
    tops: np.ndarray,
    bottoms: np.ndarray | None,
    metric: str,
    seed: int,
    arm: str,
    baseline: float,
) -> pd.DataFrame:
    if bottoms is not None:
        found = sweep_rows.shares(tops, bottoms[0], seed)
    else:
        found = (scored if metric == "score" else ratios)(tops, seed=seed)
    found = found._asdict()
    return pd.DataFrame({"arm": arm, "metric": metric, "baseline": baseline} | found)


def _chosen(circuit: Circuit, side: str) -> pd.DataFrame:
    rows = [
        {"group": name, "layer": layer, "head": head, "metric": "chosen", "value": 1.0}
        for name, own in circuit.items()
        for layer, head in own
    ]
    columns = pd.Index(["group", "layer", "head", "metric", "value"])
    return pd.DataFrame(rows, columns=columns).assign(side=side, circuit=side)


def overlaps(circuits: Mapping[str, Circuit], total: int, seed: int = 0) -> pd.DataFrame:
    """`shared` and `jaccard` of every two circuits, whole and group by group; baseline: the mean
    over random circuits of the two sizes among `total` heads, low and high their middle 95%."""
    rows = []
    draw = np.random.default_rng(seed)
    names = list(circuits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = circuits[first], circuits[second]
            pairs = {None: (set(heads(a)), set(heads(b)))}
            pairs |= {g: (set(a[g]), set(b.get(g, ()))) for g in a}
            for group, (ours, theirs) in pairs.items():
                if not ours and not theirs:
                    continue
                chance = draw.hypergeometric(len(ours), total - len(ours), len(theirs), size=2000)
                for metric, value, null in (
                    ("shared", len(ours & theirs), chance),
                    ("jaccard", len(ours & theirs) / len(ours | theirs),
                     chance / (len(ours) + len(theirs) - chance)),
                ):  # fmt: skip
                    low, high = np.quantile(null, [0.025, 0.975])
                    rows.append({
                        "circuit": f"{first} & {second}", "group": group, "metric": metric,
                        "value": float(value), "n": len(ours | theirs),
                        "baseline": float(null.mean()), "low": low, "high": high,
                        "arm": "overlap",
                    })  # fmt: skip
    return pd.DataFrame(rows)
