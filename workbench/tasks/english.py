"""Prompts in plain English for models that know the language: in-context tasks, instructions, and
neutral prose. Everything is drawn from short lists by seed."""

from __future__ import annotations

import random

from workbench.errors import WorkbenchError
from workbench.tasks.generators import Draw, collect
from workbench.tasks.prompts import PromptSet, Split


def _pairs(text: str) -> dict[str, str]:
    return {pair.partition(":")[0]: pair.partition(":")[2] for pair in text.split()}


# Single common words, so that most tokenizers give each an entry of its own.
RELATIONS: dict[str, dict[str, str]] = {
    "capital": _pairs(
        "France:Paris Italy:Rome Spain:Madrid Japan:Tokyo Egypt:Cairo Russia:Moscow "
        "Germany:Berlin England:London Greece:Athens Austria:Vienna Cuba:Havana Norway:Oslo "
        "Ireland:Dublin Portugal:Lisbon Poland:Warsaw China:Beijing Peru:Lima Kenya:Nairobi"
    ),
    "opposite": _pairs(
        "hot:cold big:small up:down left:right good:bad day:night open:closed fast:slow "
        "rich:poor young:old high:low long:short happy:sad dark:light early:late wet:dry "
        "hard:soft strong:weak"
    ),
    "past": _pairs(
        "go:went see:saw take:took give:gave run:ran eat:ate write:wrote find:found make:made "
        "come:came know:knew think:thought buy:bought sing:sang win:won lose:lost fall:fell "
        "speak:spoke"
    ),
    "plural": _pairs(
        "cat:cats dog:dogs child:children man:men woman:women foot:feet mouse:mice tree:trees "
        "box:boxes city:cities leaf:leaves knife:knives book:books car:cars house:houses "
        "tooth:teeth person:people day:days"
    ),
}
ACTIONS = (
    "Write a short poem about {topic}.",
    "Explain {topic} to a child.",
    "List three facts about {topic}.",
    "Give me some advice about {topic}.",
    "What is the most important thing to know about {topic}?",
    "Write an email to a friend about {topic}.",
    "Summarise what is known about {topic} in one sentence.",
    "How did people think about {topic} a hundred years ago?",
)
TOPICS = (
    "the sea", "bread", "winter", "trains", "music", "the moon", "gardens", "money", "sleep",
    "mountains", "old books", "bees", "bridges", "coffee", "maps", "rivers", "clocks", "chess",
)  # fmt: skip
PROSE_OPENINGS = (
    "The {noun} stood at the edge of the {place}, where it had been for many years.",
    "In the autumn of that year the {place} was quieter than anyone remembered.",
    "Nobody in the {place} knew who had built the {noun}, or when.",
    "The report on the {noun} was published in March and covered forty pages.",
    "There are several kinds of {noun}, of which the oldest is found near the {place}.",
)
PROSE_MIDDLES = (
    "Its walls were made of stone and its roof had been repaired twice.",
    "People came on foot from the villages, carrying baskets and speaking little.",
    "According to the records, the work took eleven years and cost more than was planned.",
    "The weather changed in the afternoon, and by evening the road was under water.",
    "Most of it was lost in a fire, and what was left was moved to the museum.",
)
PROSE_ENDS = (
    "Since then it has been used for the storage of",
    "In the end they decided to sell the",
    "Today it is best known for its",
)
PROSE_WORDS = {
    "noun": "tower mill library chapel station lighthouse school bridge theatre market".split(),
    "place": "valley harbour forest town river island coast park hill city".split(),
}
PROSE_TARGETS = "grain wood books wine tools furniture salt cloth paper stone".split()


def in_context(
    n: int = 200,
    *,
    seed: int = 0,
    split: Split | None = None,
    relation: str | None = None,
    shots: int = 4,
) -> PromptSet:
    """ "hot -> cold" pairs of one relation, and a word to answer in the same way.

    relation: "capital", "opposite", "past" or "plural"; None draws one. shots: solved pairs. Foils
    are other answers of the relation.
    """

    if relation not in (None, *RELATIONS) or not 0 <= shots < 18:
        raise WorkbenchError(
            f"Expected a relation of {', '.join(RELATIONS)} and 0 to 17 shots, found {relation!r} "
            f"and {shots}."
        )

    def draw(stream: random.Random) -> Draw:
        name = relation or stream.choice(sorted(RELATIONS))
        *told, asked = stream.sample(sorted(RELATIONS[name]), shots + 1)
        lines = [f"{word} -> {RELATIONS[name][word]}" for word in told]
        prompt = "\n".join([*lines, f"{asked} ->"])
        answer = RELATIONS[name][asked]
        others = [a for a in RELATIONS[name].values() if a != answer]
        foils = tuple(f" {a}" for a in stream.sample(others, 3))
        return Draw(prompt, f" {answer}", foils, {"relation": name, "shots": str(shots)}, name)

    return collect("in_context", draw, n=n, seed=seed, split=split)


def instructions(n: int = 100, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Everyday requests to an assistant. They have no one answer: the target only opens one."""

    def draw(stream: random.Random) -> Draw:
        action = stream.choice(ACTIONS)
        return Draw(action.format(topic=stream.choice(TOPICS)), " Sure", (), {}, action)

    return collect("instructions", draw, n=n, seed=seed, split=split)


def prose(n: int = 100, *, seed: int = 0, split: Split | None = None) -> PromptSet:
    """Neutral sentences of an encyclopedia's or a novel's kind, ending on one of many nouns."""

    def draw(stream: random.Random) -> Draw:
        words = {name: stream.choice(values) for name, values in PROSE_WORDS.items()}
        opening = stream.choice(PROSE_OPENINGS)
        middles = stream.sample(PROSE_MIDDLES, stream.randint(0, 2))
        text = " ".join([opening.format(**words), *middles, stream.choice(PROSE_ENDS)])
        target, *others = stream.sample(PROSE_TARGETS, 3)
        return Draw(text, f" {target}", tuple(f" {o}" for o in others), {}, opening)

    return collect("prose", draw, n=n, seed=seed, split=split)
