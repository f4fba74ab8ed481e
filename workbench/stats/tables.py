"""Square tables of paired kinds: items that either side puts into one of several kinds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 9999  # so that the least p there can be is 1 / 10,000

Counts = NDArray[np.int64]


class Homogeneity(NamedTuple):
    """chi2: of Stuart and Maxwell. degrees: of freedom, the rank of the covariance. p: by exchange
    of the sides. changed: the items whose kind differs."""

    chi2: float
    degrees: int
    p: float
    changed: int


def paired_counts(before: NDArray[np.int64], after: NDArray[np.int64], kinds: int) -> Counts:
    """(kinds, kinds) items by the kind before (rows) and after (columns). before, after: (items,),
    from 0."""
    return np.bincount(before * kinds + after, minlength=kinds**2).reshape(kinds, kinds)


def homogeneity(counts: Counts, *, seed: int = 0, draws: int = DRAWS) -> Homogeneity:
    """Does each kind have as many items on either side? chi2 = d' S^+ d, d the differences of the
    margins and S their covariance where there is no difference.

    p is not that of the chi-squared distribution, which is wrong for few items: it is the share of
    draws, counting the table itself, with at least this chi2 where the two sides of each item are
    exchanged at random. S is the same in all of them. With two kinds this is McNemar's exact test.
    counts: (kinds, kinds). 1 where no item changed. Sources: Stuart (1955), Biometrika 42:412;
    Maxwell (1970), British Journal of Psychiatry 116:651.
    """
    moved = np.triu(counts + counts.T, 1)
    first, second = np.nonzero(moved)
    changed = int(moved.sum())
    if not changed:
        return Homogeneity(0.0, 0, 1.0, 0)
    covariance = np.diag((moved + moved.T).sum(1)) - (moved + moved.T)
    inverse = np.linalg.pinv(covariance.astype(float), hermitian=True)

    def statistic(net: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of how many more items went from `first` to `second` than back. net: (..., pairs)."""
        d = np.zeros((*net.shape[:-1], len(counts)))
        for place, (i, j) in enumerate(zip(first, second, strict=True)):
            d[..., i] += net[..., place]
            d[..., j] -= net[..., place]
        return np.einsum("...i,ij,...j->...", d, inverse, d)

    many = moved[first, second]
    own = float(statistic((counts - counts.T)[first, second]))
    gone = np.random.default_rng(seed).binomial(many, 0.5, size=(draws, len(many)))
    reached = int((statistic(2 * gone - many) >= own - 1e-9).sum())
    degrees = int(np.linalg.matrix_rank(covariance))
    return Homogeneity(own, degrees, (1 + reached) / (1 + draws), changed)
