"""The arms of steering: the base with directions added, the tuned model without them, and the base
with more of the change of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.loaders import CheckpointPair
from workbench.models import edit
from workbench.models.rerun import Plus, Rerun, Writes
from workbench.models.sides import Sides
from workbench.patching.direction import Direction, equals, without
from workbench.patching.metrics import measured
from workbench.progress import progress
from workbench.tasks import Generation, Prompt
from workbench.tasks.batching import Batch, Row, batch, in_batches
from workbench.tasks.forward import ready
from workbench.tasks.generation import generations

Values = dict[str, NDArray[np.float64]]
Key = tuple[str, int | None, float | None]  # arm, layer, scale
Scored = tuple[Key, dict[str, Tensor]]
BASE, TUNED, STEERED, RANDOM, ABLATED, ABLATED_RANDOM, AMPLIFIED, BEST = (
    "base", "tuned", "steered", "random", "ablated", "ablated random", "amplified", "best",
)  # fmt: skip
METRICS = ("score", "log_probability", "logit_difference", "kl")


@dataclass(frozen=True)
class Steering:
    """Both sides, the prompts with answers, and the direction behind each layer."""

    sides: Sides
    given: Sequence[Row]
    made: Mapping[int, Direction]
    scales: tuple[float, ...]
    draws: int
    seed: int
    known: Mapping[str, Any]

    def run(self) -> dict[Key, Values]:
        """(arm, layer, scale) -> metric -> (prompts,); the random ones are the mean of theirs."""
        return self._over_prompts(self._batch, "steering")

    def amplified(
        self, pair: CheckpointPair, alphas: Sequence[float], asked: Sequence[Prompt], words: Any,
        length: int,
    ) -> tuple[dict[Key, Values], list[dict[str, Any]]]:  # fmt: skip
        """As `run` and `written`, of the base with so many times the change of the weights. Loads
        the base once more."""
        if not alphas:
            return {}, []
        device = self.known["device"]
        dtype = next(self.sides.tuned.parameters()).dtype
        model: Any = pair.base.load(device, dtype).eval()
        values: dict[Key, Values] = {}
        texts: list[dict[str, Any]] = []
        for alpha in alphas:
            with edit(pair, alpha).on(model) as own:

                def scored(at: list[int], own: Any = own, alpha: float = alpha) -> list[Scored]:
                    inputs = self._inputs(at)
                    goal = Rerun(self.sides.tuned, inputs).logits[0]
                    return [((AMPLIFIED, None, alpha), measured(Rerun(own, inputs).logits, inputs,
                                                                goal))]  # fmt: skip

                values |= self._over_prompts(scored, f"weights x {alpha:g}")
                said = self._said(own, asked, words, length) if asked else []
            texts += [{"arm": AMPLIFIED, "x": alpha} | row for row in said]
        return values, texts

    def _over_prompts(
        self, score: Callable[[list[int]], list[Scored]], desc: str
    ) -> dict[Key, Values]:
        values: dict[Key, Values] = {}
        lengths = [len(row.fed) for row in self.given]
        with progress(total=len(self.given), desc=desc) as bar:
            for at, found in in_batches(lengths, self.known["batch_size"], score):
                for key, scored in found:
                    own = values.setdefault(key, {})
                    for metric in METRICS:
                        kept = own.setdefault(metric, np.full(len(self.given), np.nan))
                        kept[at] = scored[metric].mean(0).double().cpu().numpy()
                bar.update(len(at))
        return values

    def _inputs(self, at: list[int]) -> Batch:
        return batch(self.given, at, self.known["device"], self.known["fill"])

    def _batch(self, at: list[int]) -> list[Scored]:
        """Every arm's measures of some prompts, (draws, batch) each."""
        inputs = self._inputs(at)
        sites = [direction.site for direction in self.made.values()]
        base, tuned = Rerun(self.sides.base, inputs), Rerun(self.sides.tuned, inputs, sites)
        room = max(1, self.known["batch_size"] // len(at))
        goal = tuned.logits[0]

        def scored(run: Rerun, arms: Mapping[Key, Sequence[Writes]]) -> Iterator[Scored]:
            """Of one layer; all that enter there share forward passes."""
            patches = [patch for own in arms.values() for patch in own]
            parts = [
                measured(run.again(patches[i : i + room]), inputs, goal)
                for i in range(0, len(patches), room)
            ]
            whole = {metric: torch.cat([part[metric] for part in parts]) for metric in METRICS}
            first = 0
            for key, own in arms.items():
                rows = slice(first, first := first + len(own))
                yield key, {metric: values[rows] for metric, values in whole.items()}

        found: list[Scored] = [
            ((side, None, None), measured(run.logits, inputs, goal))
            for side, run in ((BASE, base), (TUNED, tuned))
        ]
        for layer, direction in self.made.items():
            steered: dict[Key, Sequence[Writes]] = {
                (arm, layer, scale): [{direction.site: Plus(scale * one)} for one in own]
                for scale in self.scales
                for arm, own in self._vectors(layer)
            }
            stream, ablated = tuned.read(direction.site), {}
            for arm, own in ((ABLATED, STEERED), (ABLATED_RANDOM, RANDOM)):
                units = torch.nn.functional.normalize(dict(self._vectors(layer))[own], dim=-1)
                ablated[arm, layer, None] = [
                    {direction.site: without(stream, unit)} for unit in units
                ]
            found += [*scored(base, steered), *scored(tuned, ablated)]
        return found

    def _vectors(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """The direction and the random ones, (how many, width) each."""
        vector = self.made[layer].vector
        yield STEERED, torch.from_numpy(vector)[None]
        yield RANDOM, torch.from_numpy(equals(vector, self.draws, self.seed + layer))

    def written(
        self, asked: Sequence[Prompt], layer: int, scale: float, words: Any, length: int
    ) -> list[dict[str, Any]]:
        """Rows of what each arm writes behind some prompts, greedily."""
        if not asked:
            return []
        runs = (
            (BASE, self.sides.base, None), (TUNED, self.sides.tuned, None),
            (STEERED, self.sides.base, self.made[layer]),
            (RANDOM, self.sides.base, self._direction(layer)),
        )  # fmt: skip
        made = []
        for arm, model, direction in runs:
            if direction is None:
                said, at = self._said(model, asked, words, length), {}
            else:
                with direction.added(model, scale):
                    said, at = self._said(model, asked, words, length), {"layer": layer, "x": scale}
            made += [{"arm": arm} | row | at for row in said]
        return made

    def _said(
        self, model: Any, asked: Sequence[Prompt], words: Any, length: int
    ) -> list[dict[str, Any]]:
        """The texts, and 1 for those that hold the answer, NaN where there is none."""
        with ready(model, None) as where:
            run: dict[str, Any] = {"batch_size": self.known["batch_size"], "device": where}
            texts = generations(model, words, asked, Generation(length=length), **run)
        return [
            {
                "prompt": prompt.id, "metric": "text", "text": text,
                "value": float(prompt.target.strip() in text) if prompt.target.strip() else np.nan,
            }
            for prompt, (text,) in zip(asked, texts, strict=True)
        ]  # fmt: skip

    def _direction(self, layer: int) -> Direction:
        """The first random direction of a layer."""
        own = self.made[layer]
        return Direction("random", own.site, equals(own.vector, 1, self.seed + layer)[0])


def as_prompts(given: Sequence[Prompt | str]) -> list[Prompt]:
    """Plain texts as prompts whose answer is not known."""
    return [
        one if isinstance(one, Prompt) else Prompt(str(i), one, " ") for i, one in enumerate(given)
    ]
