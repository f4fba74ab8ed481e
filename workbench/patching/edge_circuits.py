"""Which edges make up the circuit of each side, and did fine-tuning change them more than chance?

Edges are scored by EAP-IG on one half of the prompts (`patching.attribution`; Hanna, Pezzelle &
Belinkov 2024, arXiv 2403.17806), and the k strongest by |mean score| are a circuit, which is run on
the other half with every other edge as on the corrupt prompt (`patching.edge_runs`). With m the
metric, 0 for no edge and M for all of them,

    faithfulness  f(C) = (m(C) - m(0)) / (m(M) - m(0))
    CPR = integral of f over k / edges,    CMD = integral of |1 - f|

by trapezoids between the fractions asked for, by default the ten of MIB (Mueller et al. 2025, arXiv
2504.13151v1; CPR: larger is better, CMD: 0 is best). Arm "without" is the model without the
circuit's edges. Between base and tuned, at each size,

    edge change = share of the base circuit's edges that are not in the tuned model's, of equal size
    node change = the same of the heads and MLPs (senders and receivers) that these edges join

(after Wang et al. 2025, arXiv 2502.11812, who find that fine-tuning changes edges more than nodes).
The null exchanges the two sides' scores of each prompt at random: what two models that differ in
nothing but chance would show. It misleads where EAP does (saturated softmaxes), where the strongest
edges hardly differ in strength, so that which of them are in changes by chance (read the null), and
in a circuit of most edges, which any model fills.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.patching import edges as graph
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.activation import SIDES, asked, partners
from workbench.patching.edge_runs import EdgeRun
from workbench.patching.edges import EMBEDDING
from workbench.patching.first_order import Job
from workbench.patching.metrics import Asked, Metric, metric_of, require_smooth
from workbench.patching.patches import Patch
from workbench.patching.per_prompt import stored
from workbench.patching.strongest import halves
from workbench.patching.sweep import Side
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import edges as ends_of
from workbench.stats import ratios
from workbench.tasks import PromptSet
from workbench.tasks.batching import batch, in_batches, pad_id
from workbench.tasks.prompts import require_halves

KEY = "patching.edge_circuits"
CHANGE = "tuned - base"
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DRAWS = 200  # resamples of prompts, and exchanges of sides
LISTED = 100  # of the strongest edges, in the table
Floats = NDArray[np.float64]


@analysis(
    "Did fine-tuning change which edges make up the circuit?",
    paper="EAP-IG, arXiv 2403.17806, 2504.13151, 2502.11812",
    example="--prompts boxes.jsonl",
    passes=200,
    takes={"prompts": "task", "corrupted": "corrupted"},
    quick={"fractions": (0.01, 0.05, 0.2, 1.0), "random": 1},
    few={"prompts": 16, "corrupted": 16},
    quick_passes=100,
)
def edge_circuits(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    fractions: Sequence[float] = FRACTIONS,
    steps: int = 5,
    metric: Asked | None = None,
    random: int = 3,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Find each side's circuit of edges, judge both circuits in both sides, and compare them.

    prompts: prompts with answers; one half scores the edges, the other judges the circuits.
    corrupted: as in `activation`, partners as long as their prompts. fractions: the sizes of the
    circuits, as shares of all edges. steps: of integrated gradients between the corrupt and the
    clean prompt's embeddings. metric: as in `attribution`. random: the number of random circuits of
    each size. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 16 prompts of a file, four sizes and one random circuit; with --full all
    prompts, ten sizes and three.

    Returns a Result with columns side (judged in), circuit (found in: base, tuned), x (the share of
    all edges), sender, receiver, arm, metric. `faithfulness` with 95% intervals over the judging
    prompts, for arms "patch" (the circuit), "without" (all other edges) and "random" (mean of the
    random circuits); `size` (edges); `cpr` and `cmd` for each of the arms. Side "tuned - base":
    `edge_change` and `node_change` at each size, intervals by a bootstrap over the scoring prompts,
    baseline the mean of the null, arm "null" its middle 95%. `edge_attribution` of the strongest
    edges of either side as a share of clean - corrupt, for both sides and, paired, for their
    difference. tensors: as in `activation`, edges in the order of `edges.links`. Raises
    WorkbenchError for models that have no edges (`edges.links` says which), partners of other
    lengths, and fewer than 8 prompts.
    """
    require_halves(len(prompts), least=4)
    fractions = _fractions(fractions)
    for name, number, least in (("steps", steps, 1), ("random", random, 0)):
        if number < least:
            raise WorkbenchError(f"Expected {name} to be {least} or more, found {number}.")
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    require_smooth(judge, "EAP")
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    shared.require_aligned(clean, dirty, [Patch((EMBEDDING,))])
    usual = "logit_difference" if any(row.foils for row in dirty) else "log_probability"
    measure = usual if judge is None else judge.name
    find, report = halves(len(clean), seed)
    how = _How(words, measure, judge, batch_size, device)
    sides: dict[str, _Side] = {}
    judged: dict[str, dict[tuple[str, str], Floats]] = {}
    with pair.models(device, named_dtype(dtype)) as run:
        models = {"base": run.base, "tuned": run.tuned}
        links = graph.links(run.layout)
        sizes = [max(1, round(share * len(links))) for share in fractions]
        for side, model in models.items():
            one, other = (Side(model, [rows[i] for i in find]) for rows in (clean, dirty))
            sides[side] = _scored(one, other, how, steps)
        circuits = {side: _top(own.known.mean(1), sizes) for side, own in sides.items()}
        for side, model in models.items():
            one, other = (Side(model, [rows[i] for i in report]) for rows in (clean, dirty))
            job = _Judge(one, other, how)
            judged[side] = job.run(circuits, random, seed, f"edges, {side}")
        notes = [f"{pair.name}: {run.described}"]
    notes.append(
        f"{pair.name}: edges were scored and picked on {len(find)} prompts, which "
        "edge_attribution, edge_change and node_change are of; circuits are judged on the other "
        f"{len(report)}."
    )
    tables = [_curves(judged, sizes, len(links), seed), _changes(sides, sizes, links, seed)]
    tables.append(_strongest(sides, links, seed))
    table = pd.concat(tables, ignore_index=True)
    table = table.astype(dict.fromkeys(("value", "low", "high"), float))  # areas came as objects
    table.insert(0, "member", pair.name)
    tensors: dict[str, NDArray[np.floating]] = {}
    for side, own in sides.items():
        tensors |= stored(side, "patch", {"edge_attribution": own.scores})
        for (circuit, arm), values in judged[side].items():
            tensors |= stored(side, f"{circuit}, {arm}", {measure: values})
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "steps": steps,
        "fractions": list(fractions), "measure": measure, "metric": describe(metric),
        "random": random,
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


