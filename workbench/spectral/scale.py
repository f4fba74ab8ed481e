"""Intruder scaling: do the intruders carry the task, or the forgetting?

In each matrix the top-ranked intruder (sigma_i, u_i, v_i) of the tuned matrix is scaled, W =
W_tuned + (lambda - 1) sigma_i u_i v_i^T, and the task's score and the loss on pre-training-like
text are measured (arXiv 2410.21228, the causal experiment). lambda = 1 is the tuned model itself.
Only what exceeds the control arms is an effect of the intruder: scaling any direction changes
something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError, some
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit, merged
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.spectral.base_svd import base_triplets
from workbench.spectral.intruders import cosines
from workbench.spectral.linalg import Operator, Triplets, dense_triplets
from workbench.stats import Interval, bootstrap, change, share
from workbench.tasks.measurements import Items, losses, own_samples, scores
from workbench.tasks.prompts import PromptSet

LAMBDAS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0, 1.5, 2.0)
Measured = dict[tuple[str, str], Items]  # (task, metric) -> its items
ROUNDING = 1e-6  # of a score, or of nats in float32
ARMS = ("top", "all", "neighbour", "random", "shrink")


@dataclass(frozen=True)
class Found:
    """One matrix with at least one intruder among its top k: its triplets and their places."""

    delta: Delta
    tuned: Triplets
    intruders: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def top(self) -> int:
        return self.intruders[0]


def direction(found: Found, arm: str, seed: int) -> Tensor | None:
    """What an arm scales, D (out, in): the edited matrix is W_tuned + (lambda - 1) D.

    "top": the top-ranked intruder. "all": every intruder among the top k. "neighbour": the tuned
    vector of nearest sigma that is no intruder. "random": a random rank-one matrix of the same
    norm. "shrink": the whole change, scaled to the same norm (at most all of it, see `capped`).
    None where a matrix has no such direction.
    """
    sigma = found.tuned.values[found.top]
    if arm == "top":
        return _outer(found.tuned, (found.top,))
    if arm == "all":
        return _outer(found.tuned, found.intruders)
    if arm == "neighbour":
        if not found.others:
            return None
        near = min(found.others, key=lambda i: abs(float(found.tuned.values[i] - sigma)))
        return _outer(found.tuned, (near,))
    if arm == "random":
        own = int(hashlib.sha256(found.delta.site.name.encode()).hexdigest()[:8], 16)
        noise = torch.Generator().manual_seed(seed + own)
        u = torch.randn(found.tuned.left.shape[0], generator=noise).to(sigma.device)
        v = torch.randn(found.tuned.right.shape[0], generator=noise).to(sigma.device)
        return torch.outer(u / u.norm(), v / v.norm()) * sigma
    change = found.delta.change.to(sigma.device)
    return change * min(1.0, float(sigma) / found.delta.norm)


def capped(found: Sequence[Found]) -> list[str]:
    """The matrices whose whole change is smaller than the intruder, so that "shrink" moves less
    there than the other arms do."""
    return [
        str(f.delta.site) for f in found if float(f.tuned.values[f.top]) > f.delta.norm * (1 + 1e-5)
    ]


def find(pair: CheckpointPair, k: int, eps: float, device: str) -> list[Found]:
    """Every matrix of the pair with an intruder, left side, paper's definition."""
    sites = progress(pair.sites(), desc=f"intruders {pair.name}")
    found = (found_in(pair.delta(site), k, eps, device) for site in sites)
    return [one for one in found if one is not None]


def found_in(delta: Delta, k: int, eps: float, device: str) -> Found | None:
    """The intruders of one matrix; None where it has none."""
    if not delta.changed or not delta.base.any():
        return None
    tuned = dense_triplets(Operator.of(delta, device).formed()).supported()
    base = base_triplets(delta.base, device).supported()
    new = cosines(tuned, base, "left").max(0).values < eps
    places = tuple(i for i in range(min(k, len(new))) if new[i])
    others = tuple(i for i in range(len(new)) if not new[i])
    return Found(delta, tuned, places, others) if places else None


