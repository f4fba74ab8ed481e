"""How much of what fine-tuning did to the stream is the same whatever the text is?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.patching.direction import equals
from workbench.stats import halves, ratios

DIFFERENCE, HALVES = "difference", "base halves"
LEAST = 8  # texts: two in each quarter
COMPONENTS = 3
SPLITS = 8  # of the null
Floats = NDArray[np.float64]
Items = Sequence[int] | NDArray[np.intp]


def constant(differences: Floats, pick: Items, report: Items) -> tuple[Floats, Floats]:
    """Tops and bottoms, (report,) each: <d, v'> and |d|^2 of the texts that report, v' the mean of
    those that pick. differences: (texts, tokens, width)."""
    mean = differences[list(pick)].mean(0)
    own = differences[list(report)]
    return (own * mean).sum((1, 2)), np.square(own).sum((1, 2))


def component_shares(differences: Floats, most: int = COMPONENTS) -> Floats:
    """The share of the variance in each of the first principal components, of all tokens together
    around each token's own mean; NaN without any. differences: (texts, tokens, width)."""
    centred = (differences - differences.mean(0)).reshape(-1, differences.shape[-1])
    energy = np.square(np.linalg.svd(centred, compute_uv=False))
    found = np.full(most, np.nan)
    kept = energy[:most] / energy.sum() if energy.sum() > 0 else energy[:0]
    found[: len(kept)] = kept
    return found


class MeanDifference:
    """What is measured behind one layer. base, tuned: (texts, tokens, width). draws: random
    directions beside it.

    vector: (width,) the mean over texts and tokens; norm, unit: its own. size: the stream's mean
    norm. arms: (2 + draws, width), the vector, the base's difference between halves of the texts
    and random directions, all of one norm."""

    def __init__(self, base: Floats, tuned: Floats, *, draws: int, seed: int) -> None:
        self.base, self.change, self.seed = base, tuned - base, seed
        self.pick, self.report = pick, report = halves(len(base), seed)
        self.vector = self.change.mean((0, 1))
        self.norm = float(np.linalg.norm(self.vector))
        self.unit = self.vector / self.norm if self.norm else self.vector
        self.size = float(np.linalg.norm(base, axis=2).mean())
        self.halves = (base[pick].mean(0) - base[report].mean(0)).mean(0)
        own = np.linalg.norm(self.halves)
        control = self.halves * self.norm / own if own else self.halves
        drawn = equals(self.vector.astype(np.float32), draws, seed)
        self.arms = np.concatenate([self.vector[None], control[None], drawn])

    def rows(self, layer: int) -> Iterator[dict[str, Any]]:
        found = ratios(*constant(self.change, self.pick, self.report), seed=self.seed).first
        null = [self._null(self.seed + split) for split in range(SPLITS)]
        about: dict[str, Any] = {"layer": layer, "arm": DIFFERENCE}
        beside = {"baseline": np.mean(null), "null_low": min(null), "null_high": max(null)}
        yield about | {"metric": "constant"} | found._asdict() | beside
        size = {"metric": "norm", "baseline": self.size, "n": len(self.base)}
        yield about | size | {"value": self.norm}
        yield about | size | {"arm": HALVES, "value": float(np.linalg.norm(self.halves))}
        for place, own in enumerate(np.linalg.norm(self.change.mean(0), axis=1), 1):
            yield about | size | {"position": str(place), "value": float(own)}
        both = zip(component_shares(self.change), component_shares(self.base), strict=True)
        for rank, (share, stream) in enumerate(both):
            said = {"rank": rank, "metric": "component_share", "n": len(self.base)}
            yield about | said | {"value": share, "baseline": stream}

    def _null(self, seed: int) -> float:
        """`constant` of the base's difference between one quarter of the texts and another: it has
        a mean by chance alone."""
        parts = []
        for half in halves(len(self.base), seed):
            middle = len(half) // 2
            parts.append(self.base[half[:middle]] - self.base[half[middle : 2 * middle]])
        first, second = (range(len(parts[0])), range(len(parts[0]), len(parts[0]) + len(parts[1])))
        top, bottom = constant(np.concatenate(parts), first, second)
        return float(top.sum() / bottom.sum()) if bottom.sum() > 0 else float("nan")
