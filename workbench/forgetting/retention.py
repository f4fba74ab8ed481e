"""Retention: what does the tuned model still do of what the base did, item by item?

Scores and losses are paired: the same prompts and texts on both sides, and the interval is that of
the mean difference over items. A loss on pre-training-like text that rises is forgetting in the
sense of arXiv 2410.21228; it also rises for text the member merely finds unlikely now, so read it
beside the scores of tasks. Text sampled from the base favours the base by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.results import Result, describe
from workbench.stats import bootstrap
from workbench.tasks.measure import Items, losses, own_samples, scores
from workbench.tasks.prompts import PromptSet

PRETRAINING = "pretraining"
Measured = dict[tuple[str, str], Items]
_LAST: dict[tuple[object, ...], Measured] = {}


def retention(
    pair: CheckpointPair,
    prompts: Sequence[PromptSet] = (),
    *,
    texts: Sequence[str] | None = None,
    task: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Scores on every prompt set and loss on pre-training-like text, tuned against base.

    prompts: prompt sets, scored by greedy exact match. texts: held-out text like the base's
    pre-training data; None takes 64 samples of the base itself. task: the name of the fine-tuned
    task among `prompts`, for figures. Runs the stored weights, adapters unmerged, in `dtype`
    ("float32" or "bfloat16").

    Returns a Result with a row per (task, metric): score and loss (nats per token; task
    "pretraining") with the base's value as baseline, and score_change and loss_change, tuned -
    base, paired over items; each with a 95% bootstrap interval and n.
    """
    tokenizer = pair.base.tokenizer()
    if texts is None:
        texts = own_samples(pair.base.load(device, named_dtype(dtype)), tokenizer, seed=seed)
    before = _base(pair, prompts, texts, batch_size, device, dtype)
    tuned = pair.tuned.load(device, named_dtype(dtype))
    after = dict(_measure(tuned, tokenizer, prompts, texts, batch_size))
    rows = []
    for (name, metric), items in after.items():
        first = before[name, metric]
        baseline = bootstrap(*first, seed=seed).value
        rows.append((pair.name, name, metric, *bootstrap(*items, seed=seed), baseline))
        change = bootstrap(items.values - first.values, items.weights, seed=seed)
        rows.append((pair.name, name, f"{metric}_change", *change, baseline))
    columns = ["member", "task", "metric", "value", "low", "high", "n", "baseline"]
    parameters = {"prompts": describe(list(prompts)), "texts": describe(list(texts)), "task": task}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return Result("forgetting.retention", pd.DataFrame(rows, columns=columns), provenance)


def _base(
    pair: CheckpointPair,
    prompts: Sequence[PromptSet],
    texts: Sequence[str],
    batch_size: int,
    device: str,
    dtype: str,
) -> Measured:
    """The base's items; kept for the next member of the same family, which asks for the same."""
    asked = (
        pair.base.fingerprint,
        *(p.fingerprint for p in prompts),
        *texts,
        batch_size,
        device,
        dtype,
    )
    if asked not in _LAST:
        model = pair.base.load(device, named_dtype(dtype))
        found = dict(_measure(model, pair.base.tokenizer(), prompts, texts, batch_size))
        _LAST.clear()
        _LAST[asked] = found
    return _LAST[asked]


def _measure(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptSet],
    texts: Sequence[str],
    batch_size: int,
) -> Iterator[tuple[tuple[str, str], Items]]:
    for one in prompts:
        yield (one.name, "score"), scores(model, tokenizer, one, batch_size)
    yield (PRETRAINING, "loss"), losses(model, tokenizer, texts, batch_size)
