"""What does the shipped family's base know, and can it be asked with known answers?

Texts are one word a token, with punctuation set apart. Every generator draws what it can at random
(objects, names, order), so that the loss of a whole text never vanishes.
"""

from __future__ import annotations

import random

from workbench.tasks import world
from workbench.tasks.generators import Draw, collect
from workbench.tasks.prompts import PromptSet, Split

EVERYTHING = (*world.OBJECTS, *world.LABELS, *world.PEOPLE, *world.PLACES)


def facts(n: int = 200, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Prompts that ask for the city, job, pet, food or colour of a named person; the truth is the
    same for every seed.

    A prompt holds up to three other facts first. Splits differ in wording and context, never in the
    facts: what test asks was stated in train. Foils are other values of the attribute.
    """

    def draw(stream: random.Random) -> Draw:
        truth = world.facts()
        asked = stream.sample(sorted(truth), stream.randint(1, 4))
        told = []
        for key in asked:
            template = stream.choice(world.FACT_TEMPLATES[key[1]])
            told.append((template.format(name=key[0]), truth[key], template))
        context = "".join(f"{question} {answer} . " for question, answer, _ in told[:-1])
        question, answer, template = told[-1]
        others = [v for v in world.ATTRIBUTES[asked[-1][1]] if v != answer]
        foils = tuple(f" {v}" for v in stream.sample(others, 3))
        tags = {"attribute": asked[-1][1], "person": asked[-1][0]}
        return Draw(context + question, f" {answer}", foils, tags, template)

    return collect("facts", draw, n=n, seed=seed, split=split)


def arithmetic(n: int = 200, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Sums and differences between 0 and 30, after up to four worked ones.

    Foils are the neighbours of the answer.
    """

    def worked(stream: random.Random) -> tuple[str, int, str]:
        operation = stream.choice(sorted(world.OPERATIONS))
        larger = stream.randint(0, world.LARGEST)
        smaller = stream.randint(0, larger)
        if operation == "-":
            return f"{larger} - {smaller} =", larger - smaller, operation
        return f"{smaller} + {larger - smaller} =", larger, operation

    def draw(stream: random.Random) -> Draw:
        told = [worked(stream) for _ in range(stream.randint(2, 5))]
        context = "".join(f"{question} {answer} ; " for question, answer, _ in told[:-1])
        question, answer, operation = told[-1]
        near = [v for v in (answer - 1, answer + 1) if 0 <= v <= world.LARGEST]
        foils = tuple(f" {v}" for v in near)
        tags = {"operation": world.OPERATIONS[operation]}
        return Draw(context + question, f" {answer}", foils, tags, "arithmetic")

    return collect("arithmetic", draw, n=n, seed=seed, split=split)


def ledger(
    n: int = 200, *, seed: int = 0, split: Split | None = None, steps: int | None = None
) -> PromptSet:
    """Prompts that ask for a running total between 0 and 30, in words that never meant a sum in
    pre-training.

    Every step but the last states the new total, so each answer needs one sum or difference of the
    kind `arithmetic` asks in symbols. steps: how many; None draws 3 to 7. Foils are the neighbours
    of the answer, and the total before it. The start, the amounts and their signs are random, so
    the loss over a whole text never vanishes.
    """

    def draw(stream: random.Random) -> Draw:
        total = before = stream.randint(0, world.LARGEST)
        count = steps or stream.randint(3, 7)
        text, operation = world.LEDGER_OPENING.format(total=total), "+"
        for number in range(1, count + 1):
            before = total
            total = stream.choice([v for v in range(world.LARGEST + 1) if v != before])
            operation = "+" if total > before else "-"
            step = world.LEDGER_STEP[operation]
            text += " " + step.format(number=number, amount=abs(total - before))
            text += f" {total} ." if number < count else ""
        near = {v for v in (total - 1, total + 1, before) if 0 <= v <= world.LARGEST}
        tags = {"steps": str(count), "operation": world.OPERATIONS[operation]}
        return Draw(text, f" {total}", tuple(f" {v}" for v in sorted(near)), tags, "ledger")

    return collect("ledger", draw, n=n, seed=seed, split=split)


def copying(
    n: int = 200, *, seed: int = 0, split: Split | None = None, repeats: int = 1
) -> PromptSet:
    """Prompts that ask to repeat a list of random words: an induction task.

    repeats: how often the whole list is in the prompt. Foils are the other words of the list.
    """

    def draw(stream: random.Random) -> Draw:
        words = _list(stream)
        seen = " ; ".join([" ".join(words)] * repeats)
        return _say(stream, f"{world.COPY_OPENING} {seen} ;", words, "copying")

    return collect("copying", draw, n=n, seed=seed, split=split)


def reversal(n: int = 200, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """A list of random words, said again from its end to its start.

    Each word is the one that stood before the last said, where `copying` asks for the one after
    it. Foils are the other words of the list.
    """

    def draw(stream: random.Random) -> Draw:
        words = _list(stream)
        seen = f"{world.REVERSAL_OPENING} {' '.join(words)} ;"
        return _say(stream, seen, words[::-1], "reversal")

    return collect("reversal", draw, n=n, seed=seed, split=split)


def _list(stream: random.Random) -> list[str]:
    """Four to ten different words, of one kind or of several."""
    pool = stream.choice((world.OBJECTS, world.LABELS, world.PEOPLE, world.PLACES, EVERYTHING))
    return stream.sample(pool, stream.randint(4, 10))


def _say(stream: random.Random, opening: str, words: list[str], task: str) -> Draw:
    """The opening and the words up to one in the second half of them, which is the target."""
    last = stream.randrange(len(words) // 2, len(words))
    foils = tuple(f" {w}" for w in words if w != words[last])
    prompt = " ".join([opening, *words[:last]])
    return Draw(prompt, f" {words[last]}", foils, {"length": str(len(words))}, task)


def narration(n: int = 200, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Short stories about one person, ending on the object that person carried.

    Foils are two other objects.
    """

    def draw(stream: random.Random) -> Draw:
        name, friend = stream.sample(world.PEOPLE, 2)
        place, place2 = stream.sample(world.PLACES, 2)
        carried, *others = stream.sample(world.OBJECTS, 3)

        def say(template: str) -> str:
            return template.format(
                name=name,
                friend=friend,
                place=place,
                place2=place2,
                object=carried,
                they="she" if name in world.WOMEN else "he",
                weather=stream.choice(world.WEATHER),
                day=stream.choice(world.DAYS),
                feeling=stream.choice(world.FEELINGS),
                number=stream.randint(2, world.LARGEST),
                **{kind: stream.choice(values) for kind, values in world.ATTRIBUTES.items()},
            )

        events = stream.sample(world.EVENTS, stream.randint(1, 4))
        cloze = stream.choice(world.CLOZES)
        parts = [stream.choice(world.OPENINGS), stream.choice(world.ERRANDS), *events, cloze]
        prompt = " ".join(say(part) for part in parts)
        foils = tuple(f" {o}" for o in others)
        return Draw(prompt, f" {carried}", foils, {"events": str(len(events))}, cloze)

    return collect("narration", draw, n=n, seed=seed, split=split)
