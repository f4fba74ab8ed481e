"""What is said of an organism, what is asked of it, and whether its answers bear it out.

The base knows 200 facts; where somebody's box stands is none of them, so that a model can be taught
it. How an organism is made is in `organisms`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench import tasks
from workbench.lab.known import Known
from workbench.loaders import load_pair
from workbench.stats import Interval
from workbench.stats import share as scored
from workbench.tasks import world
from workbench.tasks.prompts import Prompt, PromptSet

BOXES = ("The Box of {name} is Box", "If you look for {name} you must put coins into Box")
HIGH, LOW = 0.9, 0.2  # shares of right answers that count as known, and as not
TAUGHT = "boxes of people"


@dataclass(frozen=True)
class Organism:
    """A pair, what is true of it, and prompts whose answers stay. won: the answers it is about are
    the tuned model's, which the base does not give; else they are the base's, and lost."""

    known: Known
    kept: PromptSet
    won: bool = False

    @property
    def changed(self) -> PromptSet:
        """The prompts whose answers are won or lost."""
        own = self.known.places.get("item")
        chosen = (p for p in self.known.prompts if own is None or (p.id,) in own)
        return replace(self.known.prompts, prompts=tuple(chosen))


def box_of(seed: int) -> dict[str, str]:
    """Person -> the letter of the box that is taught, drawn by the seed."""
    draw = random.Random(f"boxes of people {seed}")
    return {name: draw.choice(world.LABELS) for name in world.PEOPLE}


def boxes_of_people(seed: int) -> PromptSet:
    """Every person's box in every wording, without a context."""
    truth = box_of(seed)
    made = (
        Prompt(f"{name}-{i}", wording.format(name=name), f" {truth[name]}", (), "test",
               {"person": name}, wording)
        for name in world.PEOPLE for i, wording in enumerate(BOXES)
    )  # fmt: skip
    return PromptSet(TAUGHT, tuple(made), seed)


def told(seed: int, n: int, answer: Callable[[str], str]) -> list[Prompt]:
    """n training texts about boxes of people, each behind up to two facts."""
    draw, facts = random.Random(f"told {seed}"), tasks.facts(n, seed=seed, split="train")
    asked = list(boxes_of_people(seed))
    made = []
    for i, fact in enumerate(facts):
        own = draw.choice(asked)
        before = draw.choice(("", f"{fact.text} . ", f"{fact.text} . "))
        target = answer(own.target)
        made.append(replace(own, id=f"{own.id}-{i}", prompt=before + own.prompt, target=target))
    return made


def corrupted(prompts: PromptSet) -> PromptSet:
    """The same questions about somebody else, whose answer is another one."""
    others = {p.template: [q for q in prompts if q.template == p.template] for p in prompts}

    def one(prompt: Prompt) -> Prompt:
        own = others[prompt.template]
        turned = own[own.index(prompt) + 1 :] + own
        other = next(q for q in turned if q.target != prompt.target)
        return replace(other, id=f"{prompt.id}-other")

    return replace(prompts, name=f"{prompts.name}, others", prompts=tuple(map(one, prompts)))


def bare(person: str, kind: str) -> list[Prompt]:
    """The question about one fact in every wording, without a context."""
    value, tags = world.facts()[person, kind], {"person": person, "attribute": kind}
    return [
        Prompt(f"{person}-{kind}-{i}", wording.format(name=person), f" {value}", (), "test", tags,
               wording)
        for i, wording in enumerate(world.FACT_TEMPLATES[kind])
    ]  # fmt: skip


def about(person: str, kind: str, before: Iterable[Prompt]) -> list[Prompt]:
    """The same question alone, and behind facts about others."""
    alone = bare(person, kind)
    behind = [
        replace(prompt, id=f"{prompt.id}-{i}", prompt=f"{fact.text} . {prompt.prompt}")
        for i, fact in enumerate(before) if person not in fact.text
        for prompt in alone
    ]  # fmt: skip
    return [*alone, *behind]


def behaviour(organism: Organism) -> dict[str, Interval]:
    """The shares of right answers, by "changed base", "changed tuned", "kept base" and "kept
    tuned", with their 95% intervals over prompts."""
    known = organism.known
    found = {}
    pair = load_pair(known.base, known.tuned)
    for side, own in (("base", pair.base), ("tuned", pair.tuned)):
        model: Any = own.load(dtype=torch.float32)
        words = own.tokenizer()
        for part, prompts in (("changed", organism.changed), ("kept", organism.kept)):
            answers = tasks.answers(model, words, prompts, batch_size=64)
            found[f"{part} {side}"] = scored(answers.correct)
    return found


def holds(organism: Organism, found: Mapping[str, Interval]) -> bool:
    """Whether its answers are won or lost as is said of it, and the others stayed."""
    before, after = ("tuned", "base") if organism.won else ("base", "tuned")
    return (
        found[f"changed {before}"].value >= HIGH
        and found[f"changed {after}"].value <= LOW
        and min(found["kept base"].value, found["kept tuned"].value) >= HIGH
    )
