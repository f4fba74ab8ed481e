"""Sequential learning: how much of its earlier tasks does a model forget in a chain of
fine-tunings?

R[i, j] is the score on task j after stage i, i = 0 the base. Forgetting F_j = max_i R[i, j] - R[T,
j] over the stages from the one that learned task j on (from the base for tasks that none did): what
was never learned cannot be forgotten. Chaudhry et al. 2018 (arXiv 1801.10112) take the maximum over
all earlier stages, which also counts what earlier luck gave. Backward transfer is the mean over j <
T of R[T, j] - R[j, j] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840). For two tasks of one kind the
drops of Calderon et al. (2023, arXiv 2306.00168) are read off the same matrix: source drop R[i, i]
- R[i, j] and target drop R[j, j] - R[i, j].

The maximum runs over the last stage too, so F_j is never below 0 and an improvement counts as none;
it is over noisy scores and so a little too high; its interval resamples prompts and takes the
maximum again. One chain is one sample of seeds and of the order of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import Side, require_prompts
from workbench.loaders import Family
from workbench.progress import progress
from workbench.results.result import Provenance, Result, describe
from workbench.results.validity import finished
from workbench.stats import edges, shares
from workbench.tasks.prompts import PromptSet

KEY = "forgetting.sequential"
Floats = NDArray[np.float64]
BASE = "base"
DRAWS = 1000


def forgetting(matrix: Floats) -> Floats:
    """F_j = max_{i >= j} R[i, j] - R[T, j]. matrix: (..., T + 1, tasks), the base's row first; the
    first T columns are the stages' own tasks, others count from the base on."""
    stages, tasks = matrix.shape[-2:]
    learned = np.where(np.arange(tasks) < stages - 1, np.arange(tasks) + 1, 0)
    before = np.arange(stages)[:, None] < learned
    return np.where(before, -np.inf, matrix).max(-2) - matrix[..., -1, :]


def backward_transfer(matrix: Floats) -> Floats:
    """mean_{j < T} (R[T, j] - R[j, j]). matrix: (..., T + 1, T) or wider, the base's row first; the
    first T columns are the stages' own tasks."""
    stages = matrix.shape[-2] - 1
    own = np.arange(stages - 1)
    return (matrix[..., -1, own] - matrix[..., own + 1, own]).mean(-1)


