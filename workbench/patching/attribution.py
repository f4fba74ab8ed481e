"""Attribution patching: what would every patch do, to first order, for one backward pass?

A clean activation put into the corrupt run (denoising) changes the metric m by about

    effect = sum (a_clean - a_corrupt) . dm/da,     the gradient taken in the corrupt run

over a place's tokens and features (Nanda 2023, "Attribution patching"; Syed, Rager & Conmy 2023,
arXiv 2310.10348). m is the logit difference of the answer, or its log-probability if prompts have
no foils. Effects are divided by sum(clean - corrupt) over prompts: the scale of `activation`'s
`recovered:`, 0 corrupt and 1 clean. With steps > 1 the gradient is the mean over runs whose INPUT
embeddings (the stream before layer 0) are interpolated from the corrupt to the clean prompt's, at
the middles of as many equal steps (EAP-IG: Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806).
Averaged gradients account for all of clean - corrupt together; a single patch leaves the rest of
the run corrupt, where the plain gradient may rank places better. Compare the two.

It misleads if the metric is not linear between the two runs: saturated softmaxes have no slope, so
attention patterns and early layers are understated, and effects of several places add up although
the patches do not. So the strongest entries on a random half of the prompts, and as many random
others, are patched exactly on the other half, and the table gives the rank correlation of the two
there; trust the entries no further than it allows. On compiled pairs, all of whose attention is
saturated, edges by which a value travels are found, and those that only move where a head attends
are not (AUROC .75 on the pair that sorts; `make truth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout
from workbench.models.rerun import Rerun
from workbench.models.sides import Sides, named_dtype
from workbench.patching import edges as graph
from workbench.patching import patches as places
from workbench.patching import places as meant
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.activation import SIDES, asked, partners, tokens_of
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.first_order import Attributed, Job
from workbench.patching.metrics import Asked, metric_of, require_smooth
from workbench.patching.patches import COLUMNS, Patch, Position, Where
from workbench.patching.strongest import halves, said_of_halves
from workbench.patching.sweep import Side
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios, spearman
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

KEY = "patching.attribution"
ACROSS = "tuned->base"
EDGES = 2000  # of the strongest, in the table


@analysis(
    "Which places would matter if they were patched, as estimated from the gradient?",
    paper="arXiv 2310.10348, 2403.17806",
    example="--prompts boxes.jsonl --edges",
    passes=30,
    plans=True,
    takes={"prompts": "task", "corrupted": "corrupted"},
    few={"prompts": 24, "corrupted": 24},
)
def attribution(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    sites: Sequence[Where] | Where = ("z", "mlp_out"),
    positions: Sequence[Position] | Position = "named",
    sides: Sequence[str] = SIDES,
    across: bool = False,
    steps: int = 1,
    edges: bool = False,
    metric: Asked | None = None,
    exact: int = 20,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Estimate the effect of every patch of clean activations into corrupt runs from gradients, in
    both models.

    prompts, corrupted, sites, positions, sides, dtype, large: as in `activation` (z, not "head":
    within one model both give the same). across: also put the tuned model's activations into the
    base on the same prompts, side "tuned->base", as in `cross_model`; sides may then be empty, and
    prompts may be plain texts. steps: the number of steps of integrated gradients; 1 is the
    gradient in the corrupt run. edges: also score what every head and MLP sends to every later one
    (`patching.edges`; not for side "tuned->base"). metric: what is attributed, as in `activation`,
    one that has a gradient. exact: the number of strongest entries, and of random others, that are
    patched exactly. More than one step, and edges, need partners that are as long as their prompts.

    The command line takes 24 prompts of a file, with --full all of them.

    Returns a Result with columns side, component, layer, head, neuron, position, sender, receiver,
    group, arm, metric. Arm "patch": `attribution`, and for the groups "top" and "random" `exact`,
    both as a share of clean - corrupt with 95% intervals over prompts; `rank_correlation` of the
    two (Spearman, interval over entries) per group, both on the half of the prompts that did not
    pick the strongest (arm "picked": their attribution there); with edges `edge_attribution`,
    `edge_exact` and `edge_rank_correlation`. Arms "shuffled": the top entries there with the
    activations of a prompt of another answer; "random": what a random place of the component gives.
    tensors: each prompt's effect in the metric itself, not a share, as in `activation`; edges in
    the order of `patching.edges.links`. Raises WorkbenchError for partners that do not fit,
    combinations that have no meaning and metrics without a gradient.
    """
    _require(sides, across, steps, sites)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    require_smooth(judge, "Attribution")
    if sides:
        prompts = asked(prompts)
        clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    else:
        clean = dirty = answered(words, prompts)
    usual = "logit_difference" if any(row.foils for row in dirty) else "log_probability"
    measure = usual if judge is None else judge.name
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        if not sides:
            options = (words, batch_size, device)
            clean, said = with_answers(run.tuned, "tuned", clean, *options)
            dirty, notes = clean, [f"{pair.name}: {note}" for note in said]
        where = places.default_positions(clean) if positions == "named" else positions
        named = meant.asked(where, sites)
        chosen = places.patches(Layout(run.tuned), sites, places.resolved(clean, where))
        settings = (chosen, words, measure, judge, steps)
        for side, (into, out) in _ends(run, clean, dirty, sides, across).items():
            ours, theirs = meant.placed(named, into.rows, out.rows)
            ends = Side(into.model, ours), Side(out.model, theirs)
            job = Job(*ends, *settings, edges and side != ACROSS, batch_size, device)
            job.plan(exact).require(f"attribution {side}", device, large)
            made = job.attributed()
            table, told = table_of(job, made, exact, seed)
            tables.append(table.assign(side=side))
            tensors |= made.kept(side, measure)
            notes += [f"{pair.name}, {side}: {note}" for note in told]
        notes.append(f"{pair.name}: {run.described}")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "sites": describe(sites),
        "positions": describe(positions), "sides": list(sides), "across": across, "steps": steps,
        "edges": edges, "exact": exact, "measure": measure, "metric": describe(metric),
        "tokens": tokens_of(clean, words),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


