"""Which words, and which texts, are new? Pure maths on texts of two kinds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WORD = re.compile(r"\w+")
PRIOR = 500.0  # words
Floats = NDArray[np.float64]


def overused(
    texts: Sequence[str], others: Sequence[str], *, seed: int = 0, draws: int = 200
) -> tuple[pd.DataFrame, float]:
    """Words that `texts` use more than `others`, and the z that chance reaches.

    z of the log-odds ratio with a Dirichlet prior of all texts' own frequencies (Monroe, Colaresi &
    Quinn 2008, doi:10.1093/pan/mpn018, equations 15, 16, 22), the prior weighing as much as 500
    words. A table of word, count, other_count and z, largest z first, and the 95% quantile of the
    largest z where the texts are dealt to the two sides at random.
    """
    counts, names = _counts([*texts, *others])
    if not names:
        return pd.DataFrame(columns=pd.Index(["word", "count", "other_count", "z"])), float("nan")
    ours = np.zeros(counts.shape[0], dtype=bool)
    ours[: len(texts)] = True
    z = _z(counts, ours)
    dealt = np.random.default_rng(seed)
    largest = [_z(counts, dealt.permutation(ours)).max() for _ in range(draws)]
    table = pd.DataFrame({
        "word": names,
        "count": ours.astype(float) @ counts,
        "other_count": (~ours).astype(float) @ counts,
        "z": z,
    })  # fmt: skip
    return table.sort_values("z", ascending=False, ignore_index=True), float(
        np.quantile(largest, 0.95)
    )


def _counts(texts: Sequence[str]) -> tuple[csr_matrix, list[str]]:
    """(texts, words) counts and the words, in the order in which they are met."""
    from scipy.sparse import csr_matrix

    names: dict[str, int] = {}
    places, columns, values = [], [], []
    for row, text in enumerate(texts):
        for word, count in Counter(WORD.findall(text)).items():
            places.append(row)
            columns.append(names.setdefault(word, len(names)))
            values.append(float(count))
    return csr_matrix((values, (places, columns)), shape=(len(texts), len(names))), list(names)


def _z(counts: csr_matrix, ours: NDArray[np.bool_]) -> Floats:
    """z of every word. counts: (texts, words); ours: (texts,)."""
    first, last = (own.astype(float) @ counts for own in (ours, ~ours))
    prior = PRIOR * (first + last) / max((first + last).sum(), 1.0)
    odds, spread = np.zeros(len(prior)), np.zeros(len(prior))
    for sign, own in ((1, first), (-1, last)):
        odds += sign * np.log((own + prior) / ((own + prior).sum() - own - prior).clip(1e-9))
        spread += 1 / (own + prior)
    return odds / np.sqrt(spread)


def fresh_bigrams(texts: Sequence[Sequence[int]]) -> Floats:
    """(texts,) the share of each text's different bigrams that no other text has; NaN without
    any. 1: all texts differ; 0: each is said elsewhere."""
    own = [set(pairwise(ids)) for ids in texts]
    known = Counter(pair for pairs in own for pair in pairs)
    return np.array([
        np.mean([known[pair] == 1 for pair in pairs]) if pairs else np.nan for pairs in own
    ])  # fmt: skip