@analysis(
    "Do the new singular directions carry the learned task, or the forgetting?",
    paper="arXiv 2410.21228",
    example="--prompts task.jsonl --lambdas 0,0.5,1",
    passes=50,
    takes={"task": "task", "texts": "texts"},
    quick={"lambdas": (0.0, 0.7, 1.0), "arms": ("top", "neighbour", "shrink")},
    few={"task": 24},
    quick_passes=7,
)
def scale_intruders(
    pair: CheckpointPair,
    task: PromptSet,
    *,
    lambdas: Sequence[float] = LAMBDAS,
    arms: Sequence[str] = ARMS,
    texts: Sequence[str] | None = None,
    k: int = 10,
    eps: float = 0.5,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Measure the task score and the pre-training loss while the intruder of each matrix is scaled
    by lambda, with controls.

    task: prompts of the fine-tuned task. lambdas: the factors on the intruder; 1 is always included
    (default: the paper's grid). arms: which direction is scaled: top, all, neighbour, random or
    shrink (see `direction`). texts: text like the pre-training data; None takes texts sampled from
    the base. k, eps: as in `intruders`. An adapter is merged in float32 before it is edited. dtype:
    "float32" or "bfloat16", the precision in which the model runs; decompositions stay float32.

    The command line takes 24 prompts, three lambdas (0, 0.7, 1) and the arms top, neighbour and
    shrink; with --full all prompts, eleven lambdas and all five arms.

    Returns a Result with columns arm, x (lambda), task, metric: score (task) and loss
    ("pretraining", nats per token), and score_change and loss_change, % of the value at lambda 1,
    paired over items; 95% intervals and n; baseline is the value at lambda 1. Beside arm
    top, every other arm also has score_change_of_top_beyond and loss_change_of_top_beyond, the
    change by scaling the intruder less that by this arm, paired over items (baseline 0). A model
    without intruders has only the rows at x = 1. A note says in which matrices an intruder was
    scaled, and names those where arm shrink could not be matched to the intruder's norm. Raises
    WorkbenchError for an unknown arm or an empty prompt set.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not len(task):
        raise WorkbenchError(
            f"Expected arms among {ARMS} and at least one prompt, found {list(arms)} and "
            f"{len(task)} prompts."
        )
    tokenizer = pair.base.tokenizer()
    if texts is None:
        texts = own_samples(pair.base.load(device, named_dtype(dtype)), tokenizer, seed=seed)
    found = find(pair, k, eps, device)
    model = merged(pair, device, named_dtype(dtype) or torch.float32)

    def measure() -> Measured:
        return {
            (task.name, "score"): scores(model, tokenizer, task),
            ("pretraining", "loss"): losses(model, tokenizer, texts),
        }

    start = measure()
    grid = [x for x in lambdas if x != 1] if found else []
    rows: list[tuple[Any, ...]] = []
    tops: dict[float, Measured] = {}
    ordered = sorted(arms, key=lambda arm: arm != "top")  # what the others are compared with
    for arm in progress(ordered, desc=f"scale {pair.name}"):
        rows += _rows(pair.name, arm, 1.0, start, start, seed)
        directions = {f.delta.site.name: direction(f, arm, seed) for f in found}
        for x in grid:
            with _scaled(pair, directions, x).on(model):
                now = measure()
            rows += _rows(pair.name, arm, x, now, start, seed, tops.get(x))
            if arm == "top":
                tops[x] = now
    columns = ["member", "arm", "x", "task", "metric", "value", "low", "high", "n", "baseline"]
    parameters = {
        "task": describe(task), "texts": describe(list(texts)), "lambdas": list(lambdas),
        "arms": list(arms), "k": k, "eps": eps, "weights": "merged",
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    notes = (*provenance.notes, *_notes(pair, found, arms))
    table = pd.DataFrame(rows, columns=columns).sort_values(["arm", "x"], kind="stable")
    return finished("spectral.scale", table.reset_index(drop=True), provenance.with_notes(notes))


def _notes(pair: CheckpointPair, found: Sequence[Found], arms: Sequence[str]) -> Iterator[str]:
    yield f"{pair.name}: an intruder was scaled in {len(found)} of {len(pair.sites())} matrices."
    short = capped(found) if "shrink" in arms else []
    if short:
        yield (
            f"{pair.name}: in {len(short)} of these {len(found)} matrices "
            f"({some(short)}) the whole change is smaller than the intruder, so arm "
            "shrink scales all of it there and moves the weights less than the other arms do."
        )


def _scaled(pair: CheckpointPair, directions: dict[str, Tensor | None], x: float) -> Edit:
    """W_tuned + (x - 1) D in every matrix with a direction D; the rest stays the tuned model's."""
    here = {name for name, part in directions.items() if part is not None}

    def inside(site: ParameterSite) -> bool:
        return site.name in here

    def along(delta: Delta) -> Tensor | None:
        return directions[delta.site.name]

    return edit(pair, mask=inside) + edit(pair, x - 1, mask=inside, projection=along)


def _rows(
    member: str,
    arm: str,
    x: float,
    now: Measured,
    start: Measured,
    seed: int,
    top: Measured | None = None,
) -> list[tuple[Any, ...]]:
    """The rows of one arm at one lambda. top: what arm top gives there, for the other arms."""
    rows = []
    for (task, metric), items in now.items():
        first = start[task, metric]
        at_one = bootstrap(*first, seed=seed).value
        own = share(items.values, seed=seed) if metric == "score" else bootstrap(*items, seed=seed)
        rows.append((member, arm, x, task, metric, *own, at_one))
        moved = _percent(metric, first, items, at_one, seed)
        rows.append((member, arm, x, task, f"{metric}_change", *moved, at_one))
        if top is not None:
            more = _percent(metric, items, top[task, metric], at_one, seed)
            rows.append((member, arm, x, task, f"{metric}_change_of_top_beyond", *more, 0.0))
    return rows


def _percent(metric: str, before: Items, after: Items, at_one: float, seed: int) -> Interval:
    """after - before, item by item, in % of the value at lambda 1; NaN where that is nothing."""
    scale = 100 / at_one if abs(at_one) > ROUNDING else np.nan
    if metric == "score":
        same = after is before
        found = change(before.values, after.values, same=same, seed=seed)
    else:
        found = bootstrap(after.values - before.values, after.weights, seed=seed)
    value, low, high = (edge * scale for edge in found[:3])
    return Interval(value, low, high, found.n)


def _outer(triplets: Triplets, places: Sequence[int]) -> Tensor:
    pick = list(places)
    return (triplets.left[:, pick] * triplets.values[pick]) @ triplets.right[:, pick].T