def _require(sides: Sequence[str], across: bool, steps: int, sites: Any) -> None:
    if not set(sides) <= set(SIDES) or not (sides or across):
        raise WorkbenchError(
            f"Expected sides base, tuned or both (none only with across), found {list(sides)}."
        )
    if steps < 1:
        raise WorkbenchError(f"Expected at least one step, found {steps}.")
    if across and steps > 1:
        raise WorkbenchError(
            "across compares two models on one prompt, whose input embeddings are "
            "equal, so there is nothing to interpolate; use steps=1."
        )
    if places.HEAD in ([sites] if isinstance(sites, str) else sites):
        raise WorkbenchError(
            'Attribution takes z, not "head": the output projection is linear, so '
            "within one model both have the same effect; use z."
        )


def _ends(
    run: Sides, clean: Sequence[Row], dirty: Sequence[Row], sides: Sequence[str], across: bool
) -> dict[str, tuple[Side, Side]]:
    """side -> (destination, source)."""
    models = {"base": run.base, "tuned": run.tuned}
    ends = {side: (Side(models[side], dirty), Side(models[side], clean)) for side in sides}
    return ends | ({ACROSS: (Side(run.base, clean), Side(run.tuned, clean))} if across else {})


def table_of(job: Job, made: Attributed, exact: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Every row of this side, and notes."""
    gap = made.one - made.zero
    table = _rows(job.patches, sweep_rows.shares(made.effects, gap, seed), "attribution")
    pick, report = halves(gap.size, seed)
    sizes = ratios(made.effects[:, pick], draws=1).value  # defined where no share of the gap is
    groups = strongest_and_random(sizes, exact, seed)
    top = groups["top"]
    again = [job.patches[i] for i in top]
    parts = [table, sweep_rows.random_site(table)]
    if top:
        shuffled = made.shuffled[np.ix_(top, report)]
        turned = sweep_rows.shares(shuffled, gap[report], seed)
        parts.append(_rows(again, turned, "attribution").assign(arm="shuffled", group="top"))
    parts += [
        _checked(job, made.effects, own, report, name, seed) for name, own in groups.items() if own
    ]
    notes = [
        f"{len(job.patches)} patches cost {2 + (job.steps > 1) + job.steps} forward and "
        f"{job.steps} backward passes of the prompts.",
        *([said_of_halves(pick, report, "The strongest entries")] if top else []),
        *sweep_rows.meaningful(
            {job.measure: made.zero},
            {job.measure: made.one},
            "The two runs",
            seed,
            measures=[job.measure],
        ),
    ]
    if job.edges:
        links, told = _edges(job, made.edges, gap, pick, report, exact, seed)
        parts.append(links)
        notes.append(told)
    whole = pd.concat(parts, ignore_index=True)
    return whole.astype(dict.fromkeys(("layer", "head", "neuron"), "Int64")), notes


def _checked(
    job: Job,
    effects: np.ndarray,
    own: Sequence[int],
    report: Sequence[int],
    group: str,
    seed: int,
) -> pd.DataFrame:
    """These patches made in earnest on the reporting prompts, their attribution there, and how
    both order them. effects: first-order, (patches, prompts)."""
    again = [job.patches[i] for i in own]
    here, there = (
        Side(side.model, [side.rows[i] for i in report]) for side in (job.destination, job.source)
    )
    made = shared.sweep(
        *(here, there, again, job.words),
        metric=job.metric,
        batch_size=job.batch_size,
        device=job.device,
        label=f"exact, {group}",
        large=None,
    )
    zero, one = made.destination, made.source
    found = sweep_rows.summary(made, again, zero=zero, one=one, seed=seed, measures=[job.measure])
    found = found[found["metric"] == f"recovered:{job.measure}"].assign(metric="exact")
    estimated = effects[np.ix_(own, report)]
    gap = one[job.measure] - zero[job.measure]
    picked = _rows(again, sweep_rows.shares(estimated, gap, seed), "attribution")
    change = ratios(made.patched[job.measure] - zero[job.measure]).value
    agreement = spearman(ratios(estimated).value, change, seed=seed)
    row = {"arm": "patch", "metric": "rank_correlation"} | agreement._asdict()
    parts = [found, picked.assign(arm="picked"), pd.DataFrame([row])]
    return pd.concat(parts, ignore_index=True).assign(group=group)


def _edges(
    job: Job,
    effects: np.ndarray,
    gap: np.ndarray,
    pick: Sequence[int],
    report: Sequence[int],
    exact: int,
    seed: int,
) -> tuple[pd.DataFrame, str]:
    """The strongest edges' rows, some made in earnest, and a note on how many are left out."""
    links = graph.links(Layout(job.destination.model))
    names = pd.DataFrame([link.named for link in links])
    found = sweep_rows.shares(effects, gap, seed)
    table = names.assign(metric="edge_attribution", **found._asdict())
    sizes = ratios(effects[:, pick], draws=1).value
    groups = strongest_and_random(sizes, exact, seed)
    kept = strongest_and_random(sizes, EDGES, seed)["top"]
    parts = [table.iloc[kept]]
    for group, own in groups.items():
        if not own:
            continue
        changes = _exact_edges(job, [links[i] for i in own], report)
        values = sweep_rows.shares(changes, gap[report], seed)
        estimated = ratios(effects[np.ix_(own, report)], draws=1).value
        agreement = spearman(estimated, ratios(changes).value, seed=seed)._asdict()
        rows = names.iloc[own].assign(metric="edge_exact", **values._asdict())
        agreed = pd.DataFrame([{"metric": "edge_rank_correlation"} | agreement])
        # The random ones are not among the strongest, and stand in no other row.
        also = table.iloc[[i for i in own if i not in kept]]
        parts += [part.assign(group=group) for part in (rows, agreed, also)]
    table = pd.concat(parts, ignore_index=True).assign(component="edge", arm="patch")
    return table, f"the table has the {len(kept)} strongest of {len(links)} edges."


def _exact_edges(job: Job, chosen: Sequence[graph.Link], report: Sequence[int]) -> np.ndarray:
    """What each edge made in earnest changes the metric by, (edges, reporting prompts)."""
    found = np.full((len(chosen), len(report)), np.nan)
    wanted = graph.needed(Layout(job.destination.model))

    def run(at: list[int]) -> Tensor:
        places = [report[i] for i in at]
        there, here = (
            Rerun(side.model, batch(side.rows, places, job.device, pad_id(job.words)), wanted)
            for side in (job.source, job.destination)
        )
        logits = torch.cat([here.logits, graph.exact_logits(there, here, chosen)])
        known = (here.inputs, there.logits[0], job.metric)
        scored = shared.measured(logits, *known)[job.measure]
        return scored[1:] - scored[:1]

    lengths = [len(job.destination.rows[i].fed) for i in report]
    for at, change in in_batches(lengths, job.batch_size, run):
        found[:, at] = change.cpu().numpy()
    return found


def strongest_and_random(values: np.ndarray, most: int, seed: int) -> dict[str, list[int]]:
    """Numbers of the `most` largest |values|, and of as many random others, in their order."""
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(-np.abs(values[known]), kind="stable")]
    rest = order[most:]
    drawn = np.random.default_rng(seed).permutation(rest)[:most]
    return {"top": order[:most].tolist(), "random": sorted(drawn.tolist())}


def _rows(patches: Sequence[Patch], found: Any, metric: str) -> pd.DataFrame:
    columns = pd.DataFrame([patch.about for patch in patches])
    columns = columns.reindex(columns=pd.Index(COLUMNS))
    return columns.assign(arm="patch", metric=metric, **found._asdict(), baseline=0.0)
