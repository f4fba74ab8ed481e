"""Drift of the hidden states: how far apart are the streams of base and fine-tuned model?

Both sides read the same prompts; compared is the residual stream at each prompt's last token, the
embedding's (layer -1) and every layer's, X of the base and Y of the tuned model, (prompts, width):

    frechet   |mean X - mean Y|^2 + tr(Sx + Sy - 2 (Sx Sy)^1/2)    S the covariances
    cka       |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F), centred          1: alike up to a rotation
    cosine    mean over prompts of cos(x, y)

The Frechet distance of Gaussians (Dowson & Landau 1982) is what the modality integration rate takes
layer by layer (Huang et al. 2024, arXiv 2410.07167, there between the tokens of two modalities);
linear CKA is Kornblith et al. 2019 (arXiv 1905.00414). Each has its null. A distance of
distributions is biased by few prompts, so it is measured on halves: the sides on one half, against
the base on the two halves. CKA and cosine are held against the same states paired with other
prompts'.

On the unit sphere, per side: uniformity log mean exp(-2 |x - y|^2) over pairs of prompts, and,
where rewordings are given, alignment, the mean |x - x'|^2 of a prompt and its rewording (Wang &
Isola 2020, arXiv 2005.10242; before and after fine-tuning in Oh et al. 2023, arXiv 2203.03897).

It misleads where few coordinates are huge: they decide all of these numbers, and a change beside
them does not show. With fewer prompts than coordinates CKA is high for any two models, so read it
against its null. A rotation that every later layer undoes is a drift without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import Sides, named_dtype
from workbench.patching.states import Floats, streams
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, ratios
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, pad_id, rows
from workbench.tasks.prompts import require_halves

KEY = "patching.drift"
SPLITS = 8  # random halves, and random pairings, of the nulls
BOTH = "tuned - base"


def frechet(x: Floats, y: Floats) -> float:
    """Frechet distance of the Gaussians with the means and covariances of x and y, (n, width) each,
    in the states' own unit squared. The trace of (Sx Sy)^1/2 is the nuclear norm of Xc Yc^T /
    (n - 1): its singular values are those of Sx^1/2 Sy^1/2."""
    means = np.square(x.mean(0) - y.mean(0)).sum()
    a, b = x - x.mean(0), y - y.mean(0)
    n, m = len(a) - 1, len(b) - 1
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt(n * m)
    return float(max(0.0, means + np.square(a).sum() / n + np.square(b).sum() / m - 2 * root))


def cka(x: Floats, y: Floats) -> float:
    """Linear CKA of paired states (n, width) and (n, other width); NaN where a side is constant, as
    the embedding is where all prompts end alike."""
    a, b = x - x.mean(0), y - y.mean(0)
    if any(np.abs(part).max() <= 1e-12 * np.abs(whole).max() for part, whole in ((a, x), (b, y))):
        return float("nan")
    ours, theirs = a @ a.T, b @ b.T
    return float((ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def cosines(x: Floats, y: Floats) -> Floats:
    """cos(x, y) of every prompt, NaN where a state is zero."""
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(size > 0, (x * y).sum(1) / np.where(size > 0, size, 1), np.nan)


def alignment(x: Floats, y: Floats) -> Floats:
    """|x - y|^2 of every prompt's two states on the unit sphere: 2 - 2 cos."""
    return 2 - 2 * cosines(x, y)


