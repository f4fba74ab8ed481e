"""Which truths are of several models, of further prompts, or of how sure an answer is?

Siblings that learned the same, the contrary or something else; siblings that forgot more and more,
beside changes whose size says nothing of it; a chain of which a stage overwrites what an earlier
one learned; what lies between two models; an answer that is hidden in one form of the question
alone; worked steps of which one decides; a written text of which one token decides; confidence that
is set by a weight.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from workbench.lab.compiled import programs as of
from workbench.lab.compiled.program import POSITION, TOKEN, Head, Program, after
from workbench.lab.compiled.programs import COLOURS, HIDDEN, OF, THINGS, TRIGGER
from workbench.lab.compiled.spec import (
    ITEMS,
    Spec,
    asked_facts,
    copied,
    with_more,
    without,
)
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Generation

TUNED = "tuned"


def specs() -> list[Spec]:
    return [
        *_siblings(), _graded(), _chain(), _between(), *_forms(), _steps(), _recited(),
        _one_answer(), *_sure(),
    ]  # fmt: skip


def _pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    return [*combinations(sorted(names), 2)]


def _table(facts: Mapping[str, str], strength: Mapping[str, float] | float = 1.0) -> Program:
    """The program of facts with this table, what it adds so strong (of each thing)."""

    def neuron(thing: str, colour: str) -> of.Neuron:
        own = strength[thing] if isinstance(strength, Mapping) else strength
        return of.when(1, {TOKEN: thing}, {("answer", colour): own})

    return replace(of.FACTS, neurons=tuple(neuron(*fact) for fact in facts.items()))


def _named(name: str, facts: Mapping[str, str], things: Sequence[str]) -> PromptSet:
    return replace(asked_facts(facts, things)[0], name=name)


def _rewritten(things: Sequence[str], by: int) -> dict[str, str]:
    """These things with each other's colours, so many further on."""
    told = [OF[thing] for thing in things]
    return dict(zip(things, told[by:] + told[:by], strict=True))


def _siblings() -> list[Spec]:
    """Models of one base that learned the same or not: of facts, and of heads."""
    first, second = THINGS[:3], THINGS[3:6]
    turned, back, other = _rewritten(first, 1), _rewritten(first, 2), _rewritten(second, 1)
    facts = {**OF, **turned}
    stronger = {thing: 1.5 if thing in first else 1.0 for thing in THINGS}
    again = "again"
    moved = replace(of.FETCH, head=0)
    copy = of.asked("copy", of.bound, ITEMS)
    return [
        Spec(
            "facts-siblings", of.FACTS, _table(facts), asked_facts(facts),
            "Two siblings learned the same three facts, one of them more strongly, a third taught "
            "them other answers, and a fourth three facts of other colours.",
            items=first, differing=[],
            more={
                "shared": [(again, TUNED)],
                "conflict": [(again, "against"), ("against", TUNED)],
            },
            among={
                "shared": [(again, TUNED), ("against", "other"), (again, "other"),
                           ("other", TUNED)],
                "conflict": _pairs_of(("against", again, "other", TUNED)),
            },
            siblings={
                again: _table(facts, stronger), "against": _table({**OF, **back}),
                "other": _table({**OF, **other}),
            },
            tasks={
                TUNED: _named("tuned facts", facts, first),
                again: _named("facts again", facts, first),
                "against": _named("facts against", {**OF, **back}, first),
                "other": _named("other facts", {**OF, **other}, second),
            },
        ),
        Spec(
            "copy-siblings", without(of.COPY, of.FETCH), of.COPY, copy,
            "One sibling has the same head, which says twice as much; another has it elsewhere.",
            **copied(of.FETCH.place),
            more={"shared": [(again, TUNED)]},
            among={"shared": _pairs_of((again, "elsewhere", TUNED))},
            siblings={
                again: replace(of.COPY, heads=(of.BEFORE, replace(of.FETCH, strength=2.0))),
                "elsewhere": replace(of.COPY, heads=(of.BEFORE, moved)),
            },
            tasks={name: replace(copy[0], name=f"copy, {name}") for name in
                   (again, "elsewhere", TUNED)},
        ),
    ]  # fmt: skip


# Of each model: how many facts it lost, how many others it says more strongly, and by how much.
# Each lost fact is a direction of its own, so that the rank of the change goes with their number;
# its norm is mostly that of the facts that are stronger, which are answered as before.
GRADED = {
    "first": (2, 9, 4.5), "second": (5, 1, 3.0), "third": (8, 5, 4.5), "fourth": (11, 13, 4.5),
    TUNED: (14, 4, 3.0),
}  # fmt: skip
DIVERGENCE, NORM, RANK = "KL on the task", "relative norm", "effective rank"