@analysis(
    "How much of its earlier tasks does a model forget in a chain of fine-tunings?",
    paper="arXiv 1801.10112, 1706.08840",
    example="--member one=A --member two=B --tasks one=a.jsonl --tasks two=b.jsonl",
)
def sequential(
    family: Family,
    tasks: Mapping[str, PromptSet],
    others: Sequence[PromptSet] = (),
    *,
    name: str = "chain",
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Score every stage of a chain of fine-tunings on every task, and measure what it forgot.

    family: the chain's stages in their order, each trained from where the one before it ended.
    tasks: stage -> held-out prompts of what it learned, one for each stage. others: further tasks
    that no stage learned, such as tasks of pre-training. name: the name of the chain in the column
    member, so that chains (LoRA, full) can be joined.

    Returns a Result with rows score (stage, x = its number from 0 for the base, task; baseline: the
    base's score), forgetting per task and, over the tasks learned before the last stage, as the
    mean under task "mean"; backward_transfer (task "mean"); source_drop and target_drop of every
    two stages (stage i's model on stage j's task). own: whether a stage learned the task. 95%
    bootstrap intervals over each task's prompts. Raises WorkbenchError for fewer than two stages,
    stages without prompts, or models whose training record says that they continue from no other;
    if nothing is recorded, a note says so.
    """
    stages = list(family.members)
    if len(stages) < 2:
        raise WorkbenchError(
            f"A chain needs at least two stages, but this family has {len(stages)}; "
            "give --member for each stage."
        )
    missing = [stage for stage in stages if stage not in tasks]
    if missing or len(tasks) != len(stages):
        raise WorkbenchError(
            f"Expected prompts for each of the stages {stages}, found them for {list(tasks)}."
        )
    sets = [*(tasks[stage] for stage in stages), *others]
    require_prompts(*sets)
    notes = _unconfirmed(family)
    words = family.base.tokenizer()
    right: list[list[Floats]] = []
    chain = [family.base, *family.members.values()]
    for checkpoint in progress(chain, desc=f"{name}: stages"):
        side = Side(checkpoint, words, batch_size, device, dtype)
        right.append([side.answers(one)["correct"].to_numpy(float) for one in sets])
    items = [np.stack(column) for column in zip(*right, strict=True)]  # per task (stages, prompts)
    rows = [*_scores(stages, sets, items, seed), *_summaries(stages, sets, items, seed)]
    table = pd.DataFrame(rows)
    table.insert(0, "member", name)
    parameters = {"tasks": describe(sets[: len(stages)]), "others": describe(list(others))}
    last = family.members[stages[-1]].about
    last = last | {"stages": {stage: family.members[stage].fingerprint for stage in stages}}
    provenance = Provenance(
        family.base.about, {name: last}, parameters=parameters, notes=notes,
        seed=seed, device=str(device), dtype=dtype,
    )  # fmt: skip
    return finished(KEY, table, provenance)


def _unconfirmed(family: Family) -> tuple[str, ...]:
    """What limits reading the members as a chain. Raises WorkbenchError where they are none."""
    for before, after in pairwise(family.members):
        training = family.members[after].training
        if training is None:
            return (
                f"The files of {after} do not record that its training continued from "
                f"{before}; if the models were each trained from the base, these "
                "numbers do not describe a chain.",
            )
        recipe = training.get("recipe")
        start = recipe.get("start") if isinstance(recipe, Mapping) else None
        if not (start or training.get("start")):
            raise WorkbenchError(
                f"{after} was trained from the base and not from {before}, as its "
                "training.json states; give the stages of one chain, or compare such "
                "models with forgetting.retention."
            )
    return ()


def _scores(
    stages: Sequence[str], sets: Sequence[PromptSet], items: Sequence[Floats], seed: int
) -> Iterator[dict[str, Any]]:
    for place, (one, own) in enumerate(zip(sets, items, strict=True)):
        told = {"task": one.name, "own": place < len(stages), "metric": "score"}
        found = shares(own, seed=seed)
        for i, stage in enumerate((BASE, *stages)):
            interval = {k: part[i] for k, part in found._asdict().items()}
            yield told | {"stage": stage, "x": i} | interval | {"baseline": own[0].mean()}


def _summaries(
    stages: Sequence[str], sets: Sequence[PromptSet], items: Sequence[Floats], seed: int
) -> Iterator[dict[str, Any]]:
    """Forgetting, backward transfer and drops, each on the prompts and on resampled ones."""
    draw = np.random.default_rng(seed)
    whole = np.stack([own.mean(1) for own in items], axis=-1)
    drawn = np.stack([_resampled(own, draw) for own in items], axis=-1)
    n = [own.shape[1] for own in items]
    count = len(stages)

    def row(metric: str, value: Any, draws: Floats, n: int, **about: Any) -> dict[str, Any]:
        low, high = edges(draws, n)
        interval = {"low": low, "high": high, "n": n, "baseline": 0.0}
        return about | {"metric": metric, "value": float(value)} | interval

    lost, again = forgetting(whole), forgetting(drawn)
    for j, one in enumerate(sets):
        yield row("forgetting", lost[j], again[:, j], n[j], task=one.name, own=j < count)
    early, few = slice(0, count - 1), sum(n[: count - 1])
    mean = {"task": "mean", "own": True}
    yield row("forgetting", lost[early].mean(), again[:, early].mean(1), few, **mean)
    back = backward_transfer(whole), backward_transfer(drawn)
    yield row("backward_transfer", *back, few, **mean)
    for i, stage in enumerate(stages):
        for j in [j for j in range(count) if j != i]:
            about = {"stage": stage, "x": i + 1, "task": sets[j].name, "own": True}
            for metric, first in (("source_drop", (i + 1, i)), ("target_drop", (j + 1, j))):
                drop, drops = (m[..., *first] - m[..., i + 1, j] for m in (whole, drawn))
                yield row(metric, drop, drops, min(n[i], n[j]), **about)


def _resampled(own: Floats, draw: np.random.Generator) -> Floats:
    """(draws, stages): mean scores over resampled prompts. own: (stages, prompts)."""
    n = own.shape[1]
    return draw.multinomial(n, np.full(n, 1 / n), size=DRAWS) @ own.T / n
