"""Intruder dimensions: which top singular vectors of the tuned model are new to the base?

The j-th left singular vector u_j of the tuned matrix is an intruder iff max_i |u_j . u0_i| < eps
over all left singular vectors u0_i of the base matrix; k = 10, eps = 0.5 (Shuttleworth, Andreas,
Torralba & Sharma, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228,
definition and Algorithm 1). It misleads where base singular values lie close together: noise then
turns the vectors inside their cluster and each looks new. `cluster_projection` near 1 and a high
`participation_ratio` say so. Whether a count is large is said only by the nulls beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.adapters import Factors
from workbench.results import Result
from workbench.spectral.linalg import (
    Operator,
    Triplets,
    base_triplets,
    dense_triplets,
    top_triplets,
)

Side = Literal["left", "right", "joint"]
Method = Literal["auto", "exact"]
CLUSTER = 0.01  # base values within 1% of the nearest one's count as one cluster


def cosines(tuned: Triplets, base: Triplets, side: Side) -> Float[Tensor, "base k"]:
    """|cosine| of every base vector with each tuned one; "joint" is the product of both sides,
    which is 1 only where the same input still leads to the same output."""
    left = base.left.T @ tuned.left if side != "right" else None
    right = base.right.T @ tuned.right if side != "left" else None
    if left is None or right is None:
        found = left if right is None else right
        assert found is not None
        return found.abs().clamp(max=1)
    return (left * right).abs().clamp(max=1)


def describe(tuned: Triplets, base: Triplets, side: Side) -> dict[str, Float[Tensor, " k"]]:
    """Per tuned vector: sigma, max_cosine, nearest (0-based index of the base vector),
    participation_ratio 1 / sum c^4 of its normalised coordinates c (1: one base vector, n: spread
    over n), cluster_projection (norm of its part among base vectors of nearly the same sigma),
    and out_of_span (share of its energy outside the base's span)."""
    found = cosines(tuned, base, side)
    best, nearest = found.max(0)
    energy = found.square()
    total = energy.sum(0)
    near = base.values[nearest]
    cluster = (base.values[:, None] - near).abs() <= CLUSTER * near
    return {
        "sigma": tuned.values,
        "max_cosine": best,
        "nearest": nearest.float(),
        "participation_ratio": total.square() / energy.square().sum(0),
        "cluster_projection": (energy * cluster).sum(0).clamp(max=1).sqrt(),
        "out_of_span": (1 - total).clamp(min=0, max=1),
    }


def tuned_triplets(
    operator: Operator, base: Triplets, k: int, eps: float, side: Side, method: Method
) -> Triplets:
    """The top k of a tuned matrix. "auto" takes the certified iteration where every angle bound
    holds and no decision at eps lies within it; else, and for "exact", the dense SVD."""
    if method == "auto":
        found = top_triplets(operator, k, base.right[:, : 2 * k])
        if found is not None:
            # A product of two cosines moves by at most the sum of the two angles.
            slack = found.angle * (2 if side == "joint" else 1)
            margin = (cosines(found, base.supported(), side).max(0).values - eps).abs()
            if bool((margin > slack).all()):
                return found
    return dense_triplets(operator.formed()).top(k)


def null_operators(
    delta: Delta, base: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, Operator]]:
    """The same base with a change of the same Frobenius norm and no structure: dense Gaussian,
    and, for a LoRA change, a Gaussian BA of the same rank."""
    norm = delta.norm
    dense = torch.randn(base.shape, generator=generator).to(base.device)
    yield "random_delta", Operator(base + dense * (norm / torch.linalg.vector_norm(dense)))
    if delta.factors is not None:
        rank = delta.factors.up.shape[1]
        up = torch.randn(base.shape[0], rank, generator=generator).to(base.device)
        down = torch.randn(rank, base.shape[1], generator=generator).to(base.device)
        up *= norm / Factors(up, down).norm
        yield "random_lowrank", Operator(base, Factors(up, down))


def intruders(
    pair: CheckpointPair,
    *,
    k: int = 10,
    eps: float = 0.5,
    side: Side = "left",
    method: Method = "auto",
    nulls: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Result:
    """How many of the top k singular vectors of each tuned matrix are intruders?

    k: vectors per matrix (paper: 10). eps: threshold on the largest |cosine| (paper: 0.5).
    side: "left" (paper), "right", or "joint" (product of both). method: "exact" takes two dense
    float32 SVDs per matrix as the paper does; "auto" reuses the base's decomposition, iterates to
    the top k only, returns max_cosine within 1e-3 of "exact" and the same decision at eps, and
    falls back to the dense SVD where it cannot certify that. nulls: count random changes too.

    Returns a Result; one row per (layer, component, rank, metric), rank 0 being the largest
    singular value; metrics as in `describe`, `intruder` (0 or 1), `max_cosine:NULL` and
    `intruder:NULL` for the nulls random_delta and random_lowrank (LoRA only; absent where nothing
    changed); and per matrix `intruder_energy`, the intruders' share of the top-k energy.
    max_cosine is there per vector, so a count at any smaller k and any eps is a group-by.
    Raises WorkbenchError for a bad argument or a pair that fails its preflight.
    """
    if k < 1 or not 0 < eps <= 1:
        raise WorkbenchError(f"Expected k >= 1 and 0 < eps <= 1, found k={k} and eps={eps}.")
    if side not in ("left", "right", "joint") or method not in ("auto", "exact"):
        raise WorkbenchError(
            f"Expected side left, right or joint and method auto or exact, found {side!r}, "
            f"{method!r}."
        )
    parameters = {"k": k, "eps": eps, "side": side, "method": method, "nulls": nulls}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device))
    rows = []
    sites = pair.sites()
    for site in tqdm(sites, desc=f"intruders {pair.name}", disable=None, leave=False):
        delta = pair.delta(site)
        for name, values in _one_matrix(delta, k, eps, side, method, nulls, seed, device).items():
            for rank, value in enumerate(values.tolist()):
                at = None if name == "intruder_energy" else rank
                rows.append((pair.name, site.layer, site.component, at, name, value))
    columns = ["member", "layer", "component", "rank", "metric", "value"]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "rank": "Int64"})
    return Result("spectral.intruders", table, provenance)


def _one_matrix(
    delta: Delta,
    k: int,
    eps: float,
    side: Side,
    method: Method,
    nulls: bool,
    seed: int,
    device: Any,
) -> dict[str, Tensor]:
    weight = delta.base.float().to(device)
    base = dense_triplets(weight) if method == "exact" else base_triplets(delta.base, device)
    base = base.supported()
    if delta.changed:
        tuned = tuned_triplets(Operator.of(delta, device), base, k, eps, side, method)
    else:
        tuned = base.top(k)
    found = describe(tuned, base, side)
    found["intruder"] = (found["max_cosine"] < eps).float()
    energy = tuned.values.square()
    found["intruder_energy"] = ((found["intruder"] * energy).sum() / energy.sum())[None]
    if nulls and delta.changed:
        # Seeded by the parameter's own name: the null does not depend on what else is analysed.
        own = int(hashlib.sha256(delta.site.name.encode()).hexdigest()[:8], 16)
        generator = torch.Generator().manual_seed(seed + own)
        for null, operator in null_operators(delta, weight, generator):
            random = tuned_triplets(operator, base, k, eps, side, method)
            best = cosines(random, base, side).max(0).values
            found[f"max_cosine:{null}"] = best
            found[f"intruder:{null}"] = (best < eps).float()
    return {name: values.cpu() for name, values in found.items()}
