"""Interpolation: is there a point between two models that has learned the task and lost less?

theta_alpha = (1 - alpha) theta_a + alpha theta_b, a the base or another model, b the fine-tuned
model: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), in whose figures accuracy in distribution
is x and out of distribution y. The path is compared with the ensemble of both models' logits at the
same alpha, which needs both models, and with the chord, which is the linear mix of the two scores.
The barrier is the largest excess of the loss over its chord (Frankle et al. 2020, arXiv
1912.05671).

It misleads if alpha is chosen on the prompts it is reported on: here the best one is chosen on one
half of the prompts of all tasks, in and out of distribution, where WiSE-FT fixes it or chooses it
in distribution; every row "best" is of the other halves. So is the task that gains most there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import require_prompts
from workbench.loaders import CheckpointPair
from workbench.models import Edit, edit
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Intervals, edges, ratios, shares
from workbench.tasks.batching import Encoded, encode
from workbench.tasks.choices import judged, texts, unasked
from workbench.tasks.continuation import goes_on
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import answers, side_by_side
from workbench.tasks.scorers import Choices, Continuation

KEY = "forgetting.interpolate"
ALPHAS = tuple(round(float(a), 3) for a in np.linspace(0, 1, 11))
PATH, ENSEMBLE = "path", "ensemble"
BEST, HALF, RISEN = "best", "half", "best other"
Floats = NDArray[np.float64]
Items = tuple[Floats, Floats]  # right and loss (nats), prompt by prompt


def chord(alphas: Floats, values: Floats) -> Floats:
    """The line from the first to the last value. alphas: (a,) from 0 to 1; values: (a, ...)."""
    steps = alphas.reshape(-1, *[1] * (values.ndim - 1))
    return (1 - steps) * values[0] + steps * values[-1]


def barriers(alphas: Floats, losses: Floats, *, seed: int = 0, draws: int = 1000) -> Intervals:
    """max over alpha of mean loss - chord, with a 95% bootstrap over items (none of one
    item). losses: (a, items)."""
    excess = losses - chord(alphas, losses)
    n = excess.shape[1]
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n
    drawn = (excess @ times.T).max(0)
    low, high = edges(drawn, n)
    value, low, high = (np.array([v]) for v in (excess.mean(1).max(), low, high))
    return Intervals(value, low, high, np.array([n]))


@analysis(
    "Is there a better model on the path between the base and the fine-tuned model?",
    paper="WiSE-FT, arXiv 2109.01903, 1912.05671",
    example="--prompts task.jsonl --others facts.jsonl",
    passes=13,
    takes={"prompts": "task", "others": "others"},
    quick={"alphas": (0.0, 0.3, 0.5, 0.7, 1.0)},
    few={"prompts": 32, "others": 32},
    quick_passes=9,
)
def interpolate(
    pair: CheckpointPair,
    prompts: PromptSet,
    others: Sequence[PromptSet] = (),
    *,
    origin: CheckpointPair | None = None,
    alphas: Sequence[float] = ALPHAS,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Score the models along the straight path between two models of one base.

    prompts: in-distribution prompts of what was learned. others: out-of-distribution prompts of
    what may be lost. origin: where the path begins, another model's pair over the same base (LoRA
    -> full); None is the base. alphas: at least 3 points from 0 to 1, both included.

    The command line takes 32 prompts of a file and five alphas, with --full all prompts and eleven
    alphas.

    Returns a Result with a row per (arm, task, x, metric), x = alpha: score (by the prompts'
    scorer) and loss (-log p of the answer, nats) of arm "path" and "ensemble" (the softmax of mixed
    logits; it writes no text, so generations have no score) with 95% intervals over
    prompts, baseline: the chord; own: whether the task is `prompts`. barrier per arm and task
    (baseline 0). Arm "best": score_change of each task on half of its prompts at the alpha with
    most right answers over all tasks' other halves, with equal weight for each task, against the
    fine-tuned model itself (x = 1), and arm "half" the same of alpha = .5. Arm "best other": the
    row of "best" of the one other task whose score rose most on the halves that chose alpha: the
    largest of several rises would be too large where it is reported. Raises WorkbenchError for
    alphas that do not run from 0 to 1, or an origin of another base.
    """
    steps = np.asarray(sorted(set(alphas)), dtype=float)
    if len(steps) < 3 or steps[0] != 0 or steps[-1] != 1:
        raise WorkbenchError(f"Expected three alphas or more from 0 to 1, found {tuple(alphas)}.")
    if origin is not None and origin.base.fingerprint != pair.base.fingerprint:
        raise WorkbenchError(
            "The two ends of the path must have the same base, but these pairs have "
            "different ones; give an origin of this base."
        )
    sets = (prompts, *others)
    require_prompts(*sets)
    found = _along(pair, origin, sets, steps, batch_size, device, dtype)
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(sets):
        told = {"task": one.name, "own": place == 0}
        for arm in (PATH, ENSEMBLE):
            rows += (told | row for row in _rows(arm, steps, found[arm][place], seed))
    rows += _chosen(steps, [found[PATH][place][0] for place in range(len(sets))], sets, seed)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "others": describe(list(others)), "alphas": list(steps),
        "origin": None if origin is None else origin.tuned.about,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _along(
    pair: CheckpointPair,
    origin: CheckpointPair | None,
    sets: Sequence[PromptSet],
    alphas: Floats,
    batch_size: int,
    device: str,
    dtype: str,
) -> dict[str, list[tuple[Floats, Floats]]]:
    """arm -> for every set right and loss, each (alphas, prompts)."""
    held = pair.held(device)
    other = None if origin is None else origin.held(device)
    words = pair.base.tokenizer()
    model: Any = pair.base.load(device, named_dtype(dtype)).eval()
    held.rest_on(model)
    made: dict[str, list[list[Items]]] = {PATH: [[] for _ in sets], ENSEMBLE: [[] for _ in sets]}
    for alpha in progress(alphas, desc=f"{pair.name}: path"):
        with _point(held, other, alpha).on(model):
            for place, one in enumerate(sets):
                read = answers(model, words, one, batch_size=batch_size)
                loss = -read["log_probability"].to_numpy(float)
                made[PATH][place].append((read["correct"].to_numpy(float), loss))
    ends = [end.load(device, named_dtype(dtype)).eval() for end in _ends(pair, origin)]
    weights = np.stack([1 - alphas, alphas], 1)
    for place, one in enumerate(sets):
        made[ENSEMBLE][place] = _mixed(ends, words, one, weights, batch_size)
    return {
        arm: [tuple(np.stack(part) for part in zip(*items, strict=True)) for items in own]
        for arm, own in made.items()
    }  # pyright: ignore[reportReturnType]


