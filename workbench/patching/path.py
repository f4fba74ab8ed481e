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
from typing import Any, Literal

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
from workbench.patching.activation import SIDES, asked, partners, require_sides
from workbench.patching.patches import Patch, Position
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
    sides: Sequence[str] = SIDES,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Measure the effect of every sender head on the answer, through the receivers alone.

    prompts, corrupted, sides, dtype, large: as in `activation`. receivers: "logits", or (layer,
    query head) pairs whose `part` receives (a key-value head, for k and v, if several queries share
    one). part: which input of the receiving heads changes: q, k or v. position: the token of sender
    and receivers; None for every token. senders: the sending heads; None for every head before the
    last receiver.

    The command line takes 16 prompts of a file, with --full all of them.

    Returns a Result with columns side, layer, head, position, arm, metric. Arm "patch": `effect`
    (mean relative change of the answer's probability, over prompts whose probability is not below
    e^-20) and `logit_change` (of the logit difference); "shuffled": with the z of another prompt's
    corrupt run; "random": what a random sender gives. 95% intervals over prompts, n. The notes
    state the cost in forward passes. Raises WorkbenchError for heads a model does not have.
    """
    require_sides(sides)
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    tables, notes = [], []
    with pair.models(device, named_dtype(dtype)) as run:
        for side in sides:
            model = run.base if side == "base" else run.tuned
            table, forwards = effects(
                *(Side(model, clean), Side(model, dirty), words),
                receivers=receivers,
                part=part,
                position=position,
                senders=senders,
                batch_size=batch_size,
                seed=seed,
                device=device,
                large=large,
            )
            tables.append(table.assign(side=side))
            notes.append(f"{pair.name}, {side}: cost {forwards:.1f} plain forward passes.")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "part": part,
        "receivers": describe(receivers), "position": position, "senders": describe(senders),
        "sides": list(sides),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)))


def effects(
    clean: Side,
    dirty: Side,
    words: Any,
    *,
    receivers: Sequence[Head] | Literal["logits"] = "logits",
    part: Part = "v",
    position: Position = -1,
    senders: Sequence[Head] | None = None,
    shuffled: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    large: bool | None = None,
) -> tuple[pd.DataFrame, float]:
    """The table of one model, and its cost in plain forward passes over all prompts. large: as in
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
        (arm, metric): np.full((len(senders), size), np.nan)
        for arm in ("patch", "shuffled")
        for metric in ("effect", "logit_change")
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
        before = shared.measured(own.logits, own.inputs)
        scores, runs = {}, [own]
        for arm, turned in arms.items():
            others, alone = shared.turned(turn if turned else range(size), places)
            runs.append(Rerun(dirty.model, batch(dirty.rows, others, device, fill), kinds))
            after = [
                _patched(own, runs[-1], senders[i : i + many], into, position)
                for many in [max(1, batch_size // len(places))]
                for i in range(0, len(senders), many)
            ]
            scores[arm] = _changes(before, after, own, alone)
        return sum(one.forwards for one in runs), scores

    with bar:
        for places, (forwards, scores) in in_batches(
            [len(row.fed) for row in clean.rows], batch_size, run
        ):
            spent += forwards * len(places) / size
            for arm, changes in scores.items():
                for metric, value in changes.items():
                    found[arm, metric][:, places] = value.cpu().numpy()
            bar.update(len(places) * len(senders) * len(arms))
    return _table(found, senders, position, seed, arms), spent


def _patched(
    own: Rerun,
    other: Rerun,
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
        patch = {site: other.read(site)}
        patches.append(patch | {one: own.read(one) for one in frozen})
    # Receivers that no sender of these comes before are as they were.
    reached = [site for site in into if site.layer > min(senders)[0]]
    logits, seen = own.observed(patches, reached)
    if not into:
        return logits
    return own.again([{site: seen[site][i] for site in reached} for i in range(len(senders))])


def _changes(
    before: dict[str, Tensor], after: Sequence[Tensor], own: Rerun, alone: Tensor
) -> dict[str, Tensor]:
    """metric -> (senders, batch), NaN where a prompt is `alone`, (batch,)."""
    scores = [shared.measured(logits, own.inputs) for logits in after]
    gain, logit = (
        [score[m] - before[m] for score in scores] for m in ("log_probability", "logit_difference")
    )
    effect = torch.cat(gain).expm1().masked_fill(before["log_probability"] < LEAST, torch.nan)
    found = {"effect": effect, "logit_change": torch.cat(logit)}
    alone = alone.to(effect.device)
    return {metric: value.masked_fill(alone, torch.nan) for metric, value in found.items()}


def _table(
    found: dict[tuple[str, str], np.ndarray],
    senders: Sequence[Head],
    position: Position,
    seed: int,
    arms: Sequence[str] | dict[str, bool],
) -> pd.DataFrame:
    columns = pd.DataFrame(senders, columns=pd.Index(["layer", "head"])).astype("Int64")
    columns["position"] = "all" if position is None else str(position)
    known = {
        (arm, metric): value for (arm, metric), value in found.items()
        # Where nothing at all is known one arm says so, by NaN.
        if arm in arms and (not np.isnan(value).all() or (arm, metric) == ("patch", "effect"))
    }  # fmt: skip
    tables = [
        columns.assign(arm=arm, metric=metric, baseline=0.0, **ratios(value, seed=seed)._asdict())
        for (arm, metric), value in known.items()
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
