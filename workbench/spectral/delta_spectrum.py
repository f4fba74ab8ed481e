"""Delta spectra: how large is each change, and how many directions does it use?

sigma_i are the singular values of dW = W_tuned - W_base. Effective rank: exp(-sum p ln p) with p =
sigma / sum sigma (Roy & Vetterli 2007, "The effective rank", eq. 1-3; sigma, not its square).
Stable rank: |dW|_F^2 / |dW|_2^2. It misleads if a checkpoint was rounded: half-precision noise
alone has nearly full effective rank, so read it together with the relative norm. A large change
need not matter: where what no answer depends on changed most, size ranks it first (AUROC .90 on the
compiled pair with a decoy; `make truth`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.loaders import CheckpointPair, Delta
from workbench.numerics import singular_values
from workbench.progress import progress
from workbench.results.result import Result, by_matrix
from workbench.results.validity import finished
from workbench.spectral.linalg import factor_values

ENERGY_AT = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.9, 0.99)
RANKS = ("effective_rank", "stable_rank", "rank_90", "rank_99")


def change_values(delta: Delta, device: str | torch.device = "cpu") -> Float[Tensor, " p"]:
    """Singular values of the change, float32; a LoRA change's from its factors, at most r."""
    if delta.factors is not None:
        return factor_values(delta.factors)
    return singular_values(delta.change.to(device)).cpu()


def effective_rank(values: Float[Tensor, " p"]) -> float:
    """exp of the entropy of sigma / sum sigma; NaN for a zero matrix."""
    share = values.double() / values.double().sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum())) if len(share) else float("nan")


def energy(values: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Share of |dW|_F^2 in the first 1, 2, ... values: 1 - error^2 of the best rank-k copy
    (Eckart & Young 1936)."""
    squares = values.double().square()
    return squares.cumsum(0) / squares.sum()


def summary(values: Float[Tensor, " p"]) -> dict[str, float]:
    """The scalar metrics of one spectrum; a zero change has no rank, which is no rank of 0, and no
    energy."""
    if not bool(values.any()):
        return dict.fromkeys(RANKS, float("nan"))
    shares = energy(values)
    squares = values.double().square()
    found = {
        "effective_rank": effective_rank(values),
        "stable_rank": float(squares.sum() / squares[0]),
    }
    for share in SHARES:
        # The last share can round to just below 1, never below 0.99.
        found[f"rank_{share * 100:.0f}"] = float((shares < share).sum() + 1)
    for k in ENERGY_AT:
        if k < len(shares):
            found[f"energy_{k}"] = float(shares[k - 1])
    return found


@analysis(
    "How large is the change of each parameter, and how many directions does it use?",
    paper="Roy & Vetterli 2007",
    passes=0,
    takes={},
)
def delta_spectrum(pair: CheckpointPair, *, device: str = "cpu") -> Result:
    """Compute the spectrum of the change of every weight matrix, and the size of the change of
    every bias and norm.

    Returns a Result; per parameter (layer, component) the metrics norm |dW|_F, relative_norm |dW|_F
    / |W_base|_F, and per matrix effective_rank, stable_rank, rank_90, rank_99 (the number of
    singular values that hold 90 and 99% of the energy), energy_1 ... energy_128, and sigma by rank
    (0-based; a LoRA change has r of them, the rest is exactly 0). The ranks of a matrix that did
    not change are NaN, and so is relative_norm if an adapter belongs to a base that is packed in a
    form that cannot be read. Raises WorkbenchError for a pair that fails its preflight.
    """
    provenance = pair.provenance(device=str(device))
    rows, still = [], 0
    matrices = set(pair.sites())
    for site in progress(pair.sites("all"), desc=f"spectrum {pair.name}"):
        delta = pair.delta(site)
        size = delta.base_norm
        found = {"norm": delta.norm, "relative_norm": delta.norm / size if size else float("nan")}
        values = torch.zeros(0)
        if site in matrices:
            values = change_values(delta, device) if delta.changed else values
            still += not delta.changed
            found |= summary(values)
        at = (pair.name, *site.at)
        rows += [(*at, None, metric, value) for metric, value in found.items()]
        rows += [(*at, rank, "sigma", value) for rank, value in enumerate(values.tolist())]
    note = f"{pair.name}: {still} of {len(matrices)} matrices did not change, so they have no rank."
    provenance = provenance.with_notes((*provenance.notes, *([note] if still else [])))
    return finished("spectral.delta_spectrum", by_matrix(rows), provenance)
