"""Subspaces of the change: do fine-tuned models of one base change the same directions?

Each change is dW = U S V^T. V spans the input directions it reads (of a LoRA the rows of A), U the
output directions it writes (the columns of B); neither depends on how BA is factored. Of two models

    overlap = |Q1^T Q2|_F^2 / min(r1, r2)                 0: orthogonal, 1: one contains the other

with the principal angles arccos of the singular values of Q1^T Q2, Q the leading r directions of a
side. The null is two random subspaces: max(r1, r2) / d on average. LoRA's A stays near its random
start and B does what the task asks (Zhu et al. 2024, arXiv 2402.16842), so models that share a
start share A for that reason alone: give the starts, and each model is compared with its own.

Of whole changes: the cosine <dW1, dW2> / |dW1||dW2|, the share of entries with the same sign, and
where the centre of k siblings lies between the base (0) and their mean (1), t = k c / (1 + (k-1) c)
with c their mean cosine (Jang et al. 2024, "Model Stock", arXiv 2403.19522, eq. 4-5). `replicated`
is the share of a change's energy in the leading directions of the other models together, which one
run alone does not decide.

It misleads where the leading directions have nearly equal singular values: the subspace is then
arbitrary inside a larger one. Siblings that share their data's order share more than the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench import numerics
from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta, Family
from workbench.loaders.names import ParameterSite
from workbench.models.edits import decomposed
from workbench.numerics import chance, cosines, svd
from workbench.progress import progress
from workbench.results.result import PLACE, Provenance, Result, describe
from workbench.results.validity import finished
from workbench.spectral.linalg import Triplets

KEY = "spectral.subspaces"
INPUT, OUTPUT = "input", "output"
COLUMNS = (
    "first", "second", "side", *PLACE, "rank", "metric", "value", "n", "baseline", "null_low",
    "null_high",
)  # fmt: skip
Z = 1.959964


def leading(delta: Delta, k: int) -> Triplets:
    """The leading k singular triplets of a change, fewer where its rank is lower."""
    left, values, right = decomposed(delta)
    found = Triplets(left, values, right.T, torch.zeros_like(values)).supported()
    return found.top(k)


def stock_ratio(cosine: float, k: int) -> float:
    """t of `k` siblings with this mean cosine; 0 for a mean of 0 or less."""
    return max(0.0, k * cosine / (1 + (k - 1) * cosine))


def together(changes: Sequence[Triplets], side: str, k: int) -> Float[Tensor, "d k"]:
    """The leading k directions of several changes, each of which counts as one: of the sum of
    their Gram matrices over their squared norms."""
    weighted = [
        (one.right if side == INPUT else one.left) * (one.values / numerics.norm(one.values))
        for one in changes
    ]
    left, values, _ = svd(torch.cat(weighted, 1))
    floor = values[:1] * max(left.shape) * torch.finfo(values.dtype).eps
    return left[:, : min(k, int((values > floor).sum()))]


@analysis(
    "Do fine-tuned models of one base change the same directions?",
    paper="arXiv 2402.16842, 2403.19522",
    example="--member lora-r4=A --member full=B",
    passes=0,
)
def subspaces(
    family: Family,
    *,
    starts: Mapping[str, str] | None = None,
    k: int = 8,
    device: str = "cpu",
) -> Result:
    """Compare the changes of every two models of a family, matrix by matrix.

    starts: model -> the folder of its LoRA adapter as it was before training (peft stores none: one
    saved at step 0, or made with the run's seed), where A is compared with its start. k: the most
    leading directions of a change that make its subspace; a LoRA of lower rank has all of its own.
    device: where the decompositions are computed.

    Returns a Result with columns first, second (models; second is "start" for a LoRA's start), side
    ("input" or "output"), layer, component, rank, metric. "overlap" (0 to 1), with the mean of
    random subspaces as baseline and their 95% range as null_low and null_high, and "angle", the
    principal angles in degrees by rank, smallest first. "cosine" of the two changes and
    "sign_agreement", the share of equal signs among the entries that changed in both, null_low and
    null_high for signs of rows and columns drawn at random; both per matrix, and for the whole
    change without layer and component. Of one model, first: "norm", and "replicated" (side), the
    share of its squared norm in the leading k directions of the others together, baseline k / d.
    "stock": t of all models, baseline 0, n the models. Rows of a matrix that did not change in a
    model are not there. Raises WorkbenchError for fewer than two models, or a start that is no LoRA
    of the base.
    """
    names = list(family.members)
    if len(names) < 2:
        raise WorkbenchError(
            f"Expected at least two fine-tuned models to compare, found {names}; give --member "
            "for each of them."
        )
    if k < 1:
        raise WorkbenchError(f"Expected k of at least 1 direction, found {k}.")
    starts = starts or {}
    unknown = [name for name in starts if name not in family.members]
    if unknown:
        raise WorkbenchError(f"There is no model {unknown[0]!r} of that start; there are {names}.")
    pairs = {name: family[name] for name in names}
    about = [pair.provenance() for pair in pairs.values()]
    sites = _shared(pairs)
    sums = _Sums(names)
    rows: list[dict[str, Any]] = []
    for site in progress(sites, desc="subspaces"):
        rows += _matrix(site, pairs, k, device, sums)
    rows += sums.rows()
    for name, start in starts.items():
        rows += _started(pairs[name], start, k)
    still = [name for name in names if not sums.norms[name]]
    notes = [note for one in about for note in one.notes]
    notes += [f"{name}: no matrix changed, so it has no directions." for name in still]
    members = {name: one.members[name] for name, one in zip(names, about, strict=True)}
    parameters = {"k": k, "starts": describe(starts)}
    provenance = Provenance(
        family.base.about, members, parameters, device=str(device), notes=tuple(notes)
    )
    return finished(KEY, _table(rows), provenance)


def _table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    table = table.astype(dict.fromkeys(("layer", "expert", "rank"), "Int64"))
    return table if table["expert"].notna().any() else table.drop(columns="expert")


def _shared(pairs: Mapping[str, CheckpointPair]) -> list[ParameterSite]:
    """The matrices that every pair compares."""
    each = [{site.name: site for site in pair.sites()} for pair in pairs.values()]
    return [site for name, site in each[0].items() if all(name in other for other in each[1:])]


class _Sums:
    """Of the whole changes: squared norms, products, and equal signs."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.norms = dict.fromkeys(names, 0.0)
        self.products = dict.fromkeys(combinations(names, 2), 0.0)
        self.signs: dict[tuple[str, str], tuple[int, int]] = dict.fromkeys(self.products, (0, 0))

    def rows(self) -> Iterator[dict[str, Any]]:
        found = []
        for first, second in self.products:
            size = (self.norms[first] * self.norms[second]) ** 0.5
            if not size:
                continue
            found.append(self.products[first, second] / size)
            same, both = self.signs[first, second]
            about = {"first": first, "second": second}
            yield about | {"metric": "cosine", "value": found[-1], "baseline": 0.0}
            if both:
                yield about | _agreement(same, both)
        for name in self.names:
            yield {"first": name, "metric": "norm", "value": self.norms[name] ** 0.5}
        moved = sum(value > 0 for value in self.norms.values())
        if found:
            t = stock_ratio(float(np.mean(found)), moved)
            yield {"metric": "stock", "value": t, "n": moved, "baseline": 0.0}


def _agreement(same: int, both: int) -> dict[str, Any]:
    """Of `both` entries that changed in both. Signs of rows and columns drawn at random keep either
    spectrum; entries then agree or not pairwise independently, half of them on average."""
    half = Z * 0.5 / both**0.5
    return {
        "metric": "sign_agreement", "value": same / both, "n": both, "baseline": 0.5,
        "null_low": 0.5 - half, "null_high": 0.5 + half,
    }  # fmt: skip


class _Side(NamedTuple):
    """Of one model and matrix."""

    change: Tensor
    norm: float
    triplets: Triplets


def _matrix(
    site: ParameterSite, pairs: Mapping[str, CheckpointPair], k: int, device: str, sums: _Sums
) -> Iterator[dict[str, Any]]:
    """The rows of one matrix, added to the sums."""
    place = site.place
    sides: dict[str, _Side] = {}
    for name, pair in pairs.items():
        delta = pair.delta(site).to(torch.device(device))
        if delta.changed:
            sides[name] = _Side(delta.change.cpu(), delta.norm, leading(delta, k))
            sums.norms[name] += delta.norm**2
            yield place | {"first": name, "metric": "norm", "value": delta.norm}
    for first, second in combinations(sides, 2):
        ours, theirs = sides[first], sides[second]
        about = place | {"first": first, "second": second}
        # In the unit of the norms: products of tiny changes would be 0 in float32.
        cosine = float((ours.change.double() / ours.norm * theirs.change / theirs.norm).sum())
        sums.products[first, second] += cosine * ours.norm * theirs.norm
        spread = Z / ours.change.numel() ** 0.5
        null = {"baseline": 0.0, "null_low": -spread, "null_high": spread}
        yield about | {"metric": "cosine", "value": cosine, **null}
        signs = ours.change.sign() * theirs.change.sign()
        same, both = int((signs > 0).sum()), int((signs != 0).sum())
        before = sums.signs[first, second]
        sums.signs[first, second] = (before[0] + same, before[1] + both)
        if both:
            yield about | _agreement(same, both)
        yield from _compared(about, ours.triplets, theirs.triplets)
    for name, own in sides.items() if len(sides) > 1 else ():
        others = [one.triplets for other, one in sides.items() if other != name]
        for side in (INPUT, OUTPUT):
            frame = together(others, side, k)
            # Of a full change the projection sees all of it, also beyond its leading directions.
            inside = (
                own.change.to(frame) @ frame if side == INPUT else frame.T @ own.change.to(frame)
            )
            share = (numerics.norm(inside) / own.norm) ** 2
            yield place | {
                "first": name, "side": side, "metric": "replicated", "value": share,
                "baseline": frame.shape[1] / frame.shape[0],
            }  # fmt: skip


def _compared(about: dict[str, Any], first: Triplets, second: Triplets) -> Iterator[dict[str, Any]]:
    """Overlap and angles of both sides of two changes."""
    for side in (INPUT, OUTPUT):
        a, b = (one.right if side == INPUT else one.left for one in (first, second))
        yield from _overlap(about | {"side": side}, a, b)


def _overlap(about: dict[str, Any], a: Tensor, b: Tensor) -> Iterator[dict[str, Any]]:
    found = cosines(a, b)
    mean, low, high = chance(a.shape[0], a.shape[1], b.shape[1])
    value = float(found.double().square().sum()) / min(a.shape[1], b.shape[1])
    null = {"baseline": mean, "null_low": low, "null_high": high}
    yield about | {"metric": "overlap", "value": value, **null}
    for rank, one in enumerate(torch.rad2deg(found.double().arccos()).tolist()):
        yield about | {"rank": rank, "metric": "angle", "value": one}


def _started(pair: CheckpointPair, start: str, k: int) -> Iterator[dict[str, Any]]:
    """A LoRA's A against A before training, whose B was zero and has no directions."""
    before = CheckpointPair(pair.base, type(pair.base)(pair.base.reference, str(start)), "start")
    for site in pair.sites():
        own, first = pair.delta(site), before.delta(site)
        if own.factors is None or not own.changed:
            continue
        if first.factors is None:
            raise WorkbenchError(
                f"Expected {start} to be a LoRA of the modules that {pair.name} adapts, found "
                f"none of {site}; give the adapter that its training started from."
            )
        rows, _ = torch.linalg.qr(first.factors.down.T)
        about = site.place | {"first": pair.name, "second": "start"}
        yield from _overlap(about | {"side": INPUT}, leading(own, k).right, rows)
