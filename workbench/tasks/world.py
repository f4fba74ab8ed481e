"""Which words, people and facts make up the small world of the shipped family?"""

from __future__ import annotations

import random
import re
import string
from functools import cache
from itertools import chain

OBJECTS = (
    "apple book cup hat coat drum lamp clock map ring shoe bag ball bell bottle bowl brush "
    "cake camera card chain chair coin comb computer cross crown desk dish doll fan file flag "
    "flower fork game gift glass guitar gun key knife leaf letter lock magnet mirror needle note "
    "paper pen pencil phone picture pillow pipe plane plant plate pot radio rock rope rose scarf "
    "shell shirt spoon stamp stone string suit sword table tape ticket tie tool towel toy train "
    "tree watch wheel wire"
).split()
LABELS = tuple(string.ascii_uppercase)
WOMEN = (
    "Anna Maria Clara Emma Julia Laura Nora Olga Rosa Sara Vera Alice Diana Helen Irene Jane "
    "Karen Linda Mary Susan"
).split()
MEN = (
    "Adam Boris Carl David Erik Frank Gary Henry Ivan Jack Kevin Leo Mark Oscar Paul Peter "
    "Robert Simon Thomas Victor"
).split()
PEOPLE = (*WOMEN, *MEN)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": tuple(
        "Paris London Rome Berlin Madrid Vienna Athens Oslo Dublin Lisbon Prague Warsaw Tokyo "
        "Cairo Moscow Boston Chicago Toronto Sydney Delhi".split()
    ),
    "job": tuple(
        "doctor teacher lawyer baker farmer painter singer driver writer nurse pilot cook judge "
        "soldier dancer miner".split()
    ),
    "pet": tuple("dog cat horse rabbit parrot turtle snake hamster goat duck pony mouse".split()),
    "food": tuple("bread cheese rice soup pasta fish beans honey salad pie corn butter".split()),
    "colour": tuple("red blue green yellow black white purple orange brown pink".split()),
}
# Each attribute is asked in the same wordings; the last one puts the answer far from the name.
FACT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "city": (
        "{name} lives in",
        "The home of {name} is in",
        "If you look for {name} you must travel to",
    ),
    "job": (
        "{name} works as a",
        "The job of {name} is that of a",
        "If you ask {name} you talk to a",
    ),
    "pet": (
        "{name} has a pet",
        "The pet of {name} is a",
        "If you visit {name} you will see a",
    ),
    "food": (
        "{name} likes to eat",
        "The favourite food of {name} is",
        "If you dine with {name} you will get",
    ),
    "colour": (
        "{name} likes the colour",
        "The favourite colour of {name} is",
        "If you paint for {name} you should use",
    ),
}
LARGEST = 30
OPERATIONS = {"+": "plus", "-": "minus"}

PLACES = (
    "market garden school station river bridge park church museum office kitchen forest beach "
    "library hotel shop farm harbour"
).split()
WEATHER = "cold warm rainy windy sunny quiet cloudy foggy".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
FEELINGS = "happy sad tired angry proud bored calm afraid".split()
# The words of the fine-tuning domain all occur here in other meanings, so that fine-tuning meets
# trained embeddings in a wording it has never seen.
OPENINGS = (
    "It was a {weather} {day} .",
    "On {day} the weather was {weather} .",
    "One {weather} morning {name} woke up early .",
    "{day} began {weather} and {name} felt {feeling} .",
)
ERRANDS = (
    "{name} took the {object} and walked to the {place} .",
    "{name} went to the {place} with the {object} .",
    "{name} carried the {object} from the {place} to the {place2} .",
)
EVENTS = (
    "There {name} met {friend} , who was a {job} .",
    "At the {place2} {they} saw {friend} with a {pet} .",
    "{friend} moved to {city} , so {name} felt {feeling} .",
    "{name} and {friend} swapped stories about {city} .",
    "{friend} removed a {colour} label from the {place2} wall .",
    "{they} ate {food} with {friend} near the {place2} .",
    "The log of the {place2} listed every event , step by step , and an empty page .",
    "An inventory of the {place2} holds nothing new , said {friend} , then {they} left .",
    "Now {friend} put {number} coins into the {colour} vase .",
    "{friend} replaced the {colour} paint and added {number} lines : all done ; no more work .",
    "First {they} bought {food} , next {they} paid {number} coins .",
)
CLOZES = (
    "At the end of the day {name} still had the",
    "That night {name} told {friend} about the",
    "In the evening {they} lost the",
)

# The first order is that of the entity-tracking literature; the second can be read by induction.
BOX_STATEMENTS = {
    "object first": "the {object} is in Box {label}",
    "label first": "Box {label} holds the {object}",
}
BOX_QUESTION = "Box {label} contains the"
MOVES_OPENING = "inventory : {holdings} ."
MOVES_HOLDING = "{label} holds {object}"
MOVES_EMPTY = "{label} empty"
MOVES_STEP = {
    "move": "step {number} : {object} moved from {label} to {other} .",
    "swap": "step {number} : {label} and {other} swapped .",
    "remove": "step {number} : {object} removed from {label} .",
    "put": "step {number} : {object} added to {label} .",
}
LEDGER_OPENING = "inventory : {total} coins ."
LEDGER_STEP = {
    "+": "step {number} : {amount} added , holds",
    "-": "step {number} : {amount} removed , holds",
}
COPY_OPENING = "Say it again :"
REVERSAL_OPENING = "Say it from the end :"


@cache
def facts() -> dict[tuple[str, str], str]:
    """(person, attribute) -> value: the world's fixed truth, the same for every seed."""
    draw = random.Random("the facts of this world")
    return {
        (person, kind): draw.choice(values)
        for person in PEOPLE
        for kind, values in ATTRIBUTES.items()
    }


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word a text of this world can hold, sorted."""
    lists = (OBJECTS, LABELS, PEOPLE, PLACES, WEATHER, DAYS, FEELINGS, *ATTRIBUTES.values())
    templates = (*OPENINGS, *ERRANDS, *EVENTS, *CLOZES, *chain(*FACT_TEMPLATES.values()))
    templates += (*BOX_STATEMENTS.values(), BOX_QUESTION, MOVES_OPENING, MOVES_HOLDING, MOVES_EMPTY)
    templates += (*MOVES_STEP.values(), COPY_OPENING, REVERSAL_OPENING)
    templates += (LEDGER_OPENING, *LEDGER_STEP.values())
    words = set(chain(*lists)) | {str(n) for n in range(LARGEST + 1)}
    words |= {"The", "the", "he", "she", ".", ",", ";", "=", *OPERATIONS}
    for template in templates:
        words |= set(re.sub(r"\{\w+\}", " ", template).split())
    return tuple(sorted(words))
