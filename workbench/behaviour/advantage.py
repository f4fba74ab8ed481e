"""Step advantage: how much does each worked step add to the chance of the right answer?

A prompt is a question, steps and a cue for the answer. With P_k the probability that a model gives
the right answer behind the first k steps and the cue,

    advantage(k) = P_k - P_{k-1},

the per-step advantage of Setlur et al. 2024 (arXiv 2406.14532v1), there estimated by sampling
completions; here P_k is exact, the answer's probability token by token. The advantages of a prompt
add up to P of all steps less P of none. The control is a step of another prompt in the place of the
k-th: what any step of this form, or its mere length, adds.

It misleads where the answer can be read off one step: then that one has all of the advantage, and
those it follows from none. A step that prepares a later one shows only when that one comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.behaviour.worked import Worked, worked
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, shares
from workbench.tasks.batching import encode
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import side_by_side

KEY = "behaviour.advantage"
SIDES = ("base", "tuned")
GIVEN, OTHER = "given", "another prompt's step"
Floats = NDArray[np.float64]


@analysis(
    "How much does each worked step add to the chance of the right answer?",
    paper="arXiv 2406.14532",
    example="--prompts sums.jsonl",
    passes=16,
    few={"prompts": 24},
    quick_passes=16,
    texts=True,
)
def advantage(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    between: str = "\n",
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Read the probability of the right answer behind each number of worked steps.

    prompts: prompts with worked steps, and the answer as target; 2 or more, for the control.
    between: the text that separates question, steps and cue.

    The command line takes 24 prompts; with --full all.

    Returns a Result with rows by side ("base", "tuned") and x, of the prompts that have as many
    steps: probability (x = steps that stand before the cue, from 0), advantage (x = the step, from
    1; arm "given", and "another prompt's step" as control, which is also the baseline) and
    advantage_beyond_other, paired; advantage_change (x), tuned - base of the given steps; and by
    side total, the probability with all steps less that with none, with total_change. 95% intervals
    over prompts. Raises WorkbenchError for prompts without steps, or fewer than 2.
    """
    if len(prompts) < 2:
        raise WorkbenchError(
            f"Expected 2 prompts or more, whose steps are exchanged as control; found "
            f"{len(prompts)}."
        )
    parts = [worked(prompt, between) for prompt in prompts]
    asked = [*_asked(prompts, parts, between, seed)]
    words = pair.base.tokenizer()
    most = max(len(one.steps) for one in parts)
    # (sides, arms, steps, prompts); of the second arm the k-th step is another prompt's.
    chance = np.full((2, 2, most + 1, len(prompts)), np.nan)
    coded = [encode(words, prompt) for *_, prompt in asked]
    with pair.models(device, named_dtype(dtype)) as sides:
        models = (sides.base, sides.tuned)
        for index, both in side_by_side(models, words, coded, batch_size):
            (arm, step, number, _), one = asked[index], coded[index]
            for side, said in enumerate(both):
                ids = torch.tensor(one.ids[one.start :], device=said.device)[:, None]
                chance[side, arm, step, number] = float(said.double().gather(1, ids).sum().exp())
    table = pd.DataFrame([*_rows(chance, [len(one.steps) for one in parts], seed)])
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {"prompts": describe(prompts), "between": between}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _asked(
    prompts: PromptSet, parts: Sequence[Worked], between: str, seed: int
) -> Iterator[tuple[int, int, int, Prompt]]:
    """(arm, steps, the prompt's number, what is asked)."""
    order = np.random.default_rng(seed).permutation(len(parts))
    after = {int(one): int(order[(i + 1) % len(order)]) for i, one in enumerate(order)}
    for number, (prompt, one) in enumerate(zip(prompts, parts, strict=True)):
        other = parts[after[number]].steps
        for k in range(len(one.steps) + 1):
            text = one.text(between, one.steps[:k])
            yield 0, k, number, Prompt(prompt.id, text, prompt.target)
            if k:
                step = other[min(k, len(other)) - 1]
                text = one.text(between, [*one.steps[: k - 1], step])
                yield 1, k, number, Prompt(prompt.id, text, prompt.target)


def _rows(chance: Floats, sizes: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    gained = chance[:, :, 1:] - chance[:, :1, :-1]  # both arms begin from the given steps
    places = np.arange(chance.shape[-1])
    whole = chance[:, 0, sizes, places] - chance[:, 0, 0]
    for number, side in enumerate(SIDES):
        found = shares(chance[number, 0], seed=seed)
        for k in range(chance.shape[2]):
            interval = {name: part[k] for name, part in found._asdict().items()}
            told = {"metric": "probability", "side": side, "x": k}
            yield told | interval | {"baseline": float(np.nanmean(chance[0, 0, k]))}
        for k in range(1, chance.shape[2]):
            given, other = gained[number, :, k - 1]
            for arm, values in ((GIVEN, given), (OTHER, other)):
                told = {"metric": "advantage", "side": side, "arm": arm, "x": k}
                yield told | _mean(values, seed) | {"baseline": float(np.nanmean(other))}
            told = {"metric": "advantage_beyond_other", "side": side, "x": k}
            yield told | _mean(given - other, seed) | {"baseline": 0.0}
        told = {"metric": "total", "side": side}
        yield told | _mean(whole[number], seed) | {"baseline": float(whole[0].mean())}
    for k in range(1, chance.shape[2]):
        before, after = gained[:, 0, k - 1]
        told = {"metric": "advantage_change", "x": k, "baseline": float(np.nanmean(before))}
        yield told | _mean(after - before, seed)
    told = {"metric": "total_change", "baseline": float(whole[0].mean())}
    yield told | _mean(whole[1] - whole[0], seed)


def _mean(values: Floats, seed: int) -> dict[str, Any]:
    """Of the prompts that have the step."""
    return bootstrap(values[np.isfinite(values)], seed=seed)._asdict()
