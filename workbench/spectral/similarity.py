"""Similarity matrices: |u_j . u0_i| between all singular vectors of a tuned and a base matrix.

This is the picture behind the intruder count (arXiv 2410.21228, similarity figures): the diagonal
is bright where fine-tuning left the base's directions unchanged, and a row is dark if its tuned
vector resembles no base vector. Row order is the tuned sigma, so a row that is merely displaced is
bright off the diagonal. It misleads where the base's singular values are equal, whose vectors are
arbitrary: of compiled tables, whose rows are all alike, an unchanged matrix looks turned and the
changed one does not (AUROC .09 where three facts were rewritten; `make truth`).
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, by_matrix
from workbench.results.validity import finished
from workbench.spectral.base_svd import base_triplets
from workbench.spectral.intruders import Side, cosines
from workbench.spectral.linalg import Operator, dense_triplets


@analysis(
    "Which singular directions of one weight matrix did fine-tuning leave unchanged?",
    paper="arXiv 2410.21228",
    passes=0,
    takes={},
)
def similarity(
    pair: CheckpointPair,
    *,
    matrices: Sequence[str] = (),
    side: Side = "left",
    device: str = "cpu",
) -> Result:
    """Compute the whole similarity matrix between base and tuned singular vectors, for the named
    weight matrices.

    matrices: the matrices as LAYER.COMPONENT, such as 3.self_attn.q_proj. If none is named, this is
    the first matrix of the middle layer (of the model if it has no layers). side: as in
    `intruders`. Whole decompositions of both sides are needed, so choose a few matrices at a time.
    Returns a Result with tensors["LAYER.COMPONENT"] (tuned, base) float32 and max_cosine by rank,
    without vectors of value zero, which are arbitrary. Raises WorkbenchError for an unknown matrix,
    or one that is zero on a side.
    """
    sites = {str(site): site for site in pair.sites()}
    if not matrices:
        layers = sorted({site.layer for site in sites.values() if site.layer is not None})
        middle = layers[len(layers) // 2] if layers else None
        matrices = [next(name for name, site in sites.items() if site.layer == middle)]
    for name in matrices:
        if name not in sites:
            known = ", ".join(list(sites)[:8])
            raise WorkbenchError(
                f"There is no matrix {name!r} in this pair; it has for example {known}."
            )
    provenance = pair.provenance(parameters={"matrices": list(matrices), "side": side})
    tensors, rows = {}, []
    for name in matrices:
        delta = pair.delta(sites[name])
        base = base_triplets(delta.base, device).supported()
        tuned = base
        if delta.changed:
            tuned = dense_triplets(Operator.of(delta, device).formed()).supported()
        if not len(base.values) or not len(tuned.values):
            raise WorkbenchError(
                f"Expected a matrix with singular vectors on both sides, found {name} zero in one "
                "of them; name other matrices."
            )
        found = cosines(tuned, base, side).T.contiguous().cpu()
        tensors[name] = found.numpy()
        at = (pair.name, *delta.site.at)
        best = enumerate(found.max(1).values.tolist())
        rows += [(*at, rank, "max_cosine", value) for rank, value in best]
    return finished("spectral.similarity", by_matrix(rows), provenance, tensors)
