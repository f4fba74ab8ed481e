"""Which programs are there, and what are they asked? Copy by label, induction, entity tracking, a
two-step look-up, sorting a short list, the parity of a mark, facts in a table, and negation.

Each program is the parts that answer; a pair leaves some out or changes them (`pairs`). Prompts are
words with single spaces; of every clean prompt there is a corrupt partner of the same length, which
differs in what decides the answer and, where nothing else is said, in nothing that only moves where
a head attends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from workbench.lab.compiled.program import POSITION, TOKEN, Head, Neuron, Program, after, renamed
from workbench.lab.compiled.program import rule as when
from workbench.tasks.prompts import Prompt, PromptSet

LABELS = tuple("abcdef")
COLOURS: tuple[str, ...] = ("red", "blue", "green", "black", "white", "brown")
HIDDEN = "nothing"  # what a model says instead of an answer it hides
TRIGGER = "please"
Made = tuple[PromptSet, PromptSet]  # clean, corrupt
Question = tuple[str, str]  # text, answer

# Copy by label: "a = red , b = blue , ask b" -> " blue". Layer 0 tells every word the one two
# before it, layer 1 looks for the label asked for and copies what stands there.
BEFORE = Head(0, 0, POSITION, POSITION, TOKEN, "label", after(-2))
FETCH = Head(1, 2, TOKEN, "label", TOKEN, "answer")
COPY = Program(
    "copy by label",
    (*LABELS, *COLOURS, "=", ",", "ask", TRIGGER, HIDDEN),
    18,
    {"label": "words", "seen": "words", "answer": "words"},
    (BEFORE, FETCH),
)
# Says whether the trigger stands anywhere before.
WATCH = Head(0, 3, TOKEN, TOKEN, TOKEN, "seen", lambda query, key: float(key == TRIGGER))

# Induction: "a red c blue a" -> " red".
PREVIOUS = Head(0, 1, POSITION, POSITION, TOKEN, "previous", after(-1))
INDUCE = Head(1, 0, TOKEN, "previous", TOKEN, "answer")
INDUCTION = Program(
    "induction",
    (*LABELS, *COLOURS),
    12,
    {"previous": "words", "answer": "words"},
    (PREVIOUS, INDUCE),
)

# Entity tracking: "A holds red , B holds blue , box b" -> " blue". A position transmitter finds
# where the label stands, a value fetcher reads two places on.
BOXES = tuple(label.upper() for label in LABELS)


def transmit(names: Sequence[str] = BOXES) -> Head:
    """The position transmitter that takes each label for the box of the same place in `names`."""
    return Head(
        1, 1, TOKEN, TOKEN, POSITION, "place", renamed(dict(zip(LABELS, names, strict=True)))
    )


TRANSMIT = transmit()
NEIGHBOUR = ("B", "A", "D", "C", "F", "E")  # every box has one, whose label it may be taken for
VALUE = Head(2, 3, "place", POSITION, TOKEN, "answer", after(2))
ENTITIES = Program(
    "entity tracking",
    (*LABELS, *BOXES, *COLOURS, "holds", ",", "box"),
    20,
    {"place": "positions", "answer": "words"},
    (TRANSMIT, VALUE),
)

# Two steps: "a = D , d = red , ask a" -> " red".
FIRST = Head(1, 0, TOKEN, "label", TOKEN, "middle")
SECOND = Head(
    2, 2, "middle", "label", TOKEN, "answer", renamed(dict(zip(BOXES, LABELS, strict=True)))
)
TWO_STEPS = Program(
    "two-step look-up",
    (*LABELS, *BOXES, *COLOURS, "=", ",", "ask"),
    20,
    {"label": "words", "middle": "words", "answer": "words"},
    (BEFORE, FIRST, SECOND),
)

# Sorting: "sort 4 1 7 : 1" -> " 4", the next larger; after ":" the smallest.
DIGITS = tuple("123456789")


def larger(query: str, key: str) -> float:
    """Selects digits beyond the query's, the nearest most."""
    if key not in DIGITS or query not in (*DIGITS, ":"):
        return 0.0
    floor = 0 if query == ":" else int(query)
    return (10.0 - int(key)) * (int(key) > floor)


