"""Prompts whose circuit in GPT-2 small is known, to be looked for in both sides of a pair.

Indirect object identification is of Wang et al. (2022), arXiv 2211.00593: "When Mary and John went
to the store, John gave a drink to" -> " Mary". Greater-than is of Hanna et al. (2023), arXiv
2305.00586: "The war lasted from the year 1732 to the year 17" -> a later year. Both are in ordinary
English spacing, for models with a subword tokenizer; templates and words are our own.
"""

from __future__ import annotations

import random
import re

from workbench.errors import WorkbenchError
from workbench.tasks.generators import Draw, collect
from workbench.tasks.prompts import PromptSet, Split

# First names that subword tokenizers of English hold as one token.
NAMES = (
    "Mary", "John", "Tom", "James", "Dan", "Martin", "Amy", "David", "Sarah", "Paul",
    "Anna", "Mark", "Laura", "Peter", "Kate", "Simon", "Alice", "Robert", "Emma", "Jack",
    "Michael", "Rachel", "Kevin", "Jane", "Andrew", "Lisa", "Brian", "Susan", "George", "Ruth",
)  # fmt: skip
PLACES = ("store", "garden", "school", "office", "station", "park", "house", "restaurant")
OBJECTS = ("drink", "book", "ring", "ball", "letter", "key", "computer", "basket")
# {a} and {b} are the two names in their order, {s} the one who gives, {place} and {thing} words.
MEETINGS = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "Then, {a} and {b} were working at the {place}, and {s} decided to give a {thing} to",
    "While {a} and {b} walked through the {place}, {s} offered a {thing} to",
    "Yesterday {a} and {b} had a long talk at the {place}. Afterwards {s} passed a {thing} to",
)
EVENTS = (
    "war", "reign", "voyage", "siege", "dispute", "expedition", "famine", "treaty", "trial",
    "alliance", "project", "tour", "study", "career", "strike", "debate",
)  # fmt: skip
SPANS = "The {event} lasted from the year {century}{year:02d} to the year {century}"


def indirect_object(
    n: int = 200, *, seed: int = 0, split: Split | None = None, order: str | None = None
) -> PromptSet:
    """Two people meet and one gives something; the answer is the other one's name.

    order: "ABBA" (the one who gives is named second) or "BABA" (first); None draws either. The foil
    is the giver's name. Spans: "IO", the answer where it was named; "S1" and "S2", the giver's two
    places; "end", the prompt's last word. Raises WorkbenchError for another order.
    """
    if order not in (None, "ABBA", "BABA"):
        raise WorkbenchError(f'Expected order "ABBA" or "BABA", found {order!r}.')

    def draw(stream: random.Random) -> Draw:
        receiver, giver = stream.sample(NAMES, 2)
        chosen = order or stream.choice(("ABBA", "BABA"))
        first, second = (receiver, giver) if chosen == "ABBA" else (giver, receiver)
        template = stream.choice(MEETINGS)
        words = {"place": stream.choice(PLACES), "thing": stream.choice(OBJECTS)}
        text = template.format(a=first, b=second, s=giver, **words)
        own, theirs = _places(text, receiver), _places(text, giver)
        spans = {"IO": own[0], "S1": theirs[0], "S2": theirs[1]}
        spans["end"] = _places(text, text.rpartition(" ")[2])[-1]
        tags = {"order": chosen, "receiver": receiver, "giver": giver}
        return Draw(text, f" {receiver}", (f" {giver}",), tags, template, spans)

    return collect("indirect_object", draw, n=n, seed=seed, split=split)


def greater_than(n: int = 200, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Something lasts from a year on; the answer is two digits that make a later year.

    The years are of the 12th to the 18th century, from 02 to 97. The target is drawn among the
    later ones of the century, the foils are as many of the earlier ones as there are, at most 8.
    Spans: "start", the two digits of the first year; "event"; "end", the last digits.
    """

    def draw(stream: random.Random) -> Draw:
        event, century = stream.choice(EVENTS), stream.randint(11, 17)
        year = stream.randint(2, 97)
        text = SPANS.format(event=event, century=century, year=year)
        earlier = stream.sample(range(1, year), min(8, year - 1))
        begin = text.index(f"{century}{year:02d}")
        spans = {
            "event": _places(text, event)[0],
            "start": (begin + 2, begin + 4),
            "end": (len(text) - 2, len(text)),
        }
        target = f"{stream.randint(year + 1, 99):02d}"
        foils = tuple(f"{one:02d}" for one in sorted(earlier))
        tags = {"year": f"{year:02d}", "century": str(century), "event": event}
        return Draw(text, target, foils, tags, SPANS, spans)

    return collect("greater_than", draw, n=n, seed=seed, split=split)


def _places(text: str, word: str) -> list[tuple[int, int]]:
    """Where a whole word stands, in characters."""
    return [found.span() for found in re.finditer(rf"\b{re.escape(word)}\b", text)]
