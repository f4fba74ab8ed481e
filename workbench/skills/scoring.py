"""How does a base answer with some of its parameters edited? One model, read under many edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.pair import HeldPair
from workbench.models import Edit, edit
from workbench.models.sides import named_dtype
from workbench.stats import Intervals, calibration, ratios, shares
from workbench.tasks import PromptSet
from workbench.tasks.score import answers

LEAST = 12  # prompts, to be split in parts
Reading = tuple[pd.DataFrame, ...]  # `tasks.answers` of every prompt set


@dataclass
class Readout:
    """One model of the base's architecture and the prompt sets it is asked, the task's own first.

    base, tuned: how the two sides answer. Calling `rows` summarises what `read` gave under an edit.
    """

    pair: CheckpointPair
    sets: tuple[PromptSet, ...]
    model: Any
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self.words = self.pair.base.tokenizer()
        self.base = self.read(None)
        # Rows of tokens that only the tuned side has are no part of any edit of the base.
        self.tuned = self._of_tuned() if self.pair.resized else self.read(edit(self.pair))

    @classmethod
    def of(
        cls,
        pair: CheckpointPair,
        sets: Sequence[PromptSet],
        *,
        batch_size: int = 32,
        seed: int = 0,
        device: str = "cpu",
        dtype: str | None = None,
    ) -> Readout:
        """Loads the base. pair: best a held one, whose edits cost no reading."""
        empty = [one.name for one in sets if not len(one)]
        if empty or not sets:
            raise WorkbenchError(f"Expected prompts to score; {empty or 'no set'} has none.")
        names = [one.name for one in sets]
        if len(set(names)) < len(names):
            raise WorkbenchError(f"Expected prompt sets of different names, found {names}.")
        model = pair.base.load(device, named_dtype(dtype)).eval()
        if isinstance(pair, HeldPair):
            pair.rest_on(model)
        return cls(pair, tuple(sets), model, batch_size, seed)

    def read(self, change: Edit | None) -> Reading:
        """How the base answers every prompt set under an edit."""
        if change is None:
            return tuple(self.answers(one) for one in self.sets)
        with change.on(self.model):
            return tuple(self.answers(one) for one in self.sets)

    def _of_tuned(self) -> Reading:
        """How the tuned model itself answers every prompt set."""
        one = next(self.model.parameters())
        tuned: Any = self.pair.tuned.load(one.device, one.dtype)
        with torch.inference_mode():
            return tuple(
                answers(tuned, self.words, prompts, batch_size=self.batch_size)
                for prompts in self.sets
            )

    def answers(self, prompts: PromptSet) -> pd.DataFrame:
        """`tasks.answers` of the model as it is now."""
        with torch.inference_mode():
            return answers(self.model, self.words, prompts, batch_size=self.batch_size)

    def rows(self, *readings: Reading, **about: Any) -> list[dict[str, Any]]:
        """One row per prompt set and metric, of the mean over several readings (random masks).

        Metrics, with 95% intervals over prompts: "score", exact answers; "gain",
        (P - P_base) / (P_tuned - P_base) of the score, NaN where that interval of the tuned model's
        own gain holds 0; "agreement", same first token as the tuned
        model says; "log_probability" of the answer, nats; "ece", "ece_mass" and "brier" of the
        first token, whose baseline is that of a perfectly calibrated model. Elsewhere baseline is
        the base's value. own: whether the set is the task's.
        """
        made = []
        for place, prompts in enumerate(self.sets):
            told = about | {"task": prompts.name, "own": place == 0}
            base, tuned = self.base[place], self.tuned[place]
            here = [reading[place] for reading in readings]
            for metric, interval, baseline in self._metrics(here, base, tuned):
                named = interval.first._asdict()
                made.append(told | {"metric": metric} | named | {"baseline": baseline})
            made += self._calibrated(here, told)
        return made

    def _metrics(self, here: list[pd.DataFrame], base: pd.DataFrame, tuned: pd.DataFrame):
        def mean(column: str) -> np.ndarray:
            return np.mean([one[column].to_numpy(float) for one in here], axis=0)

        said = np.mean([(one["said"] == tuned["said"]).to_numpy(float) for one in here], axis=0)
        agreed = (base["said"] == tuned["said"]).to_numpy(float)
        first, last = (side["correct"].to_numpy(float) for side in (base, tuned))
        for metric, values, before in (
            ("score", mean("correct"), first),
            ("agreement", said, agreed),
        ):
            yield metric, shares(values, seed=self.seed), float(before.mean())
        own, before = mean("log_probability"), base["log_probability"].to_numpy(float)
        yield "log_probability", ratios(own, seed=self.seed), float(before.mean())
        yield "gain", self._gain(mean("correct") - first, last - first), 0.0

    def _gain(self, here: np.ndarray, whole: np.ndarray) -> Intervals:
        """Ratio of the sums; NaN where the whole may be nothing, whose parts are then noise."""
        gained = ratios(whole, seed=self.seed)
        found = ratios(here, whole, seed=self.seed)
        if gained.low[0] <= 0 <= gained.high[0]:
            nothing = np.full(1, np.nan)
            return Intervals(nothing, nothing, nothing, found.n)
        return found

    def _calibrated(self, here: list[pd.DataFrame], told: dict[str, Any]) -> list[dict[str, Any]]:
        made = []
        both = [(one["confidence"].to_numpy(float), one["first_correct"].to_numpy(float))
                for one in here]  # fmt: skip
        for metric, mass in (("ece", False), ("ece_mass", True)):
            found = [calibration(*one, mass=mass, seed=self.seed, draws=200) for one in both]
            value, low, high = np.mean([[*measured[:3]] for measured, _ in found], axis=0)
            null = float(np.mean([perfect.value for _, perfect in found]))
            n = found[0][0].n
            made.append(told | {"metric": metric, "value": value, "low": low, "high": high, "n": n,
                                "baseline": null})  # fmt: skip
        brier = ratios(
            np.mean([(sure - right) ** 2 for sure, right in both], axis=0), seed=self.seed
        )
        perfect = float(np.mean([(sure * (1 - sure)).mean() for sure, _ in both]))
        named = brier.first._asdict()
        return [*made, told | {"metric": "brier"} | named | {"baseline": perfect}]


def split(prompts: PromptSet, shares: Sequence[float], seed: int) -> list[PromptSet]:
    """The prompts at random in parts of these shares, each named as the whole."""
    if len(prompts) < LEAST:
        raise WorkbenchError(
            f"{prompts.name} has {len(prompts)} prompts; at least {LEAST} are needed, to choose on "
            "some and report on others."
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    ends = np.round(np.cumsum(shares) / sum(shares) * len(prompts)).astype(int)
    parts = np.split(order, ends[:-1])
    return [prompts.at(sorted(part)) for part in parts]
