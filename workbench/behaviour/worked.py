"""Prompts with worked steps: their parts, and one side's answers after steps that were tampered
with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.tasks.batching import encode
from workbench.tasks.decoding import written
from workbench.tasks.prompts import Prompt, PromptSet

Reword = Callable[[str], str]
Strings = NDArray[np.str_]


@dataclass(frozen=True)
class Worked:
    """One prompt in its parts; joined by `between` they are its text."""

    question: str
    steps: tuple[str, ...]
    cue: str

    def text(self, between: str, steps: Sequence[str]) -> str:
        """The prompt with these steps."""
        return between.join([self.question, *steps, self.cue])


def worked(prompt: Prompt, between: str) -> Worked:
    """The parts of a prompt: the first is the question, the last the cue, the steps stand between.
    Raises WorkbenchError where there is no step."""
    parts = prompt.prompt.split(between)
    if len(parts) < 3:
        raise WorkbenchError(
            f"Expected a question, steps and a cue separated by {between!r}, but "
            f"prompt {prompt.id!r} has {len(parts)} such parts; give the text between "
            "steps (--between)."
        )
    return Worked(parts[0], tuple(parts[1:-1]), parts[-1])


def kept_of(share: float, one: Worked) -> int:
    """How many steps are the first share of them; only 1 keeps all."""
    return math.floor(share * len(one.steps) + 1e-9)


def filled(filler: str) -> Reword:
    """A step -> as many fillers as it has words."""
    return lambda step: " ".join([filler] * max(1, len(step.split())))


def targets(words: Any, prompts: PromptSet) -> list[list[int]]:
    """The tokens of each answer."""
    coded = (encode(words, prompt) for prompt in prompts)
    return [one.ids[one.start :] for one in coded]


@dataclass(frozen=True)
class Asker:
    """One side, asked for its greedy answers. model: called as transformers' causal models are."""

    model: Any
    words: Any
    prompts: PromptSet
    between: str
    batch_size: int

    def read(
        self, parts: Sequence[Worked], ways: Mapping[str, Reword | None], marks: Sequence[float],
        bar: Any | None = None,
    ) -> dict[str, Strings]:  # fmt: skip
        """way -> (shares, prompts) answers, the first share of the steps left as it is."""
        found = {}
        for way, reword in ways.items():
            said = []
            for share in marks:
                asked = []
                for one in parts:
                    kept = kept_of(share, one)
                    rest = [] if reword is None else map(reword, one.steps[kept:])
                    asked.append(one.text(self.between, [*one.steps[:kept], *rest]))
                said.append(self.answers(asked))
                if bar is not None:
                    bar.update()
            found[way] = np.array(said)
        return found

    def answers(self, asked: Sequence[str]) -> list[str]:
        """The greedy answers, each of as many tokens as its target has."""
        given = [self.words(text)["input_ids"] for text in asked]
        sizes = [len(ids) for ids in targets(self.words, self.prompts)]
        stop = self.words.eos_token_id
        said = written([self.model], given, sizes, stop=stop, batch_size=self.batch_size)
        return [self.words.decode(ids) for ids in said]

    def own(
        self, parts: Sequence[Worked], tokens: int, kept: Sequence[Sequence[str]] | None = None
    ) -> list[Worked]:
        """The same questions and cues, with the steps that this side writes itself, at most so many
        tokens up to the cue. kept: steps of each that stand before those."""
        first = [()] * len(parts) if kept is None else kept
        given = [
            self.words(self.between.join([one.question, *steps]) + self.between)["input_ids"]
            for one, steps in zip(parts, first, strict=True)
        ]
        stop = self.words.eos_token_id
        said = written([self.model], given, tokens, stop=stop, batch_size=self.batch_size)
        found = []
        for one, steps, ids in zip(parts, first, said, strict=True):
            text = self.words.decode(ids)
            text = text.split(one.cue)[0] if one.cue.strip() else text
            more = [step for step in text.split(self.between) if step.strip()]
            found.append(Worked(one.question, (*steps, *more) or ("",), one.cue))
        return found

    def regrown(
        self, parts: Sequence[Worked], tokens: int, marks: Sequence[float], wrong: Reword | None
    ) -> Strings:
        """(shares, prompts) answers where the first share of the steps is left as it is, the next
        step made wrong where `wrong` says how, and this side writes the rest itself."""
        said = []
        for share in marks:
            begun = []
            for one in parts:
                kept = list(one.steps[: kept_of(share, one)])
                if wrong is not None and len(kept) < len(one.steps):
                    kept.append(wrong(one.steps[len(kept)]))
                begun.append(kept)
            made = parts if share == 1 else self.own(parts, tokens, begun)
            said.append(self.answers([one.text(self.between, one.steps) for one in made]))
        return np.array(said)
