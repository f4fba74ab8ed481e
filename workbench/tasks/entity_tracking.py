"""Can a model say what is in a box, as stated (boxes) or after several changes (moves)?

The box statements follow Kim & Schuster (2023), arXiv 2305.02363, in the form of Prakash et al.
(2024), arXiv 2402.14811.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from workbench.tasks import world
from workbench.tasks.generators import Draw, collect
from workbench.tasks.prompts import Prompt, PromptSet, Split


def boxes(
    n: int = 200,
    *,
    seed: int = 0,
    split: Split | None = None,
    count: int | None = None,
    questions: int = 1,
    order: str | None = None,
    again: bool = False,
    filler: float | None = 1.0,
) -> PromptSet:
    """Prompts that ask what a box holds right after it was stated; one word is one token, with
    separate punctuation.

    count: how many boxes a prompt has; None draws 3 to 7. questions: how many boxes are asked for;
    all answers but the last are in the prompt. order: "object first" or "label first" (see
    world.BOX_STATEMENTS); None draws either. Foils are the other boxes' objects. Spans, as in
    `spans`: "query box", "correct label" and "correct object"; then "answer 1", "answer 2" and so
    on, the answers that are in the prompt.

    Two easier forms, to learn from where the full wording is too hard a start. again: a box may be
    asked for twice, so that no answer follows from which boxes are left. filler: the chance of each
    word of the wording other than label and object to stay ("apple F , book K . F" at 0), drawn
    once a prompt; None draws the chance as well.
    """

    def draw(stream: random.Random) -> Draw:
        size = count or stream.randint(3, 7)
        labels = stream.sample(world.LABELS, size)
        objects = stream.sample(world.OBJECTS, size)
        inside: dict[str, str] = dict(zip(labels, objects, strict=True))
        chosen = order or stream.choice(list(world.BOX_STATEMENTS))
        wording = world.BOX_STATEMENTS[chosen], world.BOX_QUESTION
        if filler != 1.0:
            chance = stream.random() if filler is None else filler
            wording = thinned(stream, wording[0], chance), thinned(stream, wording[1], chance)
        if again:
            asked = stream.choices(labels, k=questions)
        else:
            asked = stream.sample(labels, min(questions, size))
        return stated(inside, asked, chosen, wording)

    return collect("boxes", draw, n=n, seed=seed, split=split)


def boxes_prompts(
    n: int = 200, seed: int = 0, *, split: Split | None = None, count: int | None = 7
) -> PromptSet:
    """`boxes` in ordinary English spacing, for models with a subword tokenizer such as SmolLM2.

    The spans are those of `boxes`.
    """
    drawn = boxes(n, seed=seed, split=split, count=count, order="object first")
    return PromptSet("boxes_prompts", tuple(map(natural, drawn)), seed)


def stated(
    inside: Mapping[str, str],
    asked: Sequence[str],
    order: str,
    wording: tuple[str, str] | None = None,
) -> Draw:
    """The prompt of `boxes` that states label -> object in turn and then asks for these labels.

    wording: the templates of a statement and of a question; None takes the full ones of `order`.
    """
    statement, question = wording or (world.BOX_STATEMENTS[order], world.BOX_QUESTION)
    opening = " , ".join(statement.format(object=o, label=x) for x, o in inside.items())
    # An object's name has no capital in this world's vocabulary.
    if opening.startswith("the "):
        opening = "The " + opening.removeprefix("the ")
    tags = {"boxes": str(len(inside)), "order": order}
    made = _ask(f"{opening} .", asked, inside, tags, "boxes", question=question)
    label = asked[-1]
    own = spans(made.prompt, asked=label, label=label, thing=inside[label])
    return made._replace(spans=own | dict(made.spans))


def thinned(stream: random.Random, template: str, chance: float) -> str:
    """The template with each word that is no name kept by chance."""
    return " ".join(w for w in template.split() if w[0] == "{" or stream.random() < chance)


def spans(text: str, *, asked: str, label: str, thing: str) -> dict[str, tuple[int, int]]:
    """Where the words stand that a box prompt's answer hangs on, in characters.

    "query box": the label in the last question (asked). "correct label", "correct object": that
    label, and the object in its box, where the statement said them (label, thing).
    """
    return {
        "query box": _words(text, asked)[-1],
        "correct label": _words(text, label)[0],
        "correct object": _words(text, thing)[0],
    }


def natural(prompt: Prompt) -> Prompt:
    """A prompt of `boxes` in ordinary English spacing; its id and split stay."""
    text = prompt.prompt.replace(" ,", ",").replace(" .", ".")
    first, last = prompt.spans["query box"]
    label = prompt.prompt[first:last]
    found = spans(text, asked=label, label=label, thing=prompt.target.strip())
    return replace(prompt, prompt=text, template="boxes, natural", spans=found)


def moves(
    n: int = 200,
    *,
    seed: int = 0,
    split: Split | None = None,
    steps: int | None = None,
    questions: int = 1,
) -> PromptSet:
    """Prompts that ask what a box holds after objects were moved, swapped, removed and added, as
    reported in a log.

    steps: how many changes; None draws 1 to 4. questions: as in `boxes`. Only boxes that hold
    something are asked for, three times in four one that was changed. Foils are the other objects.
    The tags say whether the answer differs from the box's first content ("changed").
    """

    def draw(stream: random.Random) -> Draw:
        first = _inventory(stream)
        lines, last, spare = [], dict(first), _spare(stream, first)
        for number in range(1, (steps or stream.randint(1, 4)) + 1):
            lines.append(_change(stream, last, spare, number))
        full = [x for x, o in last.items() if o]
        changed = [x for x in full if last[x] != first[x]]
        stream.shuffle(full)
        if changed and stream.random() < 0.75:
            final = stream.choice(changed)
        else:
            final = full[0]
        asked = [*[x for x in full if x != final][: questions - 1], final]
        holdings = " ; ".join(
            (world.MOVES_HOLDING if o else world.MOVES_EMPTY).format(label=x, object=o)
            for x, o in first.items()
        )
        text = " ".join([world.MOVES_OPENING.format(holdings=holdings), *lines])
        seen = {o for o in (*first.values(), *last.values()) if o}
        tags = {
            "boxes": str(len(first)),
            "steps": str(len(lines)),
            "changed": "yes" if final in changed else "no",
        }
        return _ask(text, asked, {x: last[x] for x in full}, tags, "moves", seen)

    return collect("moves", draw, n=n, seed=seed, split=split)


def _words(text: str, word: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(rf"\b{re.escape(word)}\b", text)]


def _ask(
    text: str,
    asked: Sequence[str],
    inside: Mapping[str, str],
    tags: dict[str, str],
    template: str,
    objects: set[str] | None = None,
    question: str = world.BOX_QUESTION,
) -> Draw:
    """Append the questions; the last one's answer is the target, the others are spans."""
    told = {}
    for number, label in enumerate(asked[:-1], 1):
        text += f" {question.format(label=label)} {inside[label]}"
        told[f"answer {number}"] = (len(text) - len(inside[label]), len(text))
        text += " ."
    answer = inside[asked[-1]]
    foils = tuple(f" {o}" for o in sorted((objects or set(inside.values())) - {answer}))
    prompt = f"{text} {question.format(label=asked[-1])}"
    return Draw(prompt, f" {answer}", foils, tags, template, told)