def _ends(pair: CheckpointPair, origin: CheckpointPair | None):
    return (pair.base if origin is None else origin.tuned), pair.tuned


def _point(pair: CheckpointPair, origin: CheckpointPair | None, alpha: float) -> Edit:
    """(1 - alpha) origin + alpha tuned, each as a change of the base; the ends bit for bit."""
    if origin is None or alpha == 1:
        return edit(pair, alpha)
    return edit(origin) if alpha == 0 else edit(origin, 1 - alpha) + edit(pair, alpha)


def _mixed(
    models: Sequence[Any], words: Any, prompts: PromptSet, weights: Floats, batch_size: int
) -> list[Items]:
    """Right and loss of every prompt under each mix of the models' logits; NaN for right where an
    answer would have to be written. weights: (mixes, models)."""
    scorer = prompts.scorer
    several = isinstance(scorer, Choices)
    coded = [
        [encode(words, Prompt(prompt.id, prompt.prompt, text)) for text in texts(prompt)]
        if several
        else [encode(words, prompt)]
        for prompt in prompts
    ]
    log_p, greedy = _choices(models, words, coded, weights, batch_size)
    plain: list[list[Floats]] = []
    if several and scorer.by == "unconditional":
        alone = [[unasked(words, text) for text in texts(prompt)] for prompt in prompts]
        plain, _ = _choices(models, words, alone, weights, batch_size)
    found = []
    for mix, every in enumerate(log_p):
        loss = -np.array([own[0] for own in every])
        if isinstance(scorer, Choices):
            right = np.array([
                judged(prompt, own, plain[mix][i] if plain else None, scorer.by)["correct"]
                for i, (prompt, own) in enumerate(zip(prompts, every, strict=True))
            ])  # fmt: skip
        else:
            right = greedy[mix] if isinstance(scorer, Continuation) else np.full_like(loss, np.nan)
        found.append((right, loss))
    return found