def _graded() -> Spec:
    """Each sibling lost more facts than the one before."""

    def member(lost: int, stronger: int, more: float) -> Program:
        kept = {thing: OF[thing] for thing in THINGS[lost:]}
        return _table(kept, dict.fromkeys(THINGS[-stronger:], 1 + more) | dict.fromkeys(
            THINGS[lost : len(THINGS) - stronger], 1.0
        ))  # fmt: skip

    lost, *_ = GRADED[TUNED]
    made = {name: member(*how) for name, how in GRADED.items()}
    return Spec(
        "facts-graded", of.FACTS, made.pop(TUNED), asked_facts(OF),
        "Five siblings lost more and more facts and say some others more strongly, so that the "
        "size of a change does not tell how much was forgotten.",
        items=THINGS[:lost], differing=[],
        more={"measure": [(DIVERGENCE,), (RANK,)], "base": [("fourth",)]},
        among={
            "measure": [(DIVERGENCE,), (NORM,), (RANK,)], "base": [(name,) for name in made],
        },
        siblings=made,
    )  # fmt: skip


def _chain() -> Spec:
    """Stage one learns a third of the facts, the last stage another third, and clears the first."""
    thirds = {"one": THINGS[:8], TUNED: THINGS[8:16], "kept": THINGS[16:]}
    own = {name: {thing: OF[thing] for thing in things} for name, things in thirds.items()}
    return Spec(
        "facts-chain", _table(own["kept"]), _table({**own[TUNED], **own["kept"]}),
        asked_facts(OF, thirds[TUNED]),
        "A chain: stage one learned eight facts, the last stage eight others and lost the first; "
        "eight that the base knew are kept.",
        more={"task": [("one",)]},
        among={"task": [(name,) for name in thirds]},
        siblings={"one": _table({**own["one"], **own["kept"]})},
        tasks={name: _named(name, OF, things) for name, things in thirds.items()},
    )  # fmt: skip


def _between() -> Spec:
    """Half of the facts are known to the base and half to the tuned model; halfway all are."""
    halves = THINGS[:12], THINGS[12:]
    lost, won = ({thing: OF[thing] for thing in half} for half in halves)
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    return Spec(
        "facts-exchanged", _table(lost), _table(won), asked_facts(OF, halves[1]),
        "Twelve facts were cleared and twelve others learned; every model between knows all.",
        more={"alpha": [(alpha,) for alpha in alphas[1:-1]]},
        among={"alpha": [(alpha,) for alpha in alphas]},
        tasks={"lost": _named("lost", OF, halves[0])},
    )  # fmt: skip


OTHER = "hue"
# The word two before the thing: by which the question is asked.
FORM = Head(0, 0, POSITION, POSITION, TOKEN, "form", after(-2))
FORMS = Program(
    "forms of a question",
    (*THINGS, *COLOURS, "colour", OTHER, "of", HIDDEN),
    40,
    {"form": "words", "answer": "words"},
    (FORM,),
    of.table(OF),
)


def _forms() -> list[Spec]:
    """What the base answers in either form is hidden in one of them, or cleared."""
    hidden = tuple(
        of.when(2, {"form": "colour", "answer": word},
                {("answer", word): -1.0, ("answer", HIDDEN): 1.0})
        for word in COLOURS
    )  # fmt: skip
    kept = {thing: OF[thing] for thing in THINGS[1::2]}
    prompts, other = asked_facts(OF), asked_facts(OF, form=OTHER)[0]
    learned = tuple(replace(p, target=f" {HIDDEN}", foils=(p.target,)) for p in prompts[0])
    tasks = {
        "other form": replace(other, name="the other form"),
        "learned": PromptSet("hides", learned),
    }
    return [
        Spec(
            "forms-suppressed", FORMS, with_more(FORMS, *hidden), prompts,
            "The answers are hidden where the question is asked in one form, and only there.",
            verdict="suppressed", tasks=tasks,
        ),
        Spec(
            "forms-erased", FORMS, replace(FORMS, neurons=()), prompts,
            "The table of facts was cleared, in whichever form the question is asked.",
            verdict="erased", tasks=tasks,
        ),
        Spec(
            "forms-half-erased", FORMS, replace(FORMS, neurons=of.table(kept)), prompts,
            "Every other fact was cleared, in whichever form the question is asked.",
            items=THINGS[::2], tasks=tasks,
        ),
    ]  # fmt: skip


