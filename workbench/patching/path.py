"""Path patching: which heads act on the answer directly, or through other heads' queries, keys or
values?

1. Run clean and corrupt prompts, keeping every head's z.
2. Per sender head: the clean run with that head's z from the corrupt run and every later head
   frozen to its clean z, while the MLPs react; keep what the receivers then get.
3. The clean run again with only the receivers' vectors from step 2. Where the logits receive, step
   2 is the run itself.

    effect = mean((p_patched - p_clean) / p_clean),   p: probability of the right answer

(Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969; the score as in
Prakash et al. 2024, arXiv 2402.14811). A negative effect means that the head supports the answer.
With all later heads frozen nothing moves between tokens, so one position serves sender and
receivers, and only the last one acts on the logits of a one-token answer. It misleads if p_clean is
near 0 (compare it with the change of the logit difference) and if the corrupt prompts change more
than one thing at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.models.sites import Kind
from workbench.patching import sweep as shared
from workbench.patching.activation import KNOWN, SIDES, asked, partners, require_sides
from workbench.patching.metrics import Asked, Metric, metric_of
from workbench.patching.patches import Patch, Position
from workbench.patching.per_prompt import stored
from workbench.patching.places import asked as places_of
from workbench.patching.places import placed, require_one_run, taken
from workbench.patching.replacements import (
    CORRUPTED,
    Replacement,
    Running,
    Standing,
    With,
    require_with,
)
from workbench.patching.sweep import Side
from workbench.patching.sweep_plan import counted, share
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.tasks import PromptSet
from workbench.tasks.batching import batch, in_batches, pad_id

Head = tuple[int, int]  # layer, head
Part = Literal["q", "k", "v"]
KEY = "patching.path"
MIXING: tuple[Kind, ...] = ("z", "mixer_out")  # what moves anything between tokens
LEAST = -20.0  # nats; a smaller p_clean is nothing that a relative change could be of


@analysis(
    "Which heads act on the logits directly, or through other heads' queries, keys or values?",
    paper="arXiv 2211.00593",
    example="--prompts boxes.jsonl --receivers 3.0,3.2 --part q",
    plans=True,
    few={"prompts": 16, "corrupted": 16},
)
def path(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    receivers: Sequence[Head] | Literal["logits"] = "logits",
    part: Part = "v",
    position: Position = -1,
    senders: Sequence[Head] | None = None,
    metric: Asked | None = None,
    with_: With = "corrupted",
    sides: Sequence[str] = SIDES,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Measure the effect of every sender head on the answer, through the receivers alone.

    prompts, corrupted, metric, sides, dtype, large: as in `activation`. with_: what the sender's z
    is replaced by, as in `activation`. receivers: "logits", or
    (layer, query head) pairs whose `part` receives (a key-value head, for k and v, if several
    queries share one). part: which input of the receiving heads changes: q, k or v. position: the
    token of sender and receivers; None for every token. senders: the sending heads; None for every
    head before the last receiver.

    The command line takes 16 prompts of a file, with --full all of them.

    Returns a Result with columns side, layer, head, position, arm, metric. Arm "patch": `effect`
    (mean relative change of the answer's probability, over prompts whose probability is not below
    e^-20), `logit_change` (of the logit difference) and `change:METRIC` (of another metric);
    "shuffled": with the z of another prompt's corrupt run; "random": what a random sender gives.
    95% intervals over prompts, n. The notes state the cost in forward passes. tensors: as in
    `activation`. Raises WorkbenchError for heads a model does not have.
    """
    require_with(with_, KNOWN)
    require_sides(sides)
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    if with_ != CORRUPTED:
        require_one_run(places_of([position]), with_)
    clean, dirty = placed(places_of([position]), clean, dirty)
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        for side in sides:
            model, other = (run.base, run.tuned)[:: 1 if side == "base" else -1]
            stands = None
            if with_ != CORRUPTED:
                how = Running(pad_id(words), batch_size, device)
                heads = [Site("z", layer) for layer in run.layout.where("z")]
                known = (with_, model, clean, heads, how)
                stands = Replacement.of(*known, giver=(other, clean), seed=seed)
            made = effects(
                *(Side(model, clean), Side(model, dirty), words),
                receivers=receivers,
                part=part,
                position=position,
                senders=senders,
                metric=judge,
                replaced=stands,
                batch_size=batch_size,
                seed=seed,
                device=device,
                large=large,
            )
            tables.append(made.table.assign(side=side))
            for (arm, name), values in made.values.items():
                tensors |= stored(side, arm, {name: values})
            notes.append(f"{pair.name}, {side}: cost {made.forwards:.1f} plain forward passes.")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "part": part,
        "receivers": describe(receivers), "position": position, "senders": describe(senders),
        "sides": list(sides), "with_": with_, "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