def _choices(
    models: Sequence[Any], words: Any, coded: Sequence[Sequence[Encoded]], weights: Floats,
    batch_size: int,
) -> tuple[list[list[Floats]], Floats]:  # fmt: skip
    """(log-probability in nats of every choice by mix and prompt, whether greedy decoding gives the
    first, (mixes, prompts))."""
    log_p = [[np.zeros(len(own)) for own in coded] for _ in weights]
    greedy = np.zeros((len(weights), len(coded)))
    owners = [(i, j) for i, own in enumerate(coded) for j in range(len(own))]
    flat = [one for own in coded for one in own]
    for index, logs in side_by_side(models, words, flat, batch_size, behind=True):
        own, (i, j) = flat[index].ids[flat[index].start :], owners[index]
        targets = torch.tensor(own, device=logs[0].device)[:, None]
        for mix, parts in enumerate(weights):
            # A weighted sum of log-probabilities differs from one of logits by a constant only.
            total = sum(float(w) * one for w, one in zip(parts, logs, strict=True))
            assert isinstance(total, torch.Tensor)
            scores = total.log_softmax(-1)
            log_p[mix][i][j] = scores[:-1].gather(1, targets).sum().item()
            if j == 0:
                *best, then = scores.argmax(-1).tolist()
                greedy[mix, i] = best == own and not goes_on(words, own, then)
    return log_p, greedy


def _rows(arm: str, alphas: Floats, items: tuple[Floats, Floats], seed: int) -> Iterator[dict]:
    for metric, values, of in zip(("score", "loss"), items, (shares, ratios), strict=True):
        found = of(values, seed=seed)
        lines = chord(alphas, values).mean(1)
        for place, alpha in enumerate(alphas):
            value, low, high, n = (float(part[place]) for part in found)
            yield {
                "arm": arm, "x": alpha, "metric": metric, "value": value, "low": low,
                "high": high, "n": int(n), "baseline": lines[place],
            }  # fmt: skip
    barrier = barriers(alphas, items[1], seed=seed).first._asdict()
    yield {"arm": arm, "metric": "barrier"} | barrier | {"baseline": 0.0}


def _chosen(
    alphas: Floats, right: Sequence[Floats], sets: Sequence[PromptSet], seed: int
) -> Iterator[dict[str, Any]]:
    """What the alpha that half of all prompts choose, and alpha = .5, give on the other half; at
    the chosen one also of the other task that rises most on the half that chooses."""
    draw = np.random.default_rng(seed)
    halves = [np.array_split(draw.permutation(one.shape[1]), 2) for one in right]
    if any(not len(report) for _, report in halves):
        return
    chosen = [one[:, half].mean(1) for one, (half, _) in zip(right, halves, strict=True)]
    best = int(np.mean(chosen, axis=0).argmax())
    middle = int(np.abs(alphas - 0.5).argmin())
    rises = [own[best] - own[-1] for own in chosen[1:]]
    every = [*range(len(sets))]
    plans = [(BEST, best, every), (HALF, middle, every)]
    if rises:
        plans.append((RISEN, best, [1 + int(np.argmax(rises))]))
    for arm, place, some in plans:
        for task in some:
            one, report = right[task], halves[task][1]
            change = (one[place] - one[-1])[report]
            told = {"task": sets[task].name, "own": task == 0, "arm": arm, "x": alphas[place]}
            interval = ratios(change, seed=seed).first._asdict()
            base = float(one[-1][report].mean())
            yield told | {"metric": "score_change"} | interval | {"baseline": base}
