"""Which groups of heads of the base's own circuit carry what the fine-tuned model does better?

The base's circuit is found by path patching (`discovery`) on one random half of the prompts; on the
other half each group of heads, all of them together, and random groups of as many heads at the same
positions are patched from one model into the other (Prakash et al. 2024, arXiv 2402.14811, figure
on CMAP: there the value fetchers alone recover the whole gain). It misleads if fine-tuned model and
base have about the same score, which the notes state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.patching.activation import asked, partners
from workbench.patching.circuit_discovery import GROUPS, Group, discover, nearest, sites
from workbench.patching.cross_model import Direction, cross_model
from workbench.patching.metrics import Asked, metric_of
from workbench.patching.sweep import Side
from workbench.results.result import Result, describe
from workbench.tasks import PromptSet
from workbench.tasks.prompts import require_halves

WHOLE = "whole circuit"


@analysis(
    "Which group of heads of the base's circuit carries the gain from fine-tuning?",
    paper="arXiv 2402.14811",
    example="--prompts boxes.jsonl",
    passes=30,
    takes={"prompts": "task", "corrupted": "corrupted"},
    quick={"depth": 1},
    few={"prompts": 32, "corrupted": 32},
)
def groups(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    direction: Direction | Literal["both"] = "both",
    paths: Sequence[Group] = GROUPS,
    depth: int | None = None,
    most: int = 8,
    metric: Asked | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Patch the groups of the base's circuit across the pair.

    prompts: boxes prompts with answers. corrupted: as in `activation`. direction: as in
    `cross_model`. paths: the groups that are looked for, in order. depth: as in `circuit`. most:
    the largest number of heads in a group. metric: as in `circuit`. dtype: "float32" or "bfloat16";
    None means as stored.

    The command line takes 32 prompts of a file and the first group, with --full all prompts and six
    groups.

    Returns a Result of `cross_model` (component "group"); the sites of each group are among its
    parameters. Raises WorkbenchError if no head of the base acts on the answer, or if there are too
    few prompts to split in two.
    """
    require_halves(len(prompts), least=4)
    paths = nearest(paths, depth)
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    asking = metric_of(metric, words)
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    order = np.random.default_rng(seed).permutation(len(clean))
    find, judge = order[: len(order) // 2].tolist(), order[len(order) // 2 :].tolist()
    options: dict[str, Any] = {"batch_size": batch_size, "device": device}
    with pair.models(device, named_dtype(dtype)) as run:
        one, other = (Side(run.base, [rows[i] for i in find]) for rows in (clean, dirty))
        how: dict[str, Any] = {"groups": paths, "most": most, "metric": asking, "seed": seed}
        found, _, cost = discover(one, other, words, **how, **options)
    chosen: dict[str, Sequence[Any]] = dict(sites(found, paths))
    if not chosen:
        raise WorkbenchError(
            f"No head of {pair.base.name} acts on the answer to {prompts.name}: there "
            "is no circuit to patch; check that the base answers these prompts."
        )
    chosen[WHOLE] = list(dict.fromkeys(site for own in chosen.values() for site in own))
    judged = prompts.at(judge)
    result = cross_model(
        *(pair, judged),
        groups=chosen,
        direction=direction,
        metric=metric,
        seed=seed,
        dtype=dtype,
        large=True,
        **options,
    )
    note = f"{pair.name}: finding the base's circuit cost {cost:.1f} forward passes."
    parameters = {
        "all prompts": describe(prompts), "corrupted": describe(corrupted),
        "paths": [group.name for group in paths], "most": most,
    }  # fmt: skip
    provenance = replace(
        result.provenance, parameters={**result.provenance.parameters, **parameters}
    )
    return replace(result, provenance=provenance.with_notes((*provenance.notes, note)))
