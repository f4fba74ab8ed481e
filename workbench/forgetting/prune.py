"""Pruning what fine-tuning uses: does the lost capability come back?

Neurons of the tuned model are ranked by |theta . dL/dtheta| of the fine-tuned task, theta a
neuron's output weights, and set to zero, the most relevant first, while the pre-training score is
followed. Under a wrapper the score rises as the wrapper goes; what was erased does not come back
(Jain et al. 2024, arXiv 2311.12786). theta . dL/dtheta of a neuron's output weights is its
activation times the gradient there, summed over tokens: one backward pass, no gradient of weights.

It misleads if the same neurons serve both tasks. Controls are as many random neurons, and the same
neurons pruned in the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.conjugate import recovered
from workbench.forgetting.side_answers import Side, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import home
from workbench.models import Layout, Site, replace
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, ratios, share_of
from workbench.stats import shares as scored
from workbench.tasks.batching import batch, in_batches, pad_id, rows
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers

KEY = "forgetting.prune"
RANKED, RANDOM, BASE = "ranked", "random", "base, same neurons"
BEST = "best"
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
Floats = NDArray[np.float64]


def relevance(model: Any, words: Any, prompts: PromptSet, batch_size: int = 32) -> Tensor:
    """(layers, neurons): |sum over tokens of activation . dL/dactivation|, L the mean over prompts
    of the answer's nats."""
    layout, device = Layout(model), home(model)
    given, fill = rows(words, prompts, answers=True), pad_id(words)
    sites = [layout.check(Site("mlp_hidden", layer)) for layer in range(layout.layers)]
    layout.require_even("mlp_hidden", "prune a model of even blocks")

    def run(at: list[int]) -> Tensor:
        inputs = batch(given, at, device, fill)
        grown: dict[Site, Tensor] = {}

        def watched(site: Site):
            def watch(value: Tensor) -> Tensor:
                # Leaves, so that the frozen weights need no gradient.
                grown[site] = value if value.requires_grad else value.detach().requires_grad_(True)
                return grown[site]

            return watch

        with torch.enable_grad(), replace(model, {site: watched(site) for site in sites}):
            logits = model(**inputs.inputs, use_cache=False).logits
            row = [i for i, one in enumerate(inputs.rows) for _ in one.answer]
            place = [len(r.ids) - 1 + j for r in inputs.rows for j in range(len(r.answer))]
            said = torch.tensor([t for r in inputs.rows for t in r.answer], device=device)
            loss = F.cross_entropy(logits[row, place].float(), said, reduction="sum") / len(given)
            found = torch.autograd.grad(loss, [grown[site] for site in sites])
        return torch.stack([
            (grown[site].detach().float() * slope.float()).sum((0, 1))
            for site, slope in zip(sites, found, strict=True)
        ])  # fmt: skip

    lengths = [len(row.fed) for row in given]
    total = torch.zeros(layout.layers, layout.neurons, device=device)
    for _, part in in_batches(lengths, batch_size, run):
        total += part
    return total.abs()