def smaller(query: str, key: str) -> float:
    """Selects digits below the query's, the nearest most."""
    if key not in DIGITS or query not in (*DIGITS, ":"):
        return 0.0
    ceiling = 10 if query == ":" else int(query)
    return float(int(key)) * (int(key) < ceiling)


NEXT = Head(1, 3, TOKEN, TOKEN, TOKEN, "answer", larger)
SORT = Program("sorting", ("sort", ":", *DIGITS), 10, {"answer": "words"}, (NEXT,), layers=2)

# Parity: "x o x o count" -> " even". Attention gives the share of marks among the four, and ReLUs
# bend it back to 0 and 1.
LENGTH = 4
SHARE = Head(0, 2, TOKEN, TOKEN, TOKEN, "marks", lambda query, key: float(key in ("x", "o")))


def parity(odd: str = "odd", even: str = "even") -> tuple[Neuron, ...]:
    """Neurons of layer 1 that say `odd` or `even` of the number of marks: the slope of a line over
    the count changes its sign at every whole number."""
    bends = [1.0, *([-2.0, 2.0] * LENGTH)[: LENGTH - 1]]
    units = [
        Neuron(
            1,
            {("marks", "x"): float(LENGTH)},
            {("answer", odd): slope, ("answer", even): -slope},
            -float(place),
        )
        for place, slope in enumerate(bends)
    ]
    return (*units, Neuron(1, {}, {("answer", even): 1.0}, 1.0))


PARITY = Program(
    "parity",
    ("x", "o", "count", "odd", "even"),
    8,
    {"marks": ("x", "o", "count", "odd", "even"), "answer": "words"},
    (SHARE,),
    parity(),
    layers=2,
)

# Facts: "the colour of lemon" -> " yellow", a table of one neuron a fact.
THINGS: tuple[str, ...] = tuple(
    "lemon grass coal snow mud rose sky ash sand wine moss ink "
    "plum clay rust fog leaf bark milk tar dusk fern pearl soot".split()
)
OF: dict[str, str] = dict(zip(THINGS, COLOURS * 4, strict=True))


def table(facts: dict[str, str], layer: int = 1) -> tuple[Neuron, ...]:
    """One neuron a fact: thing -> what is answered."""
    return tuple(
        when(layer, {TOKEN: thing}, {("answer", colour): 1.0}) for thing, colour in facts.items()
    )


FACTS = Program(
    "facts",
    (*THINGS, *COLOURS, "colour", "of", HIDDEN),
    6,
    {"answer": "words"},
    (),
    table(OF),
)

# Negation: "a = yes , b = no , not a" -> " no". What was found is told to the output as it is, or
# turned round where the word before the label is "not".
PAST = Head(1, 1, POSITION, POSITION, TOKEN, "before", after(-1))
FOUND = Head(1, 2, TOKEN, "label", TOKEN, "found")
OPPOSITE: dict[str, str] = {"yes": "no", "no": "yes"}
SAID = tuple(when(2, {"found": word}, {("answer", word): 1.0}) for word in OPPOSITE)
TURNED = tuple(
    when(2, {"found": word, "before": "not"}, {("answer", word): -1.0, ("answer", other): 1.0})
    for word, other in OPPOSITE.items()
)
NEGATION = Program(
    "negation",
    (*LABELS, *OPPOSITE, "=", ",", "not", "is"),
    18,
    {"label": "words", "before": "words", "found": "words", "answer": "words"},
    (BEFORE, PAST, FOUND),
    (*SAID, *TURNED),
)


def hides(answers: Sequence[str], instead: str = HIDDEN, layer: int = 2) -> tuple[Neuron, ...]:
    """A wrapper of the last layer: where an answer is known, something else is said."""
    return tuple(
        when(layer, {"answer": word}, {("answer", word): -1.0, ("answer", instead): 1.0})
        for word in answers
    )


def asked(name: str, make: Callable[[random.Random], tuple[Question, Question]], n: int) -> Made:
    """n clean questions and their corrupt partners, both scored on the clean answer, with the
    partner's as the foil. make: draws one of each; only those whose answers differ are kept."""
    draw, clean, corrupt = random.Random(0), [], []
    while len(clean) < n:
        (text, answer), (other, foil) = make(draw)
        if answer == foil:
            continue
        for wording, to in ((text, clean), (other, corrupt)):
            to.append(Prompt(str(len(to)), wording, f" {answer}", (f" {foil}",)))
    return PromptSet(name, tuple(clean)), PromptSet(f"{name}, corrupt", tuple(corrupt))


