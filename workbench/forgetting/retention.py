"""Retention: what does the tuned model still do of what the base did, item by item?

Scores and losses are paired: the same prompts and texts on both sides, and the interval is that of
the mean difference over items. A loss on pre-training-like text that rises is forgetting in the
sense of arXiv 2410.21228; it also rises for text the member merely finds unlikely now, so read it
beside the scores of tasks. Text sampled from the base favours the base by construction, and
KL(tuned || base) on such samples counts every change, harmless ones too.

A task that one wording solves and another does not is not kept: the spread of the score over a
prompt set's templates stands beside the score, with the spread that equal templates would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.forgetting.side_answers import Side, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import text_divergence

PRETRAINING = "pretraining"
LEAST = 8  # prompts of a template, to say anything of its score
DRAWS = 1000
Floats = NDArray[np.float64]


def spread(right: Floats, template: NDArray[np.int64]) -> Floats:
    """Largest minus smallest mean over templates. right: (..., items); template: (items,)."""
    means = [right[..., template == t].mean(-1) for t in np.unique(template)]
    return np.max(means, axis=0) - np.min(means, axis=0)


@analysis(
    "What was learned, and what was lost?",
    paper="paired evaluation",
    example="--prompts facts.jsonl --texts wiki.txt",
    passes=2,
    takes={"prompts": "everything", "task": "task_name", "texts": "texts"},
    along=True,
    texts=True,
)
def retention(
    pair: CheckpointPair,
    prompts: Sequence[PromptSet] = (),
    *,
    texts: Sequence[str] | None = None,
    task: PromptSet | str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Scores on every prompt set and loss on pre-training-like text, tuned against base.

    prompts: prompt sets, scored by greedy exact match. texts: held-out text like the base's
    pre-training data; None takes 64 samples of the base itself. task: prompts of what was
    fine-tuned, scored first, or the name of those among `prompts`; figures tell it. Runs the stored
    weights, adapters unmerged, in `dtype` ("float32" or "bfloat16").

    Returns a Result with a row per (task, metric): score and loss (nats per token; task
    "pretraining") with the base's value as baseline, and score_change and loss_change, tuned -
    base, paired over items; kl, KL(tuned || base) in nats per token on 64 samples of the base (task
    "pretraining"; on the texts where its tokenizer has no start token); each with a 95% bootstrap
    interval and n. For a set of several templates with 8 prompts or more also template_spread, the
    largest minus the smallest mean score of a template (baseline: the base's), and
    template_spread_chance, its mean and 95% range where templates are dealt to the prompts at
    random. Raises WorkbenchError for empty prompt sets or equal names.
    """
    if isinstance(task, PromptSet):
        prompts, task = [task, *prompts], task.name
    if prompts:
        require_prompts(*prompts)
    base, tuned = both(pair, batch_size, device, dtype)
    # Without a start token there is nothing to sample from; given texts then serve for both.
    samples = list(texts) if texts and not _starts(base.words) else base.samples(seed=seed)
    texts = samples if texts is None else texts
    rows = []
    for name, metric, before, after, weights in _measured(base, tuned, prompts, texts):
        baseline = bootstrap(before, weights, seed=seed).value
        rows.append((name, metric, *bootstrap(after, weights, seed=seed), baseline))
        change = bootstrap(after - before, weights, seed=seed)
        rows.append((name, f"{metric}_change", *change, baseline))
    apart = text_divergence(base.model, tuned.model, base.words, samples, batch_size=batch_size)
    kl = bootstrap(apart["kl"], apart["tokens"], seed=seed)
    rows.append((PRETRAINING, "kl", *kl, 0.0))
    for one in prompts:
        rows += _over_templates(one, base, tuned, seed)
    columns = ["task", "metric", "value", "low", "high", "n", "baseline"]
    table = pd.DataFrame(rows, columns=pd.Index(columns))
    table.insert(0, "member", pair.name)
    parameters = {"prompts": describe(list(prompts)), "texts": describe(list(texts)), "task": task}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished("forgetting.retention", table, provenance)


def _starts(words: Any) -> bool:
    return words.bos_token_id is not None or words.eos_token_id is not None


def _measured(
    base: Side, tuned: Side, prompts: Sequence[PromptSet], texts: Sequence[str]
) -> Iterator[tuple[str, str, Floats, Floats, Floats]]:
    """(task, metric, base's items, tuned's, weights)."""
    for one in prompts:
        before, after = (side.answers(one)["correct"].to_numpy(float) for side in (base, tuned))
        yield one.name, "score", before, after, np.ones_like(before)
    before, after = (side.losses(texts) for side in (base, tuned))
    yield PRETRAINING, "loss", before.values, after.values, before.weights


def _over_templates(one: PromptSet, base: Side, tuned: Side, seed: int) -> list[tuple[Any, ...]]:
    """The spread over templates and its chance level; nothing where there is only one."""
    named = pd.Series([p.template for p in one])
    often = named.groupby(named).transform("size") >= LEAST
    if named[often].nunique() < 2:
        return []
    template = pd.factorize(named[often])[0]
    before, after = (
        side.answers(one)["correct"].to_numpy(float)[often.to_numpy()] for side in (base, tuned)
    )
    n, draw = len(template), np.random.default_rng(seed)
    # Resampled within templates, so that none of them vanishes.
    groups = [np.flatnonzero(template == t) for t in np.unique(template)]
    picks = np.concatenate([draw.choice(own, (DRAWS, len(own))) for own in groups], axis=1)
    drawn = spread(after[picks], template[np.concatenate(groups)])
    dealt = spread(draw.permuted(np.tile(after, (DRAWS, 1)), axis=1), template)
    edges, chance = (np.quantile(values, [0.025, 0.975]) for values in (drawn, dealt))
    return [
        (one.name, "template_spread", float(spread(after, template)), *edges, n,
         float(spread(before, template))),
        (one.name, "template_spread_chance", float(dealt.mean()), *chance, n, np.nan),
    ]  # fmt: skip
