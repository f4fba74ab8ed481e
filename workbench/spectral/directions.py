"""Directions of the change: what does each one write, read and do?

dW = sum_i sigma_i u_i v_i^T per matrix. To first order the loss of the task rises by

    sensitivity_i = -sigma_i u_i^T G v_i

where direction i alone is taken out of the fine-tuned model, G the gradient of the loss there; Tian
et al. 2026 (arXiv 2603.03995) reweight the singular values of a LoRA by it. Directions of the same
sigma at random have mean 0 and variance sigma^2 |G|^2 / (out in), exactly. The directions with the
largest |sensitivity|, chosen on one half of the prompts, are then taken out one by one, and loss
and score are measured on the other half, beside their nearest neighbour in sigma and a random
direction of the same sigma.

Words: of matrices that write to the residual stream u is read by the head (the tokens it makes
likelier, at its end +, or less likely, -), of those that read the stream v by the same rows (the
tokens whose stream it answers to), as cosines with them (logit lens, nostalgebraist 2020).

It misleads where directions work together: taking out one of two that do the same does little, and
the first order says nothing of large sigma. A word's cosine is small wherever the stream is not
written in the head's terms, above all in early layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite, align
from workbench.models import Edit, Layout, Site, edit, merged
from workbench.models.edits import decomposed
from workbench.models.sides import named_dtype
from workbench.models.task_gradient import Teacher, require_gradients
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, paired_shares, ratios
from workbench.tasks import PromptSet
from workbench.tasks.prompts import require_halves
from workbench.tasks.score import answers

KEY = "spectral.directions"
Z = 1.959964
WRITES, READS = "writes", "reads"
COLUMNS = (
    "layer", "component", "rank", "arm", "side", "x", "token", "metric", "value", "low", "high",
    "n", "baseline", "null_low", "null_high",
)  # fmt: skip
ARMS = ("direction", "neighbour", "random")


class Direction(NamedTuple):
    """One rank-one part of a matrix's change. slope: its sensitivity on the prompts that choose."""

    site: ParameterSite
    rank: int
    sigma: float
    left: Float[Tensor, " out"]
    right: Float[Tensor, " in"]
    slope: float

    @property
    def part(self) -> Float[Tensor, "out in"]:
        return self.sigma * torch.outer(self.left, self.right)


def sensitivities(
    left: Float[Tensor, "out k"],
    values: Float[Tensor, " k"],
    right: Float[Tensor, "k in"],
    gradient: Float[Tensor, "out in"],
) -> Float[Tensor, " k"]:
    """First-order rise of the loss where each direction is taken out."""
    return -values * ((left.T @ gradient) * right).sum(1)


def nearest(
    vector: Float[Tensor, " width"], words: Float[Tensor, "words width"], top: int
) -> list[tuple[int, float]]:
    """The tokens whose rows have the largest |cosine| with a vector, and it; words: unit rows."""
    found = words @ (vector / vector.norm())
    best = found.abs().topk(min(top, len(found))).indices
    return [(int(i), float(found[i])) for i in best]


