"""Coverage: how many tries until one answer is right, and how different are the answers?

Each prompt is answered n times at a temperature. Of n answers c are right, and

    pass@k = 1 - C(n - c, k) / C(n, k)

is the unbiased chance that one of k is (Chen et al. 2021, arXiv 2107.03374v2, eq. 1). A model that
was fine-tuned, by reinforcement learning above all, can be better at k = 1 and worse at many tries,
because it says fewer different things (Yue et al. 2025, arXiv 2504.13837v4; Ibn Hamid et al. 2025,
arXiv 2509.25424v1): then the two curves cross. Both sides draw with the same random numbers, so
that a base against itself differs nowhere. For an answer of one token pass@k is 1 - (1 - p)^k on
average, with p its probability.

Where several answers are equally valid (a prompt's target and its foils, as in "pick a number from
1 to 4"), the distribution over them is read directly: p_i is the probability of each, divided by
their sum, and

    KL(p || uniform) = ln m - H(p)    nats, of m answers

is 0 for a model that picks at random (Zhang et al. 2024, arXiv 2404.10859).

It misleads at another temperature than the one a model is used with: a low one lowers every number
of variety, whatever the model knows. Different answers are not different ideas, and with foils that
are wrong the distance from the uniform distribution says how sure a model is, not that it should be
less so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, change, edges, shares
from workbench.tasks.batching import encode
from workbench.tasks.forward import ready
from workbench.tasks.generation import generations, pass_at
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import side_by_side
from workbench.tasks.scorers import Generation, Loss

KEY = "behaviour.coverage"
SIDES = ("base", "tuned")
GUESS = "guess"
DRAWS = 1000
Floats = NDArray[np.float64]


def crossing(ks: Sequence[int], base: Floats, tuned: Floats) -> Floats:
    """(...) the k at which the base's curve passes above the tuned one's, which lay above before;
    NaN where it does not. base, tuned: (ks, ...). Between two k on a line over log k."""
    ahead = tuned - base
    turns = (ahead[:-1] > 0) & (ahead[1:] < 0)
    first = turns.argmax(0)[None]
    before, after = (np.take_along_axis(part, first, 0)[0] for part in (ahead[:-1], ahead[1:]))
    there = turns.any(0)
    along = before / np.where(there, before - after, 1.0)
    low, high = (np.log(np.asarray(part, dtype=float))[first[0]] for part in (ks[:-1], ks[1:]))
    return np.where(there, np.exp(low + along * (high - low)), np.nan)


def uniform_kl(log_p: Floats) -> float:
    """KL(p || uniform) in nats. log_p: (answers,), log-probabilities, which need not sum to 1."""
    p = np.exp(log_p - np.logaddexp.reduce(log_p))
    return float(np.log(len(p)) + np.sum(p * np.log(np.where(p > 0, p, 1.0))))


@analysis(
    "How many tries until an answer is right, and how different are the answers?",
    paper="arXiv 2107.03374v2, 2504.13837v4, 2509.25424, 2404.10859",
    example="--prompts task.jsonl",
    passes=66,
    quick={"samples": 8},
    few={"prompts": 24},
    quick_passes=18,
    texts=True,
)
def coverage(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    samples: int = 32,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Draw several answers to every prompt from both models.

    prompts: prompts with answers. If their scorer is a generation it finds the answer in what is
    written; else as many tokens are drawn as the target has. samples: the number of answers that
    are drawn to each prompt; 2 or more. temperature: of the draws; 1 is the model's own
    distribution. top_p: the share of the probability from which tokens are drawn.

    The command line takes 24 prompts and 8 samples; with --full all prompts and 32 samples.

    Returns a Result with rows by side ("base", "tuned"), with 95% intervals over prompts: pass_at
    (x = k, the powers of 2 up to `samples`; baseline of the tuned side: the base's value), distinct
    (different answers among the samples) and entropy (nats, of the first answer token's
    distribution). If every prompt has foils also side "guess" of pass_at (one of the answers at
    random), valid_mass (the probability of target and foils together) and uniform_kl (nats, of the
    distribution over them; 0: all equally likely). Each also as _change, tuned - base, paired; and
    crossing, the k from which the base has the higher pass@k although the tuned model was ahead
    (NaN if there is none; its interval is NaN where it is not certain that the curves cross).
    Raises WorkbenchError for plain texts, no prompts or fewer than 2 samples.
    """
    if not len(prompts) or isinstance(prompts.scorer, Loss):
        raise WorkbenchError("Expected prompts with answers to draw, found none; give some.")
    if samples < 2 or not temperature > 0:
        raise WorkbenchError(
            f"Expected 2 samples or more at a temperature above 0, found {samples} at "
            f"{temperature}; one answer, or always the same one, says nothing of variety."
        )
    words = pair.base.tokenizer()
    draw = {"samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    asked = _asked(words, prompts, draw)
    right, distinct = (np.zeros((2, len(prompts))) for _ in range(2))
    with pair.models(device, named_dtype(dtype)) as sides:
        models = (sides.base, sides.tuned)
        for side, model in enumerate(models):
            for scorer, places in asked:
                own = [prompts[place] for place in places]
                with ready(model, None) as where:
                    texts = generations(
                        *(model, words, own, scorer), batch_size=batch_size, device=where
                    )
                for place, one, said in zip(places, own, texts, strict=True):
                    right[side, place] = sum(scorer.right(text, one.target) for text in said)
                    distinct[side, place] = len({scorer.found(text) for text in said})
        entropy, log_p = _distributions(models, words, prompts, batch_size)
    found = {"distinct": distinct, "entropy": entropy} | _valid(log_p)
    rows = [*_curves(prompts, right, samples, pair.same, seed), *_means(found, seed)]
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "samples": samples, "temperature": temperature,
        "top_p": top_p,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _asked(
    words: Any, prompts: PromptSet, draw: dict[str, Any]
) -> list[tuple[Generation, list[int]]]:
    """How prompts are sampled, and the places of those that are sampled so."""
    if isinstance(prompts.scorer, Generation):
        return [(replace(prompts.scorer, passes=(), **draw), [*range(len(prompts))])]
    lengths: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        coded = encode(words, prompt)
        lengths.setdefault(len(coded.ids) - coded.start, []).append(place)
    return [(Generation(length=n, alike=("space",), **draw), own) for n, own in lengths.items()]


def _distributions(
    models: Sequence[Any], words: Any, prompts: PromptSet, batch_size: int
) -> tuple[Floats, list[Floats]]:
    """(2, prompts), the entropy of the first answer token in nats, and of every prompt (2, answers)
    log p of its target and its foils."""
    coded, place = [], []
    for number, prompt in enumerate(prompts):
        for choice, answer in enumerate((prompt.target, *prompt.foils)):
            coded.append(encode(words, Prompt(prompt.id, prompt.prompt, answer)))
            place.append((number, choice))
    entropy = np.zeros((2, len(prompts)))
    log_p = [np.zeros((2, 1 + len(prompt.foils))) for prompt in prompts]
    for index, sides in side_by_side(models, words, coded, batch_size):
        one, (number, choice) = coded[index], place[index]
        for side, said in enumerate(sides):
            targets = torch.tensor(one.ids[one.start :], device=said.device)[:, None]
            log_p[number][side, choice] = float(said.double().gather(1, targets).sum())
            p = said[0].double().exp()
            entropy[side, number] = float(-torch.special.xlogy(p, p).sum())
    return entropy, log_p


def _valid(log_p: Sequence[Floats]) -> dict[str, Floats]:
    """(2, prompts) of the distribution over target and foils; nothing where a prompt has none."""
    if any(own.shape[1] < 2 for own in log_p):
        return {}
    mass = np.array([np.exp(np.logaddexp.reduce(own, axis=1)) for own in log_p]).T
    apart = np.array([[uniform_kl(side) for side in own] for own in log_p]).T
    return {"valid_mass": mass, "uniform_kl": apart}


def _curves(
    prompts: PromptSet, right: Floats, samples: int, same: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """pass@k of both sides, its change, and where the curves cross."""
    ks = [2**i for i in range(samples.bit_length())]
    passed = np.array([
        [[pass_at(samples, int(c), k) for c in own] for k in ks] for own in right
    ])  # fmt: skip
    before = passed[0].mean(1)
    for side, values in zip(SIDES, passed, strict=True):
        found = shares(values, seed=seed)
        for i, k in enumerate(ks):
            interval = {name: part[i] for name, part in found._asdict().items()}
            beside = float(before[i]) if side == "tuned" else np.nan
            yield {"metric": "pass_at", "side": side, "x": k, **interval, "baseline": beside}
    for i, k in enumerate(ks):
        moved = change(passed[0, i], passed[1, i], same=same, seed=seed)._asdict()
        yield {"metric": "pass_at_change", "x": k, **moved, "baseline": float(before[i])}
    if all(prompt.foils for prompt in prompts):
        miss = np.array([len(p.foils) / (1 + len(p.foils)) for p in prompts])
        for k in ks:
            guessed = bootstrap(1 - miss**k, seed=seed)._asdict()
            yield {"metric": "pass_at", "side": GUESS, "x": k, **guessed, "baseline": np.nan}
    n = right.shape[1]
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    drawn = crossing(ks, *(side @ times.T for side in passed))
    beyond = 2.0 * ks[-1]  # of a draw whose curves do not cross
    low, high = edges(np.where(np.isnan(drawn), beyond, drawn), n)
    value = float(crossing(ks, *passed.mean(2)))
    known = np.isfinite(value) and high <= ks[-1]
    low, high = (low, high) if known else (np.nan, np.nan)
    yield {"metric": "crossing", "value": value, "low": low, "high": high, "n": n, "baseline": 1.0}


def _means(found: dict[str, Floats], seed: int) -> Iterator[dict[str, Any]]:
    """The mean of each measure of (2, prompts) by side, and its change."""
    for metric, (before, after) in found.items():
        base = float(before.mean())
        for side, values in zip(SIDES, (before, after), strict=True):
            own = bootstrap(values, seed=seed)._asdict()
            beside = base if side == "tuned" else np.nan
            yield {"metric": metric, "side": side, **own, "baseline": beside}
        moved = bootstrap(after - before, seed=seed)._asdict()
        yield {"metric": f"{metric}_change", **moved, "baseline": base}