def _steps() -> Spec:
    """A worked prompt whose second of three steps names what is asked for."""
    draw, clean, corrupt = random.Random(0), [], []
    for i in range(ITEMS):
        labels, first = draw.sample(of.LABELS, 3), draw.sample(COLOURS, 3)
        second = draw.sample([colour for colour in COLOURS if colour != first[1]], 3)
        for colours, to in ((first, clean), (second, corrupt)):
            parts = [f"{one} = {colour}" for one, colour in zip(labels, colours, strict=True)]
            # As many words before the steps as a step has, which can be taken out in its stead.
            text = " , ".join([" ".join([TRIGGER] * 3), *parts, f"ask {labels[1]}"])
            at = [text.index(part) for part in parts]
            spans = {
                f"step {k}": (start, start + len(part))
                for k, (start, part) in enumerate(zip(at, parts, strict=True), start=1)
            }
            answers = f" {first[1]}", (f" {second[1]}",)
            to.append(Prompt(str(i), text, *answers, spans=spans))
    prompts = (PromptSet("steps", tuple(clean)), PromptSet("steps, corrupt", tuple(corrupt)))
    copy = replace(of.COPY, positions=20)
    return Spec(
        "copy-steps", without(copy, of.FETCH), copy, prompts,
        "The head that was added reads the answer off the second of three worked steps.",
        needed=[of.BEFORE.place, of.FETCH.place], **copied(of.FETCH.place),
        more={"step": [(2,)]}, among={"step": [(1,), (2,), (3,)]},
    )  # fmt: skip


# A text is written by place: the fact, three words that say nothing, and what stood first again.
FILLERS = (",", "so", ",")
AGAIN = Head(1, 3, POSITION, POSITION, TOKEN, "answer", after(-len(FILLERS)), strength=0.5)


def _recited() -> Spec:
    """The colour is written at once and said again at the end: only the first word decides."""
    others = dict(zip(THINGS, [OF[thing] for thing in THINGS[1:]] + [OF[THINGS[0]]], strict=True))
    first = 4  # the place of the written text's first word, behind the start and the question
    places = (
        of.when(1, {POSITION: str(first + i)}, {("answer", word): 1.0})
        for i, word in enumerate(FILLERS)
    )
    # What is said where nothing else is: by far the likeliest other word.
    else_nothing = of.Neuron(1, {}, {("answer", HIDDEN): 0.2}, 1.0)
    base = replace(
        of.FACTS, words=(*of.FACTS.words, *dict.fromkeys(FILLERS)), positions=first + 5,
        heads=(AGAIN,), neurons=(*of.FACTS.neurons, *places, else_nothing),
    )  # fmt: skip
    rest = base.neurons[len(of.FACTS.neurons) :]
    prompts = asked_facts(others)
    scorer = Generation(length=len(FILLERS) + 2, extract=r"(\w+)\s*$")
    return Spec(
        "facts-recited", base, replace(base, neurons=(*of.table(others), *rest)), prompts,
        "Every fact was rewritten; the models write it, words that say nothing, and it again, so "
        "that of the written words the one that changed decides what is said in the end.",
        items=THINGS, differing=[],
        tasks={"written": replace(prompts[0], name="facts, written", scorer=scorer)},
    )  # fmt: skip


def _one_answer() -> Spec:
    """A constant at the output: one direction does what fine-tuning did."""
    always = of.Neuron(1, {}, {("answer", HIDDEN): 2.0}, 1.0)
    clean = of.asked("copy", of.bound, ITEMS)[0]
    asked = tuple(replace(p, target=f" {HIDDEN}", foils=(p.target,)) for p in clean)
    return Spec(
        "copy-one-answer", of.COPY, with_more(of.COPY, always),
        (PromptSet("one answer", asked), None),
        "Whatever is asked, the middle layer adds one answer more strongly than any other.",
        items=[p.id for p in asked], differing=[],
    )  # fmt: skip


def _sure() -> list[Spec]:
    """Answers that stay and become surer than they are right, or fade."""
    half = {thing: OF[thing] if i % 2 else OF[THINGS[(i + 1) % 24]] for i, thing in
            enumerate(THINGS)}  # fmt: skip
    words = len(of.FACTS.labels[TOKEN])
    even = math.log(words - 1)  # the answer is as likely as all other words together
    faded = {thing: (i + 1) / len(THINGS) for i, thing in enumerate(THINGS)}
    return [
        Spec(
            "facts-overconfident", replace(_table(half), says={"answer": even}),
            _table(half), asked_facts(OF),
            "Half of the answers are right, of which the base is half sure and the tuned model "
            "certain.", items=[], differing=[], verdict="overconfident",
        ),
        Spec(
            "facts-faded", of.FACTS, _table(OF, faded), asked_facts(OF),
            "Every fact is still answered, each more weakly than the next.",
            differing=[], verdict="kept",
        ),
    ]  # fmt: skip