@analysis(
    "What does each direction of the change write, read and do?",
    paper="arXiv 2603.03995; logit lens, nostalgebraist 2020",
    example="--prompts task.jsonl",
    passes=20,
    takes=None,
    quick={"k": 2, "most": 4},
    few={"task": 32},
    quick_passes=12,
)
def directions(
    pair: CheckpointPair,
    task: PromptSet,
    *,
    k: int = 4,
    most: int = 8,
    words: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Read the leading directions of every matrix's change, and take the most sensitive ones out.

    task: prompts of what was learned; on one half directions are chosen, on the other measured. k:
    the number of leading directions of a matrix that are looked at. most: how many of all of them
    are taken out one by one. words: the number of tokens by which a direction is read. dtype:
    "float32" or "bfloat16", the precision in which the model runs; an adapter is merged in float32.

    The command line takes 32 prompts, 2 directions a matrix and takes out 4; with --full all
    prompts, 4 directions and 8.

    Returns a Result; by layer, component and rank (0-based): "sigma"; "sensitivity" (nats by which
    the loss of the answer would rise without it), baseline 0 and for random directions of the same
    sigma the 95% range as null_low and null_high; "word" (side "writes" or "reads", place x from 1,
    token), the cosine with the token's row of the head, baseline the largest |cosine| of a random
    direction. For those taken out, by arm ("direction", "neighbour", "random"): "loss_change"
    (nats) and "score_change", without it less with it, paired over the n prompts of the other half,
    with 95% intervals. Raises WorkbenchError for fewer than 4 prompts, no changed matrix, or an
    offloaded model.
    """
    require_halves(len(task))
    if k < 1 or most < 0 or words < 0:
        raise WorkbenchError(
            f"Expected k of at least 1, and most and words of 0 or more; found {k}, {most} and "
            f"{words}."
        )
    held = pair.held(device)
    model: Any = merged(held, device, named_dtype(dtype) or torch.float32).eval()
    choose, report = (task.at(places) for places in halves(len(task), seed))
    teacher = Teacher(held, model, choose, batch_size)
    require_gradients(teacher.model)
    _, gradients = teacher.gradients(range(len(choose)))
    found, rows = [], []
    for site in progress(pair.sites(), desc=f"directions {pair.name}"):
        delta = held.delta(site)
        if delta.changed and site.name in gradients:
            own = list(_directions(delta, gradients[site.name], k))
            found += own
            rows += [row for one in own[:k] for row in _read(one, gradients[site.name])]
    if not found:
        raise WorkbenchError(
            f"{pair.name} has no changed matrix, so it has no directions; give a model whose "
            "weights differ from the base's."
        )
    looked = [one for one in found if one.rank < k]
    rows += _words(pair, model, looked, words)
    run = {"seed": seed, "batch_size": batch_size}
    rows += _taken_out(held, model, report, looked, found, most, run)
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    table = table.astype({"layer": "Int64", "rank": "Int64"})
    table.insert(0, "member", pair.name)
    parameters = {"task": describe(task), "k": k, "most": most, "words": words, "weights": "merged"}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "float32"}
    return finished(KEY, table, pair.provenance(parameters=parameters, **known))


def _directions(delta: Delta, gradient: Tensor, k: int) -> Iterator[Direction]:
    """The leading k + 1: the last has the one before it as a neighbour, and is not looked at."""
    left, values, right = decomposed(delta)
    kept = int((values > values[0] * max(delta.change.shape) * 1.2e-7).sum())
    left, values, right = left[:, : k + 1], values[: min(k + 1, kept)], right[: k + 1]
    left, right = left[:, : len(values)], right[: len(values)]
    slopes = sensitivities(left, values, right, gradient.to(left))
    for rank, (sigma, slope) in enumerate(zip(values.tolist(), slopes.tolist(), strict=True)):
        yield Direction(delta.site, rank, sigma, left[:, rank], right[rank], slope)


def _at(one: Direction) -> dict[str, Any]:
    return one.site.place | {"rank": one.rank}


def _read(one: Direction, gradient: Tensor) -> Iterator[dict[str, Any]]:
    """Its size and its sensitivity."""
    half = Z * one.sigma * float(gradient.norm()) / gradient.numel() ** 0.5
    null = {"baseline": 0.0, "null_low": -half, "null_high": half}
    yield _at(one) | {"metric": "sensitivity", "value": one.slope} | null
    yield _at(one) | {"metric": "sigma", "value": one.sigma}


def _sides(pair: CheckpointPair, layout: Layout) -> dict[str, str]:
    """Parameter name -> whether it writes to the stream or reads from it, where it does either."""
    ends = {
        layout.path(Site(kind, layer))
        for kind in ("z", "mlp_hidden")
        for layer in layout.where(kind)
    }
    names = {f"{name}.weight": name for name, _ in layout.root.named_modules()}
    named = align([site.name for site in pair.sites()], list(names))
    found = {}
    for name, theirs in named.items():
        out, inner = pair.shape(name)[:2]
        if names[theirs] in ends and layout.width in (out, inner):
            found[name] = WRITES
        elif layout.width in (out, inner):
            found[name] = READS
    return found


def _words(
    pair: CheckpointPair, model: Any, looked: Sequence[Direction], top: int
) -> Iterator[dict[str, Any]]:
    """The tokens of every direction that stands in the stream."""
    if not top:
        return
    head: Any = model.get_output_embeddings()
    rows = head.weight.detach().float()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    layout, tokenizer = Layout(model), pair.base.tokenizer()
    sides = _sides(pair, layout)
    chance = (2 * np.log(max(len(rows), 2)) / rows.shape[1]) ** 0.5
    for one in looked:
        side = sides.get(one.site.name)
        vector = one.left if side == WRITES else one.right
        if side is None or len(vector) != rows.shape[1]:
            continue
        for place, (token, cosine) in enumerate(nearest(vector.to(rows), rows, top), 1):
            said = {"side": side, "x": float(place), "token": tokenizer.decode([token])}
            yield (
                _at(one) | said | {"metric": "word", "value": cosine, "baseline": min(1.0, chance)}
            )


def _taken_out(
    pair: CheckpointPair,
    model: Any,
    report: PromptSet,
    looked: Sequence[Direction],
    found: Sequence[Direction],
    most: int,
    run: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """What the most sensitive directions do, each alone, and the controls beside them."""
    words = pair.base.tokenizer()
    before = answers(model, words, report, batch_size=run["batch_size"])
    chosen = sorted(looked, key=lambda one: -abs(one.slope))[:most]
    for one in progress(chosen, desc="directions taken out"):
        for arm in ARMS:
            part = _part(one, found, arm, run["seed"])
            if part is None:
                continue
            with _without(pair, one.site, part).on(model):
                after = answers(model, words, report, batch_size=run["batch_size"])
            sides = [side["correct"].to_numpy(float) for side in (before, after)]
            loss = before["log_probability"] - after["log_probability"]
            changes = {
                "loss_change": ratios(loss.to_numpy(float), seed=run["seed"]).first,
                "score_change": paired_shares(*sides),
            }
            for metric, change in changes.items():
                yield _at(one) | {"arm": arm, "metric": metric, "baseline": 0.0} | change._asdict()


def _part(one: Direction, found: Sequence[Direction], arm: str, seed: int) -> Tensor | None:
    """What an arm takes out, (out, in); None where the change has no other direction."""
    if arm == "direction":
        return one.part
    if arm == "neighbour":
        others = [o for o in found if o.site == one.site and o.rank != one.rank]
        return min(others, key=lambda o: abs(o.sigma - one.sigma)).part if others else None
    own = int(hashlib.sha256(f"{one.site.name}/{one.rank}".encode()).hexdigest()[:8], 16)
    noise = torch.Generator().manual_seed(seed + own)
    left, right = (torch.randn(len(v), generator=noise).to(v) for v in (one.left, one.right))
    return one._replace(left=left / left.norm(), right=right / right.norm()).part


def _without(pair: CheckpointPair, site: ParameterSite, part: Tensor) -> Edit:
    """W_tuned - part in one matrix; the rest stays the fine-tuned model's."""

    def here(other: ParameterSite) -> bool:
        return other.name == site.name

    return edit(pair, mask=here) + edit(pair, -1.0, mask=here, projection=lambda _: part)
