"""Which patch carries most of what separates two runs, and is that more than chance and than the
same place on another prompt?

The best of many patches looks better than it is on the prompts that chose it. So one half of the
prompts chooses the patch of each component with the largest share, and the other half reports it:
itself, and less each of two controls on the same prompts, prompt by prompt,

    beyond_random    less the mean over all patches of its component, what a random one gives
    beyond_shuffled  less the same patch with another prompt's activations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench.files.large import less
from workbench.patching.patches import COLUMNS, Patch
from workbench.patching.strongest import halves
from workbench.patching.sweep import Sweep
from workbench.patching.sweep_rows import ERROR, LEAST, ROUNDING, shares
from workbench.stats import ratios

ARM, KRS = "best", "krs"
Floats = np.ndarray


class Parts(NamedTuple):
    """A share of a gap, prompt by prompt. tops: (patches, prompts); gap: (prompts,)."""

    tops: Floats
    gap: Floats


def parts_of(made: Sweep, metric: str) -> Parts:
    """What a metric of `summary` is the ratio of, from destination (0) to source (1). metric:
    "recovered:MEASURE" or "krs"."""
    if metric == KRS:
        gap = made.destination["squared_error"]
        return Parts(less(gap, made.patched["squared_error"]), gap)
    measure = metric.removeprefix("recovered:")
    before = made.destination[measure]
    return Parts(less(made.patched[measure], before), made.source[measure] - before)


def chosen(parts: Parts, components: Sequence[str], pick: Sequence[int]) -> dict[str, int]:
    """component -> number of its patch with the largest share on the prompts `pick`; none where no
    share is defined."""
    size = ratios(parts.tops[:, pick], parts.gap[pick], draws=1).value
    found: dict[str, int] = {}
    for i in np.argsort(-size, kind="stable"):
        if np.isfinite(size[i]):
            found.setdefault(str(components[int(i)]), int(i))
    return found


def reported(
    parts: Parts,
    place: int,
    others: Sequence[int],
    shuffled: Floats,
    report: Sequence[int],
    *,
    metric: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of a chosen patch on the prompts `report`: its share, and less each control's. others:
    numbers of all patches of its component; shuffled: (prompts,) its tops with another prompt's
    activations, NaN where there is none."""
    tops, gap = parts.tops[:, report], parts.gap[report]
    random = tops[list(others)].mean(0)
    sides = {
        metric: tops[place],
        f"beyond_random:{metric}": tops[place] - random,
        f"beyond_shuffled:{metric}": tops[place] - shuffled[report],
    }
    size = ERROR if metric == KRS else ROUNDING
    found = shares(
        *(np.stack([*sides.values(), random]), gap, seed),
        rounding=size,
        alone=size if metric == KRS else LEAST,
    )
    baselines = (float(found.value[-1]), 0.0, 0.0)
    return [
        {"metric": name, "value": found.value[i], "low": found.low[i], "high": found.high[i],
         "n": int(found.n[i]), "baseline": baselines[i]}
        for i, name in enumerate(sides)
    ]  # fmt: skip


def best_of(
    made: Sweep,
    patches: Sequence[Patch],
    metrics: Sequence[str],
    shuffled: Callable[[Sequence[Patch]], Sweep],
    *,
    seed: int,
) -> pd.DataFrame:
    """Rows of arm "best" for each component and metric; without a row where no share is defined.

    shuffled: the sweep of some patches with another prompt's activations.
    """
    pick, report = halves(made.destination["score"].size, seed)
    components = [patch.about["component"] for patch in patches]
    every = {metric: parts_of(made, metric) for metric in metrics}
    found = {metric: chosen(parts, components, pick) for metric, parts in every.items()}
    places = sorted({place for own in found.values() for place in own.values()})
    if not places:
        return pd.DataFrame()
    turned = shuffled([patches[place] for place in places])
    rows = []
    for metric, own in found.items():
        other = parts_of(turned, metric).tops
        for component, place in own.items():
            alike = [i for i, name in enumerate(components) if name == component]
            about = {name: patches[place].about.get(name) for name in COLUMNS} | {"arm": ARM}
            told = reported(
                *(every[metric], place, alike, other[places.index(place)], report),
                metric=metric,
                seed=seed,
            )
            rows += [about | row for row in told]
    return pd.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "neuron"), "Int64"))
