"""Does a stated interval hold the mean that it is stated for, as often as it says?

The prompts of a few compiled pairs are all that there are, so that a mean over them is known
without error. Samples of `SIZE` prompts are drawn from them with replacement, the analysis is asked
of each, and every 95% interval for a mean over prompts either holds that number or does not.
`coverage` is the share that does, of 0.95, with its own 95% interval over the samples (rows of one
sample are not independent, so that a sample counts once).

When it misleads: these prompts have values of a few sizes, and the pairs were made so that some are
extreme; a mean of a smooth distribution is easier to cover. Rows that are the same in every sample
are left out: nothing is uncertain there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from workbench.lab.known import Known
from workbench.scoreboard.method import Method
from workbench.scoreboard.scores import Row
from workbench.stats import wilson
from workbench.tasks.prompts import PromptSet

PAIRS = ("facts-faded", "facts-half-erased")  # graded values, and values that are 0 or 1
SIZE = 16  # prompts of a sample
CLOSE = 1e-6  # a difference that float32 makes, of the size of a value
NUMBERS = ("value", "low", "high", "n", "baseline", "null_low", "null_high", "p")


def coverage(method: Method, known: Known, draws: int, seed: int) -> Iterator[Row]:
    """The row of one method on one pair, if any of its intervals is uncertain there."""
    assert method.states is not None
    asked = (known.base, known.tuned)
    whole = _keyed(method.states(*asked, known.prompts, known.corrupted))
    samples = [
        _keyed(method.states(*asked, *_sample(known, draw, seed))).reindex(whole.index)
        for draw in range(draws)
    ]
    values, low, high = (
        np.stack([one[name].to_numpy(float) for one in samples])
        for name in ("value", "low", "high")
    )  # (draws, rows)
    true = whole["value"].to_numpy(float)
    size = CLOSE * np.maximum(np.abs(true), 1.0)
    varies = np.nanmax(values, 0) - np.nanmin(values, 0) > 2 * size
    # An interval that was not stated, of a row that a sample lacks, neither covers nor misses.
    stated = (np.isfinite(low) & np.isfinite(high))[:, varies]
    held = ((low - size <= true) & (true <= high + size))[:, varies] & stated
    count = stated.sum(1)
    if count.any():
        each = held.sum(1)[count > 0] / count[count > 0]
        found = wilson(float(each.sum()), len(each))._asdict()
        yield {"metric": "coverage", **found, "baseline": 0.95}


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by all that is no number of theirs."""
    columns = [name for name in table if name not in (*NUMBERS, "member", "says")]
    named = zip(*(table[column].map(str) for column in columns), strict=True)
    return table.set_index(pd.Index(["|".join(parts) for parts in named]))


def _sample(known: Known, draw: int, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """Prompts drawn with replacement, and their partners."""
    chance = random.Random(f"sample {seed} {draw}")
    places = chance.choices(range(len(known.prompts)), k=SIZE)

    def of(prompts: PromptSet) -> PromptSet:
        own = (replace(prompts[at], id=f"{i}") for i, at in enumerate(places))
        return replace(prompts, prompts=tuple(own))

    return of(known.prompts), known.corrupted and of(known.corrupted)