class _Side(NamedTuple):
    """scores: (edges, prompts), in the metric, NaN for a prompt that does not have it. gap:
    (prompts,), clean less corrupt."""

    scores: Floats
    gap: Floats

    @property
    def known(self) -> Floats:
        """The scores of the prompts that have the metric."""
        return self.scores[:, np.isfinite(self.scores).all(0)]


class _How(NamedTuple):
    """How sides are run, and the metric by its name; metric: None where it is a usual one."""

    words: Any
    measure: str
    metric: Metric | None
    batch_size: int
    device: str


def _scored(clean: Side, dirty: Side, how: _How, steps: int) -> _Side:
    """Every edge's score on each of these prompts."""
    settings = (how.words, how.measure, how.metric, steps, True, how.batch_size, how.device)
    made = Job(dirty, clean, [Patch((EMBEDDING,))], *settings).attributed()
    shared.require_metric({how.measure: made.zero}, how.metric)
    return _Side(made.edges, made.one - made.zero)


class _Judge(NamedTuple):
    """One model and the prompts that judge circuits."""

    clean: Side
    dirty: Side
    how: _How

    def run(
        self, circuits: Mapping[str, Sequence[Any]], random: int, seed: int, label: str
    ) -> dict[tuple[str, str], Floats]:
        """(circuit, arm) -> (sizes, prompts) of the metric; ("", "all") and ("", "none"): (1,
        prompts). Of several random circuits of a size the mean."""
        total = len(graph.links(Layout(self.clean.model)))
        draw = np.random.default_rng(seed)
        masks: dict[tuple[str, str], list[NDArray[np.bool_]]] = {
            ("", "all"): [np.ones(total, bool)], ("", "none"): [np.zeros(total, bool)],
        }  # fmt: skip
        for name, own in circuits.items():
            masks[name, "patch"] = [_mask(chosen, total) for chosen in own]
            masks[name, "without"] = [~mask for mask in masks[name, "patch"]]
        sizes = [len(chosen) for chosen in next(iter(circuits.values()))]
        drawn = [_mask(draw.permutation(total)[:k], total) for _ in range(random) for k in sizes]
        runs = [mask for own in masks.values() for mask in own] + drawn
        values = np.full((len(runs), len(self.clean.rows)), np.nan)
        with progress(total=len(runs) * len(self.clean.rows), desc=label) as bar:

            def batched(at: list[int]) -> Floats:
                made = self._batch(at, runs)
                bar.update(len(at) * len(runs))
                return made

            lengths = [len(row.fed) for row in self.clean.rows]
            for at, found in in_batches(lengths, self.how.batch_size, batched):
                values[:, at] = found
        made, begin = {}, 0
        for key, own in masks.items():
            made[key] = values[begin : begin + len(own)]
            begin += len(own)
        if random:
            made["", "random"] = values[begin:].reshape(random, len(sizes), -1).mean(0)
        return made

    def _batch(self, at: list[int], runs: Sequence[NDArray[np.bool_]]) -> Floats:
        """(runs, batch) of the metric."""
        fill = pad_id(self.how.words)
        here, there = (
            batch(side.rows, at, self.how.device, fill) for side in (self.clean, self.dirty)
        )
        wanted = graph.needed(Layout(self.clean.model))
        corrupt = Rerun(self.dirty.model, there, wanted, prefix=False)
        whole = Rerun(self.clean.model, here, [EMBEDDING], prefix=False)
        edges = EdgeRun(self.clean.model, here, whole.kept[EMBEDDING], corrupt.kept)
        found = []
        for mask in runs:
            logits = edges.logits(torch.from_numpy(mask))[None]
            scored = shared.measured(logits, here, whole.logits[0], self.how.metric)
            found.append(scored[self.how.measure][0].cpu().double().numpy())
        return np.stack(found)