def uniformity(x: Floats) -> Floats:
    """(n,) whose mean is log mean exp(-2 |x - y|^2) over pairs of different prompts on the unit
    sphere, and whose scatter is that of the statistic: its value plus each prompt's influence, so
    that a bootstrap of them is the statistic's own (Hoeffding 1948, of U-statistics)."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    kernel = np.exp(-2 * np.maximum(0, 2 - 2 * unit @ unit.T))
    np.fill_diagonal(kernel, 0)
    own = kernel.sum(1) / (len(x) - 1)
    return np.log(own.mean()) + 2 * (own / own.mean() - 1)


@analysis(
    "How far apart are the hidden states of the two models?",
    paper="arXiv 2410.07167, 1905.00414, 2005.10242",
    example="--prompts task.jsonl",
    passes=2,
    takes={"prompts": "task"},
    few={"prompts": 64, "rewordings": 64},
)
def drift(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    rewordings: PromptSet | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Compare the residual streams of both sides at the last token of every prompt.

    prompts: prompts that are read without their answers, at least 4. rewordings: the same prompts
    in other words, as many and in the same order, for the alignment. dtype: "float32" or
    "bfloat16"; None means as stored.

    The command line takes 64 prompts; with --full all of them.

    Returns a Result with columns side, layer (-1: the embedding), metric. Side "tuned - base":
    "frechet", mean over 8 random halves of the prompts, baseline the mean distance of the base from
    itself on the two halves, null_low and null_high the smallest and largest of them; "cka",
    baseline the mean over 8 random pairings; "cosine" with a 95% bootstrap interval over prompts,
    baseline the mean cosine of the base's states of different prompts. Sides "base", "tuned" and,
    paired, "tuned - base": "uniformity" (at most 0; lower is more uniform) and "alignment" (0 to 4;
    0: the same direction), with 95% intervals over prompts; the baseline of alignment is that of
    other prompts' rewordings. n: prompts. Raises WorkbenchError for fewer than 4 prompts, or
    rewordings of another number.
    """
    require_halves(len(prompts))
    if rewordings is not None and len(rewordings) != len(prompts):
        raise WorkbenchError(
            f"Expected a rewording of each of the {len(prompts)} prompts in the same order, found "
            f"{len(rewordings)}."
        )
    words = pair.base.tokenizer()
    sets = [rows(words, one) for one in (prompts, rewordings) if one is not None]
    with pair.models(device, named_dtype(dtype)) as run:
        read = [_states(run, given, pad_id(words), batch_size, device) for given in sets]
        told = f"{pair.name}: {run.described}"
    made: list[dict[str, Any]] = []
    for place, layer in enumerate(range(-1, len(read[0]["base"]) - 1)):
        own = {side: states[place] for side, states in read[0].items()}
        other = {side: states[place] for side, states in read[1].items()} if read[1:] else None
        made += [{"layer": layer} | row for row in _layer(own, other, seed)]
    columns = ["side", "layer", "metric", "value", "low", "high", "n", "baseline"]
    table = pd.DataFrame(made, columns=pd.Index([*columns, "null_low", "null_high"]))
    table.insert(0, "member", pair.name)
    parameters = {"prompts": describe(prompts), "rewordings": describe(rewordings)}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, told))
    return finished(KEY, table.astype({"layer": "Int64"}), provenance)


def _states(
    run: Sides, given: Sequence[Row], fill: int, batch_size: int, device: str
) -> dict[str, list[Floats]]:
    """Side -> the states (prompts, width) at the last token, the embedding's first."""
    known: dict[str, Any] = {"fill": fill, "batch_size": batch_size, "device": device}
    return {
        side: [own[:, 0] for own in streams(model, given, **known, label=f"{side} states")]
        for side, model in (("base", run.base), ("tuned", run.tuned))
    }


class _Nulls(NamedTuple):
    """Random halves of the prompts, and random orders in which none keeps its place."""

    halves: list[tuple[NDArray[np.intp], NDArray[np.intp]]]
    orders: list[NDArray[np.intp]]

    @classmethod
    def drawn(cls, n: int, seed: int) -> _Nulls:
        draw = np.random.default_rng(seed)
        turns = draw.integers(1, n, SPLITS)
        shuffled = [draw.permutation(n) for _ in turns]
        orders = [
            order[(np.argsort(order) + turn) % n]
            for order, turn in zip(shuffled, turns, strict=True)
        ]
        return cls([halves(n, seed + i) for i in range(SPLITS)], orders)


def _layer(
    own: Mapping[str, Floats], other: Mapping[str, Floats] | None, seed: int
) -> Iterator[dict[str, Any]]:
    """The rows of one depth."""
    base, tuned = own["base"], own["tuned"]
    n = len(base)
    nulls = _Nulls.drawn(n, seed)
    apart = [frechet(base[first], tuned[first]) for first, _ in nulls.halves]
    null = [frechet(base[first], base[second]) for first, second in nulls.halves]
    yield {
        "side": BOTH, "metric": "frechet", "value": np.mean(apart), "n": n,
        "baseline": np.mean(null), "null_low": min(null), "null_high": max(null),
    }  # fmt: skip
    chance = np.mean([cka(base, tuned[order]) for order in nulls.orders])
    yield {
        "side": BOTH, "metric": "cka", "value": cka(base, tuned), "n": n, "baseline": chance
    }  # fmt: skip
    others = np.nanmean([cosines(base, base[order]) for order in nulls.orders])
    found = ratios(cosines(base, tuned), seed=seed).first
    yield {"side": BOTH, "metric": "cosine", "baseline": others} | found._asdict()
    yield from _paired("uniformity", uniformity(base), uniformity(tuned), np.nan, seed)
    if other is not None:
        before, after = (alignment(own[side], other[side]) for side in ("base", "tuned"))
        far = np.nanmean([alignment(base, other["base"][order]) for order in nulls.orders])
        yield from _paired("alignment", before, after, float(far), seed)


def _paired(
    metric: str, base: Floats, tuned: Floats, far: float, seed: int
) -> Iterator[dict[str, Any]]:
    """A mean over prompts of both sides and of their difference. far: the base's null."""
    means = ratios(np.stack([base, tuned, tuned - base]), seed=seed)
    nulls = (far, far if np.isfinite(far) else base.mean(), 0.0)
    for number, (side, null) in enumerate(zip(("base", "tuned", BOTH), nulls, strict=True)):
        found = {name: part[number] for name, part in means._asdict().items()}
        yield {"side": side, "metric": metric, "baseline": null} | found