def _inventory(stream: random.Random) -> dict[str, str]:
    """Label -> object, "" for an empty box; 3 to 5 boxes, at most one of them empty."""
    labels = stream.sample(world.LABELS, stream.randint(3, 5))
    objects = stream.sample(world.OBJECTS, len(labels))
    if stream.random() < 0.5:
        objects[stream.randrange(len(objects))] = ""
    return dict(zip(labels, objects, strict=True))


def _spare(stream: random.Random, inside: dict[str, str]) -> list[str]:
    return stream.sample([o for o in world.OBJECTS if o not in inside.values()], 4)


def _change(stream: random.Random, inside: dict[str, str], spare: list[str], number: int) -> str:
    """Make one possible change to `inside` and return the line of the log that tells it."""
    full = [x for x, o in inside.items() if o]
    empty = [x for x, o in inside.items() if not o]
    kinds = ["swap"]
    if empty:
        kinds += ["move", "move", "put"]
    if len(full) > 2:
        kinds.append("remove")
    kind = stream.choice(kinds)
    label = stream.choice(empty if kind == "put" else full)
    other, moved = "", inside[label]
    if kind == "swap":
        other = stream.choice([x for x in full if x != label])
        inside[label], inside[other] = inside[other], inside[label]
    elif kind == "move":
        other = stream.choice(empty)
        inside[label], inside[other] = "", moved
    elif kind == "remove":
        inside[label] = ""
    else:
        moved = inside[label] = spare.pop()
    return world.MOVES_STEP[kind].format(number=number, object=moved, label=label, other=other)