def area(fractions: Floats, values: Floats) -> Floats:
    """The integral by trapezoids of values (..., sizes) over the sizes as shares of all edges."""
    return np.asarray(np.trapezoid(values, fractions, axis=-1))


def changed(ours: NDArray[np.integer], theirs: NDArray[np.integer]) -> float:
    """The share of these numbers that are not among those."""
    return 1 - len(np.intersect1d(ours, theirs)) / len(np.unique(ours))


def _fractions(asked: Sequence[float]) -> list[float]:
    found = sorted({float(one) for one in asked})
    if not found or not all(0 < one <= 1 for one in found):
        raise WorkbenchError(
            f"Expected fractions of all edges above 0 and up to 1, found {list(asked)}."
        )
    return found


def _top(means: Floats, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Numbers of so many edges with the largest |mean|, for each size."""
    order = np.argsort(-np.abs(means), kind="stable")
    return [np.sort(order[:size]) for size in sizes]


def _mask(chosen: NDArray[np.integer], total: int) -> NDArray[np.bool_]:
    made = np.zeros(total, bool)
    made[chosen] = True
    return made


def _curves(
    judged: Mapping[str, Mapping[tuple[str, str], Floats]],
    sizes: Sequence[int],
    total: int,
    seed: int,
) -> pd.DataFrame:
    """Faithfulness at each size, and the two areas, with intervals over prompts."""
    x = np.array(sizes) / total
    rows: list[pd.DataFrame] = []
    for side, runs in judged.items():
        none, whole = runs["", "none"][0], runs["", "all"][0]
        gap = whole - none
        known = np.isfinite(gap)
        times = _resampled(int(known.sum()), seed)
        for (circuit, arm), values in runs.items():
            if arm in ("all", "none"):
                continue
            share = sweep_rows.shares(values - none, gap, seed)
            about = {"side": side, "circuit": circuit or None, "arm": arm}
            found = about | {"x": x, "metric": "faithfulness", "baseline": 1.0} | share._asdict()
            rows.append(pd.DataFrame(found))
            if len(sizes) < 2:
                continue
            tops, bottoms = ((part[..., known] @ times.T) for part in (values - none, gap))
            with np.errstate(divide="ignore", invalid="ignore"):
                curve = ((values - none)[:, known].mean(1) / gap[known].mean(), tops / bottoms)
            meant = np.isfinite(share.value).all()
            for name, of in (("cpr", lambda f: f), ("cmd", lambda f: np.abs(1 - f))):
                value, drawn = area(x, of(curve[0])), area(x, of(curve[1].T))
                low, high = ends_of(drawn, int(known.sum())) if meant else (np.nan, np.nan)
                told = {"metric": name, "value": value if meant else np.nan, "low": low,
                        "high": high, "n": int(known.sum())}  # fmt: skip
                rows.append(pd.DataFrame([about | told]))
    size = pd.DataFrame({"x": x, "metric": "size", "value": np.array(sizes, float), "n": total})
    return pd.concat([*rows, size], ignore_index=True)


def _changes(
    sides: Mapping[str, _Side], sizes: Sequence[int], links: Sequence[graph.Link], seed: int
) -> pd.DataFrame:
    """How many of the base circuit's edges and nodes the tuned model's has not, at each size."""
    base, tuned = (sides[side].scores for side in SIDES)
    known = np.isfinite(base).all(0) & np.isfinite(tuned).all(0)
    base, tuned = base[:, known], tuned[:, known]
    joined = _joined(links)
    n = base.shape[1]

    def apart(ours: Floats, theirs: Floats) -> Floats:
        """(2, sizes) edge change and node change of circuits by these mean scores."""
        found = [
            (changed(a, b), changed(joined[a].ravel(), joined[b].ravel()))
            for a, b in zip(_top(ours, sizes), _top(theirs, sizes), strict=True)
        ]
        return np.array(found).T

    value = apart(base.mean(1), tuned.mean(1))
    drawn = np.array([apart(base @ times, tuned @ times) for times in _resampled(n, seed) / n])
    draw = np.random.default_rng(seed)
    null = []
    for swap in draw.random((DRAWS, n)) < 0.5:
        null.append(apart(np.where(swap, tuned, base).mean(1), np.where(swap, base, tuned).mean(1)))
    nulls = np.array(null)
    rows = []
    for kind, name in enumerate(("edge_change", "node_change")):
        for i, size in enumerate(sizes):
            about = {"side": CHANGE, "x": size / len(links), "metric": name, "n": n}
            low, high = ends_of(drawn[:, kind, i], n) if n > 1 else (np.nan, np.nan)
            middle = float(nulls[:, kind, i].mean())
            low, high = np.clip([low, high], 0, 1)
            told = {"value": value[kind, i], "low": low, "high": high}
            rows.append(about | {"arm": "patch", "baseline": middle} | told)
            low, high = np.quantile(nulls[:, kind, i], [0.025, 0.975])
            rows.append(about | {"arm": "null", "value": middle, "low": low, "high": high})
    return pd.DataFrame(rows)


def _joined(links: Sequence[graph.Link]) -> NDArray[np.int64]:
    """(edges, 2) the numbers of the nodes that each edge joins; a head is one node, whichever of
    its inputs receives."""

    def node(site: Any, received: bool) -> tuple[Any, ...]:
        if site.kind in (*graph.READ, "z"):
            # Key-value heads stand for themselves where several query heads share one.
            return ("head" if site.kind in ("q", "z") else "kv head", site.layer, site.head)
        return ("logits",) if received and site.kind == "resid_post" else (site.kind, site.layer)

    names = [(node(link.sender, False), node(link.receiver, True)) for link in links]
    known = {name: i for i, name in enumerate(dict.fromkeys(n for pair in names for n in pair))}
    return np.array([[known[one] for one in pair] for pair in names])


def _strongest(sides: Mapping[str, _Side], links: Sequence[graph.Link], seed: int) -> pd.DataFrame:
    """The strongest edges of either side as shares of clean - corrupt, and their difference."""
    # Of a model whose metric the corruption does not move there is no share.
    gaps = {side: float(np.nanmean(own.gap)) or np.nan for side, own in sides.items()}
    shares = {side: own.scores / gaps[side] for side, own in sides.items()}
    # The larger of both, or the one there is.
    size = np.fmax.reduce([np.abs(ratios(own, draws=1).value) for own in shares.values()])
    kept = np.argsort(-np.nan_to_num(size), kind="stable")[:LISTED]
    names = pd.DataFrame([links[i].named for i in kept])

    def rows() -> Iterator[pd.DataFrame]:
        for side, own in (*shares.items(), (CHANGE, shares["tuned"] - shares["base"])):
            found = ratios(own[kept], seed=seed)._asdict()
            about = {"side": side, "arm": "patch", "metric": "edge_attribution", "baseline": 0.0}
            yield names.assign(**about, **found)

    return pd.concat(list(rows()), ignore_index=True)


def _resampled(n: int, seed: int) -> Floats:
    """(draws, n) how often each of n prompts is drawn."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