class Effects(NamedTuple):
    """One model's path effects. values: (arm, metric) -> (senders, prompts), those that are known.
    forwards: their cost in plain forward passes over all prompts."""

    table: pd.DataFrame
    values: dict[tuple[str, str], np.ndarray]
    forwards: float


def effects(
    clean: Side,
    dirty: Side,
    words: Any,
    *,
    receivers: Sequence[Head] | Literal["logits"] = "logits",
    part: Part = "v",
    position: Position = -1,
    senders: Sequence[Head] | None = None,
    metric: Metric | None = None,
    replaced: Replacement | None = None,
    shuffled: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    large: bool | None = None,
) -> Effects:
    """Every sender's effect in one model. metric: one more measure, whose reference is the clean
    run. replaced: what the senders' z is replaced by, None for the corrupt run's. large: as in
    `sweep`."""
    layout = Layout(clean.model)
    into = _received(layout, receivers, part, position)
    reachable = _before(layout, into)
    senders = reachable if senders is None else list(senders)
    if not senders or not set(senders) <= set(reachable):
        beyond = sorted(set(senders) - set(reachable))
        raise WorkbenchError(
            f"Head {beyond[0]} is not before these receivers, or not in the model; "
            "give other senders."
            if beyond
            else "No head is before these receivers; choose receivers in a later layer."
        )
    shared.require_aligned(clean.rows, dirty.rows, [Patch((Site("z", 0, position=position),))])
    size, fill = len(clean.rows), pad_id(words)
    kinds = {Site(kind, layer) for kind in MIXING for layer in layout.where(kind)}
    found = {
        (arm, name): np.full((len(senders), size), np.nan)
        for arm in ("patch", "shuffled")
        for name in ("effect", *changes_of(metric))
    }
    spent = 0.0
    arms = {"patch": False} | ({"shuffled": True} if shuffled else {})
    total = len(senders) * size * len(arms)
    if large is not None:
        entered = [Site("z", *sender, position) for sender in senders]
        entered += into[:1] * len(entered)
        each = sum(share(layout, clean.rows, site.layer, site) for site in entered)
        forwards = 1 + len(arms) * (1 + each)  # the clean run, and every arm's corrupt one
        known = (len(senders), forwards, kinds, words, batch_size, device)
        ahead = counted(clean.model, clean.rows, *known, at_once=batch_size)
        ahead.require("path patching", device, large)
    bar = progress(total=total, desc="path patching")

    turn = shared.shuffle(dirty.rows)

    def run(places: list[int]) -> tuple[float, dict[str, dict[str, Tensor]]]:
        own = Rerun(clean.model, batch(clean.rows, places, device, fill), kinds)
        before = shared.measured(own.logits, own.inputs, own.logits[0], metric)
        scores: dict[str, dict[str, Tensor]] = {}
        runs: list[Rerun | Standing] = [own]
        for arm, turned in arms.items():
            others, alone = shared.turned(turn if turned else range(size), places)
            if replaced is not None and not turned:
                runs.append(replaced.beside(own, places))
            else:
                runs.append(Rerun(dirty.model, batch(dirty.rows, others, device, fill), kinds))
            after = [
                _patched(own, runs[-1], senders[i : i + many], into, position)
                for many in [max(1, batch_size // len(places))]
                for i in range(0, len(senders), many)
            ]
            scores[arm] = _changes(before, after, own, alone, metric)
        return sum(one.forwards for one in runs), scores

    with bar:
        for places, (forwards, scores) in in_batches(
            [len(row.fed) for row in clean.rows], batch_size, run
        ):
            spent += forwards * len(places) / size
            for arm, changes in scores.items():
                for name, value in changes.items():
                    found[arm, name][:, places] = value.cpu().numpy()
            bar.update(len(places) * len(senders) * len(arms))
    known = {
        (arm, name): value for (arm, name), value in found.items()
        # Where nothing at all is known one arm says so, by NaN.
        if arm in arms and (not np.isnan(value).all() or (arm, name) == ("patch", "effect"))
    }  # fmt: skip
    return Effects(_table(known, senders, position, seed), known, spent)


def changes_of(metric: Metric | None) -> dict[str, str]:
    """The name of each change in a table -> the measure that changes."""
    own = {} if metric is None or metric.name == "logit_difference" else {metric.name}
    return {"logit_change": "logit_difference"} | {f"change:{name}": name for name in own}


def _patched(
    own: Rerun,
    other: Rerun | Standing,
    senders: Sequence[Head],
    into: Sequence[Site],
    position: Position,
) -> Tensor:
    """Logits (senders, batch, answer, vocabulary) of step 3, or of step 2 for the logits."""
    # Where tokens behind the sender's reach the logits, their heads must be frozen too.
    behind = position != -1 or any(len(row.answer) > 1 for row in own.inputs.rows)
    held = None if not into and behind else position
    patches = []
    for layer, head in senders:
        site = Site("z", layer, head, position)
        frozen = [
            Site(kind, one, position=held)
            for kind in MIXING
            for one in own.layout.where(kind)
            if one > layer
        ]
        patch = {site: taken(site, other.read(site))}
        patches.append(patch | {one: own.read(one) for one in frozen})
    # Receivers that no sender of these comes before are as they were.
    reached = [site for site in into if site.layer > min(senders)[0]]
    logits, seen = own.observed(patches, reached)
    if not into:
        return logits
    return own.again([{site: seen[site][i] for site in reached} for i in range(len(senders))])


def _changes(
    before: dict[str, Tensor],
    after: Sequence[Tensor],
    own: Rerun,
    alone: Tensor,
    metric: Metric | None,
) -> dict[str, Tensor]:
    """metric -> (senders, batch), NaN where a prompt is `alone`, (batch,)."""
    scores = [shared.measured(logits, own.inputs, own.logits[0], metric) for logits in after]

    def change(measure: str) -> Tensor:
        return torch.cat([score[measure] - before[measure] for score in scores])

    effect = (
        change("log_probability").expm1().masked_fill(before["log_probability"] < LEAST, torch.nan)
    )
    found = {"effect": effect} | {name: change(of) for name, of in changes_of(metric).items()}
    alone = alone.to(effect.device)
    return {metric: value.masked_fill(alone, torch.nan) for metric, value in found.items()}


def _table(
    found: dict[tuple[str, str], np.ndarray],
    senders: Sequence[Head],
    position: Position,
    seed: int,
) -> pd.DataFrame:
    columns = pd.DataFrame(senders, columns=pd.Index(["layer", "head"])).astype("Int64")
    columns["position"] = "all" if position is None else str(position)
    tables = [
        columns.assign(arm=arm, metric=metric, baseline=0.0, **ratios(value, seed=seed)._asdict())
        for (arm, metric), value in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    random = shared.random_site(table[table["arm"] == "patch"], by=("position",))
    return pd.concat([table, random], ignore_index=True)


def _received(
    layout: Layout, receivers: Sequence[Head] | str, part: Part, position: Position
) -> list[Site]:
    """The sites that receive; none where the logits do."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise WorkbenchError(f'Expected receivers "logits" or heads, found {receivers!r}.')
        return []
    if part not in ("q", "k", "v"):
        raise WorkbenchError(f"Expected part q, k or v of the receivers, found {part!r}.")
    if not receivers:
        raise WorkbenchError('Expected receiver heads (layer, head), or "logits"; found none.')
    sites = []
    for layer, head in receivers:
        whole, own = layout.check(Site("q", layer)), layout.check(Site(part, layer))
        shares = layout.count(whole) // layout.count(own)
        sites.append(Site(part, layer, head // shares, position))
    return [layout.check(site) for site in dict.fromkeys(sites)]


def _before(layout: Layout, into: Sequence[Site]) -> list[Head]:
    """Every head whose output a receiver can still read."""
    end = max([site.layer for site in into], default=layout.layers)
    known = [layout.check(Site("z", layer)) for layer in layout.where("z") or [0]]
    return [(z.layer, head) for z in known if z.layer < end for head in range(layout.count(z))]