@analysis(
    "Does a lost answer come back if the neurons that the learned task uses are pruned?",
    paper="arXiv 2311.12786",
    example="--prompts facts.jsonl --task task.jsonl",
    passes=25,
    takes={"prompts": "task", "task": "learned"},
    quick={"shares": (0.01, 0.1), "random": 1},
    few={"prompts": 32, "task": 32},
    quick_passes=8,
)
def prune(
    pair: CheckpointPair,
    prompts: PromptSet,
    task: PromptSet,
    *,
    shares: Sequence[float] = SHARES,
    random: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Score the model while the MLP neurons that the fine-tuned task uses most are pruned.

    prompts: prompts of the capability that may be lost. task: prompts of the fine-tuned task; half
    of them rank the neurons, the other half are scored. shares: the shares of all neurons that are
    pruned together. random: how often as many random neurons are drawn.

    The command line takes 32 prompts, two shares (0.01, 0.1) and 1 random draw; with --full all
    prompts, five shares and 3 draws.

    Returns a Result with rows score (arm "ranked", "random" (mean over draws), "base, same
    neurons"; x = share pruned, 0 the model itself; task, own for the fine-tuned one; baseline: the
    unpruned base's score), and for each arm of the tuned model at the share with most right answers
    on one half of the prompts, reported on the other (arm "best ranked", "best random"): regained,
    pruned - tuned, and recovered, its ratio to base - tuned, NaN if the interval of that loss holds
    0. 95% intervals over prompts. Raises WorkbenchError for shares outside (0, 1] or
    fewer than 4 prompts.
    """
    require_prompts(prompts, task)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise WorkbenchError(f"Expected shares of the neurons in (0, 1], found {tuple(shares)}.")
    if random < 1 or len(prompts) < 4 or len(task) < 4:
        raise WorkbenchError(
            f"Expected 1 random draw or more and 4 prompts or more a set, found {random} and "
            f"{len(prompts)}, {len(task)}."
        )
    base, tuned = both(pair, batch_size, device, dtype)
    order = np.random.default_rng(seed).permutation(len(task))
    ranking, asked = (task.at(sorted(part)) for part in np.array_split(order, 2))
    scores = relevance(tuned.model, tuned.words, ranking, batch_size).flatten()
    by_rank = scores.argsort(descending=True, stable=True).cpu()
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(by_rank), generator=draw) for _ in range(random)]
    sizes = [max(1, round(share * len(by_rank))) for share in shares]
    plans = [(RANKED, tuned, [by_rank]), (RANDOM, tuned, drawn), (BASE, base, [by_rank])]
    sets = (prompts, asked)
    read: dict[str, list[Floats]] = {}  # arm -> per set (1 + shares, prompts)
    total = sum(len(orders) for _, _, orders in plans) * len(sizes)
    with progress(total=total, desc=f"{pair.name}: pruned") as bar:
        for arm, side, orders in plans:
            found = [[_right(side.answers(one)) for one in sets]]
            for size in sizes:
                each = []
                for one_order in orders:
                    each.append(_pruned(side, one_order[:size], sets))
                    bar.update()
                found.append([np.mean(column, axis=0) for column in zip(*each, strict=True)])
            read[arm] = [np.stack(column) for column in zip(*found, strict=True)]
    table = pd.DataFrame([*_scores(read, sets, shares, seed), *_best(read, shares, seed)])
    table["task"] = table["task"].fillna(prompts.name)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "task": describe(task), "shares": list(shares),
        "random": random,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance, {f"{pair.name}/relevance": scores.cpu().numpy()})


def _right(found: pd.DataFrame) -> Floats:
    return found["correct"].to_numpy(float)


def _pruned(side: Side, neurons: Tensor, sets: Sequence[PromptSet]) -> list[Floats]:
    """Right answers with these neurons (places in the flattened (layers, neurons)) at zero."""
    layout = Layout(side.model)
    keep = torch.ones(layout.layers * layout.neurons)
    keep[neurons] = 0
    masks = keep.view(layout.layers, layout.neurons).to(home(side.model))

    def zeroed(mask: Tensor):
        return lambda value: value * mask.to(value.dtype)

    changes = {Site("mlp_hidden", i): zeroed(mask) for i, mask in enumerate(masks)}
    with replace(side.model, changes):
        return [
            _right(answers(side.model, side.words, one, batch_size=side.batch_size)) for one in sets
        ]


def _scores(
    read: Mapping[str, list[Floats]], sets: Sequence[PromptSet], shares: Sequence[float], seed: int
):
    for arm, per_set in read.items():
        for place, (one, values) in enumerate(zip(sets, per_set, strict=True)):
            found = scored(values, seed=seed)
            before = float(read[BASE][place][0].mean())
            for i, x in enumerate((0.0, *shares)):
                interval = {name: part[i] for name, part in found._asdict().items()}
                told = {"arm": arm, "task": one.name, "own": place == 1, "x": x, "metric": "score"}
                yield told | interval | {"baseline": before}


def _best(read: Mapping[str, list[Floats]], shares: Sequence[float], seed: int):
    """What comes back at the share that one half of the prompts choose, on the other half."""
    base = read[BASE][0][0]
    choose, report = halves(len(base), seed)
    for arm in (RANKED, RANDOM):
        values = read[arm][0]
        best = 1 + int(values[1:, choose].mean(1).argmax())
        back, lost = recovered(base[report], values[0, report], values[best, report])
        told = {"arm": f"{BEST} {arm}", "own": False, "x": shares[best - 1], "baseline": 0.0}
        yield told | {"metric": "regained"} | ratios(back, seed=seed).first._asdict()
        found = share_of(back, lost, seed=seed)._asdict()
        yield told | {"metric": "recovered"} | found
