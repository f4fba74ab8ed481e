"""Sharpness: how much does one harmful gradient step undo, in the base and in the tuned model?

Both models take one step of the same relative length e along the gradient g of a harm,

    theta' = theta + e |theta| d,    d = g / |g|,

where the harm is to raise the loss of the prompts themselves, or to lower that of harmful answers,
where such are given. What the step does is read on other prompts: KL(before || after) per answer
token, and how loss and score change. The control is a random step that is, parameter by parameter,
as long as the harmful one. Nam et al. 2025 (arXiv 2511.13052v1) train models to be resilient to
such undesirable updates; here it is measured whether a fine-tuned model is more or less so than its
base.

It misleads if one side cannot do the task at all: there is nothing to undo, and the step moves
distributions that meant nothing. One step of gradient ascent is not an attack, which takes many. A
difference does not show that anything was learned: of 40 compiled pairs that learned nothing 30
have one for certain (`make truth`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.answer_divergence import divergences
from workbench.loaders import CheckpointPair
from workbench.models import merged
from workbench.models.gradient_step import Gradients, answer_gradients, dot, moved
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, bootstrap, change, halves
from workbench.tasks.batching import encode
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers, side_by_side

KEY = "forgetting.sharpness"
SIDES = ("base", "tuned")
HARMFUL, RANDOM = "harmful", "random"
SIZES = (0.0003, 0.001, 0.003, 0.01)
METRICS = ("kl", "loss_change", "score_change")
LEAST = 4
Floats = NDArray[np.float64]


def harmful_step(gradients: Gradients, length: float) -> dict[str, Tensor]:
    """The step of this length along a gradient, by parameter; zero where there is no gradient."""
    norm = math.sqrt(dot(gradients, gradients))
    scale = length / norm if norm else 0.0
    return {name: scale * own for name, own in gradients.items()}


def random_step(step: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A Gaussian step that is as long as `step` in each parameter."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, own in step.items():
        noise = torch.randn(own.shape, generator=draw).to(own.device)
        made[name] = noise * (own.norm() / noise.norm())
    return made


@analysis(
    "How much does one harmful gradient step undo, compared with the base?",
    paper="arXiv 2511.13052",
    example="--prompts facts.jsonl",
    passes=40,
    quick={"sizes": (0.001, 0.01), "random": 1},
    few={"prompts": 32},
    quick_passes=16,
)
def sharpness(
    pair: CheckpointPair,
    prompts: PromptSet,
    harmful: PromptSet | None = None,
    *,
    sizes: Sequence[float] = SIZES,
    random: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Take one harmful gradient step from both models and read what it did.

    prompts: prompts with answers. Without `harmful`, half of them give the gradient, along which
    their own loss rises, and the other half is read. harmful: prompts with harmful answers, whose
    loss the step lowers; all of `prompts` are then read. sizes: the lengths of the step, as shares
    of the norm of all parameters. random: how many random steps of the same length per parameter
    are taken at every size; 1 or more.

    The command line takes 32 prompts, two sizes (0.001, 0.01) and 1 random step; with --full all
    prompts, four sizes and 3 steps.

    Returns a Result with rows by side ("base", "tuned"), arm ("harmful", "random": mean over draws)
    and x = size: kl, KL(before || after) in nats per answer token, loss_change, of the whole answer
    in nats, and score_change, each after - before with a 95% interval over prompts; baseline of the
    harmful arm: the random one's. By size also kl_difference and loss_difference, of the harmful
    step, tuned - base on the same prompts (baseline: the base's); and by side gradient_norm, of the
    mean loss of the prompts that give the gradient. Adapters are merged. Raises WorkbenchError for
    fewer than 4 prompts, no sizes, or a member that changes no weight.
    """
    least = LEAST if harmful is None else 1
    if len(prompts) < least or (harmful is not None and not len(harmful)):
        raise WorkbenchError(
            f"Expected {least} prompts or more, and harmful ones where they are given; found "
            f"{len(prompts)} and {'none' if not harmful else len(harmful)}."
        )
    if not sizes or not all(0 < size < 1 for size in sizes) or random < 1:
        raise WorkbenchError(
            f"Expected sizes between 0 and 1 and 1 random step or more, found {tuple(sizes)} and "
            f"{random}."
        )
    sizes = sorted(set(sizes))
    giving, read = harmful, prompts
    if giving is None:
        giving, read = (prompts.at(sorted(part)) for part in halves(len(prompts), seed))
    words, kind = pair.base.tokenizer(), named_dtype(dtype) or torch.float32
    found: dict[str, dict[tuple[str, float], dict[str, Floats]]] = {}
    norms: dict[str, float] = {}
    total = 2 * len(sizes) * (1 + random)
    with progress(total=total, desc=f"{pair.name}: steps") as bar:
        for side in SIDES:
            model: Any = (
                pair.base.load(device, kind) if side == "base" else merged(pair, device, kind)
            )
            model.eval()
            _, gradients = answer_gradients(model, words, list(giving), batch_size)
            norms[side] = math.sqrt(dot(gradients, gradients))
            if harmful is not None:
                gradients = {name: -own for name, own in gradients.items()}
            reader = _Reader(model, words, read, batch_size)
            own = {name: p.data.float() for name, p in model.named_parameters()}
            whole = math.sqrt(dot(own, own))
            found[side] = {}
            for size in sizes:
                step = harmful_step(gradients, size * whole)
                found[side][HARMFUL, size] = reader.after(step)
                bar.update()
                drawn = []
                for number in range(random):
                    drawn.append(reader.after(random_step(step, seed + number)))
                    bar.update()
                found[side][RANDOM, size] = {
                    name: np.mean([one[name] for one in drawn], axis=0) for name in drawn[0]
                }
    table = pd.DataFrame([*_rows(found, sizes, seed), *_norms(norms)])
    table.insert(0, "member", pair.name)
    table.insert(1, "task", read.name)
    parameters = {
        "prompts": describe(prompts), "harmful": None if harmful is None else describe(harmful),
        "sizes": list(sizes), "random": random,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


class _Reader:
    """One model, and what it says of the answers before any step."""

    def __init__(self, model: Any, words: Any, prompts: PromptSet, batch_size: int) -> None:
        self.model, self.words, self.prompts, self.batch_size = model, words, prompts, batch_size
        self.coded = [encode(words, prompt) for prompt in prompts]
        self.said = self._said()
        self.right = self._right()

    def after(self, step: Mapping[str, Tensor]) -> dict[str, Floats]:
        """(prompts,) kl per token and loss_change of a step, and the scores before and after it."""
        with moved(self.model, lambda name, _: step[name]):
            said, right = self._said(), self._right()
        kl, loss = np.zeros(len(said)), np.zeros(len(said))
        for i, (before, after, one) in enumerate(zip(self.said, said, self.coded, strict=True)):
            kl[i] = float(divergences(before, after).mean())
            targets = torch.tensor(one.ids[one.start :])[:, None]
            loss[i] = float((before - after).gather(1, targets).double().sum())
        return {"kl": kl, "loss_change": loss, "after": right, "before": self.right}

    def _said(self) -> list[Tensor]:
        """Of each answer its log-probabilities (tokens, vocabulary), on the CPU."""
        found: list[Any] = [None] * len(self.coded)
        for index, (own,) in side_by_side([self.model], self.words, self.coded, self.batch_size):
            found[index] = own.cpu().clone()
        return found

    def _right(self) -> Floats:
        made = answers(self.model, self.words, self.prompts, batch_size=self.batch_size)
        return made["correct"].to_numpy(float)


def _rows(
    found: Mapping[str, Mapping[tuple[str, float], Mapping[str, Floats]]],
    sizes: Sequence[float],
    seed: int,
) -> Iterator[dict[str, Any]]:
    for size in sizes:
        for side in SIDES:
            for arm in (HARMFUL, RANDOM):
                own, beside = (found[side][one, size] for one in (arm, RANDOM))
                for metric in METRICS:
                    yield {
                        "metric": metric, "side": side, "arm": arm, "x": size,
                        **_interval(metric, own, seed)._asdict(),
                        "baseline": _interval(metric, beside, seed).value,
                    }  # fmt: skip
        base, tuned = (found[side][HARMFUL, size] for side in SIDES)
        for metric, of in (("kl_difference", "kl"), ("loss_difference", "loss_change")):
            apart = bootstrap(tuned[of] - base[of], seed=seed)._asdict()
            yield {"metric": metric, "x": size, **apart, "baseline": float(base[of].mean())}


def _interval(metric: str, own: Mapping[str, Floats], seed: int) -> Interval:
    if metric == "score_change":
        return change(own["before"], own["after"], seed=seed)
    return bootstrap(own[metric], seed=seed)


def _norms(norms: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for side, value in norms.items():
        yield {"metric": "gradient_norm", "side": side, "value": value, "baseline": norms["base"]}