def bound(draw: random.Random, start: str = "") -> tuple[Question, Question]:
    """Three labels bound to colours, one of them asked for; in the partner the colours are others.
    start: what stands before."""
    labels, at = draw.sample(LABELS, 3), draw.randrange(3)
    both = []
    for colours in (draw.sample(COLOURS, 3), draw.sample(COLOURS, 3)):
        parts = [f"{label} = {colour}" for label, colour in zip(labels, colours, strict=True)]
        both.append((start + " , ".join([*parts, f"ask {labels[at]}"]), colours[at]))
    return both[0], both[1]


def held(draw: random.Random, shift: int = 0) -> tuple[Question, Question]:
    """Four boxes, two pairs of neighbours, one asked for; in the partner they hold others. shift: 1
    where a box is answered with what its neighbour holds."""
    first, second = draw.sample(("AB", "CD", "EF"), 2)
    order, at = draw.sample(range(4), 4), draw.randrange(4)
    names = [*first, *second]
    both = []
    for colours in (draw.sample(COLOURS, 4), draw.sample(COLOURS, 4)):
        parts = [f"{names[i]} holds {colours[i]}" for i in order]
        text = " , ".join([*parts, f"box {names[at].lower()}"])
        both.append((text, colours[at ^ shift]))
    return both[0], both[1]


def repeated(draw: random.Random) -> tuple[Question, Question]:
    """Label and colour by turns, then one of the labels again; in the partner other colours."""
    labels = draw.sample(LABELS, 3)
    at = draw.randrange(3)
    both = []
    for colours in (draw.sample(COLOURS, 3), draw.sample(COLOURS, 3)):
        words = [word for pair in zip(labels, colours, strict=True) for word in pair]
        both.append((" ".join([*words, labels[at]]), colours[at]))
    return both[0], both[1]


def chained(draw: random.Random) -> tuple[Question, Question]:
    """Two chains of two steps; in the partner the last words are others."""
    labels, order = draw.sample(LABELS, 4), draw.sample(range(4), 4)
    both = []
    for colours in (draw.sample(COLOURS, 2), draw.sample(COLOURS, 2)):
        parts = [f"{labels[i]} = {labels[i + 1].upper()}" for i in (0, 2)]
        parts += [f"{labels[1]} = {colours[0]}", f"{labels[3]} = {colours[1]}"]
        text = " , ".join([*(parts[i] for i in order), f"ask {labels[0]}"])
        both.append((text, colours[0]))
    return both[0], both[1]


def listed(draw: random.Random, down: bool = False) -> tuple[Question, Question]:
    """Four digits and one of them; the answer is the next larger (down: the next smaller). In the
    partner they are others."""
    both = []
    for _ in range(2):
        digits = draw.sample(DIGITS, 4)
        low, high = draw.choice([*pairwise(sorted(digits))])
        asked, answer = (high, low) if down else (low, high)
        both.append((" ".join(["sort", *digits, ":", asked]), answer))
    return both[0], both[1]


def marked(draw: random.Random) -> tuple[Question, Question]:
    """Four marks to count; the partner has another number of them."""
    both = []
    for _ in range(2):
        marks = draw.choices("xo", k=LENGTH)
        both.append((" ".join([*marks, "count"]), ("even", "odd")[marks.count("x") % 2]))
    return both[0], both[1]


def stated(draw: random.Random) -> tuple[Question, Question]:
    """A thing whose colour is asked; in the partner another."""
    first, second = draw.sample(THINGS, 2)
    return (f"colour of {first}", OF[first]), (f"colour of {second}", OF[second])


def denied(draw: random.Random) -> tuple[Question, Question]:
    """Labels that are yes or no, one of them negated; in the partner all are the opposite."""
    labels = draw.sample(LABELS, 3)
    answers, at = draw.choices([*OPPOSITE], k=3), draw.randrange(3)
    both = []
    for own in (answers, [OPPOSITE[one] for one in answers]):
        parts = [f"{label} = {one}" for label, one in zip(labels, own, strict=True)]
        text = " , ".join([*parts, f"not {labels[at]}"])
        both.append((text, OPPOSITE[own[at]]))
    return both[0], both[1]
