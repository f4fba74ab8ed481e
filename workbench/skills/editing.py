"""An edit of a model by the three measures of model editing: efficacy, generality, locality.

The part of the change that stands in some place is an edit of the base. Does it do what was taught
(efficacy), also where that is worded otherwise (generality), and does it leave alone what has
nothing to do with it (locality)? Fine-tuning as an editor is compared by the place that is tuned in
Yang et al. 2025 (arXiv 2509.22072v4), there of one place trained at a time, here of one place taken
out of a change that was trained everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.skills.scoring import Reading, Readout
from workbench.stats import shares


def measures(
    readout: Readout, reading: Reading, whole: Reading, rewordings: int | None, **about: Any
) -> Iterator[dict[str, Any]]:
    """Rows of one edit. reading: how the base answers under it; whole: under the whole change.
    rewordings: the place of these among the readout's sets; None where there are none.

    efficacy: the score on the task's own prompts; generality: on the rewordings, each with the
    base's as baseline; locality: the share of prompts of every other set to which the first token
    of the answer is the base's, with that under the whole change as baseline.
    """
    for place, prompts in enumerate(readout.sets):
        told = about | {"task": prompts.name, "own": place == 0}
        base, here, every = (one[place] for one in (readout.base, reading, whole))
        if place in (0, rewordings):
            name = "generality" if place else "efficacy"
            values, baseline = here["correct"], base["correct"].mean()
        else:
            name = "locality"
            values = here["said"] == base["said"]
            baseline = (every["said"] == base["said"]).mean()
        found = shares(values.to_numpy(float), seed=readout.seed).first
        yield told | {"metric": name} | found._asdict() | {"baseline": float(baseline)}
