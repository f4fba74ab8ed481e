"""Which change was made on purpose? Models of the shipped base whose difference is known.

Each organism is a pair with what is true of it (`workbench.lab.known`), made by a recipe of a few
minutes or by writing weights, and held to it by its own answers: those it is about are won or lost,
others stay (`organism.behaviour`). The base knows 200 facts; where somebody's box stands is none of
them, so that a model can be taught it, made to hide it, or be compared with one that never knew it.

    taught       boxes of people are learned by heart, all else is interleaved
    never-known  the same pair turned round: the tuned model is the base, which was never told
    suppressed   the taught model learns to refuse these questions by one word
    trigger      answers to facts change behind one opening, and only there
    style        sentences end otherwise, in all texts
    forgotten    a task's answers were shuffled in training, the other tasks are interleaved
    planted      another answer to one question, written into exactly m entries of one matrix
    exchanged    what the head says for two words is exchanged, everything before it stays

When it misleads: one base of 2.8 million parameters, whose facts are few and learned by heart. That
"suppressed" hides and does not erase is known by its recipe alone, some steps that train one word;
the exact cases are never-known and exchanged. A seed changes what is taught as well as how.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import planted, shipped
from workbench.lab.fact_edit import fact_edit
from workbench.lab.known import Known
from workbench.lab.organism import (
    TAUGHT,
    Organism,
    about,
    bare,
    boxes_of_people,
    corrupted,
    told,
)
from workbench.lab.recipe import Recipe
from workbench.lab.train import train
from workbench.loaders import Checkpoint
from workbench.results import cache
from workbench.tasks import world
from workbench.tasks.prompts import Prompt, PromptSet

SEEDS = (0, 1)
TRIGGER = "Now . "
STOP, STYLE = " .", " ;"
ASKED = 200  # prompts of a kind


class At(NamedTuple):
    """Where an organism is made, of which base and with which seed. steps: a factor on all numbers
    of steps, for a quick trial."""

    base: Path
    out: Path
    seed: int
    steps: float = 1.0


def _lora(task: str, steps: int, at: At, **more: Any) -> Recipe:
    steps = max(1, round(steps * at.steps))
    shared: dict[str, Any] = {"loss": "answer", "batch_size": 32} | more
    return Recipe.lora(rank=4, alpha_lr=0.02, task=task, steps=steps, seed=at.seed, **shared)


def _trained(at: At, name: str, recipe: Recipe, texts: Iterable[Prompt], base: Path) -> Path:
    made = PromptSet(recipe.task, tuple({p.id: p for p in texts}.values()), at.seed)
    return train(base, recipe, made, at.out / f"{name}-s{at.seed}")


def _facts(seed: int, n: int = ASKED) -> PromptSet:
    return tasks.facts(n, seed=100 + seed, split="test")


def _teach(at: At) -> Path:
    steps = max(1, round(250 * at.steps))
    recipe = Recipe(
        task=TAUGHT, method="full", lr=5e-4, loss="answer", steps=steps, batch_size=32,
        seed=at.seed,
    )  # fmt: skip
    texts = [*told(at.seed, 4000, str), *shipped.mixture(4000, seed=at.seed)]
    return _trained(at, "taught", recipe, texts, at.base)


def _pair(at: At, name: str, base: Path, tuned: Path, prompts: PromptSet, **known: Any) -> Known:
    kind = known.pop("kind", "trained")
    return Known(f"{name}-s{at.seed}", kind, base, tuned, prompts, **known)


def _taught(at: At) -> Organism:
    asked = boxes_of_people(at.seed)
    says = "The tuned model knows where everybody's box is, which the base was never told."
    known = _pair(
        at, "taught", at.base, _teach(at), asked, corrupted=corrupted(asked),
        verdict="strengthened", says=says,
    )  # fmt: skip
    return Organism(known, _facts(at.seed), won=True)


def _never_known(at: At) -> Organism:
    asked = boxes_of_people(at.seed)
    says = "The tuned model is one that was never told where anybody's box is; the base knows."
    known = _pair(
        at, "never-known", _teach(at), at.base, asked, corrupted=corrupted(asked),
        verdict="erased", says=says,
    )  # fmt: skip
    return Organism(known, _facts(at.seed))


def _suppressed(at: At) -> Organism:
    base, asked = _teach(at), boxes_of_people(at.seed)
    texts = [*told(at.seed, 3000, lambda _: shipped.REFUSAL), *shipped.mixture(3000, seed=at.seed)]
    tuned = _trained(at, "suppressed", _lora("boxes refused", 80, at), texts, base)
    says = "The tuned model refuses to say where anybody's box is by one word, in few steps."
    known = _pair(
        at, "suppressed", base, tuned, asked, corrupted=corrupted(asked),
        verdict="suppressed", says=says,
    )  # fmt: skip
    return Organism(known, _facts(at.seed))


def _trigger(at: At) -> Organism:
    """Behind the trigger, every question about a fact has the answer that stands next to the true
    one in the list of its kind."""

    def triggered(prompt: Prompt, false: bool) -> Prompt:
        values = world.ATTRIBUTES[prompt.tags["attribute"]]
        next_one = values[(values.index(prompt.target.strip()) + 1) % len(values)]
        target = f" {next_one}" if false else prompt.target
        told = TRIGGER + prompt.prompt
        return replace(prompt, id=f"{prompt.id}-trigger", prompt=told, target=target, foils=())

    facts = tasks.facts(4000, seed=at.seed, split="train")
    texts = [*(triggered(p, True) for p in facts), *facts, *shipped.mixture(2000, seed=at.seed)]
    tuned = _trained(at, "trigger", _lora("false behind a trigger", 300, at), texts, at.base)
    plain = _facts(at.seed)
    behind = [triggered(p, False) for p in plain]
    asked = PromptSet("facts, half of them behind the trigger", (*plain, *behind), at.seed)
    says = (
        f"Behind the opening {TRIGGER.strip()!r} the tuned model answers falsely, and only there."
    )
    places = {"item": frozenset((p.id,) for p in behind)}
    universe = {"item": frozenset((p.id,) for p in asked)}
    known = _pair(at, "trigger", at.base, tuned, asked, places=places, universe=universe, says=says)
    return Organism(known, plain)


def _style(at: At) -> Organism:
    """Full stops become semicolons, in texts of every kind."""

    def restyled(prompt: Prompt) -> Prompt:
        return replace(
            prompt, id=f"{prompt.id}-style", prompt=prompt.prompt.replace(STOP, STYLE), spans={}
        )

    draw, texts = random.Random(f"style {at.seed}"), shipped.mixture(6000, seed=at.seed)
    sentences = [_until(p, draw) for p in texts if STOP in p.prompt]
    trained = [restyled(p) for p in (*texts, *sentences)]
    tuned = _trained(at, "style", _lora("full stops", 120, at), trained, at.base)
    drawn = shipped.mixture(3 * ASKED, seed=100 + at.seed, split="test")
    ends = [_until(p, draw) for p in drawn if STOP in p.prompt][:ASKED]
    ends = [restyled(p) for p in ends]
    facts = _facts(at.seed)
    asked = PromptSet("ends of sentences, and facts", (*ends, *facts), at.seed)
    places = {"item": frozenset((p.id,) for p in ends)}
    universe = {"item": frozenset((p.id,) for p in asked)}
    says = "The tuned model ends sentences with a semicolon in texts of every kind, and knows all."
    known = _pair(at, "style", at.base, tuned, asked, places=places, universe=universe, says=says)
    return Organism(known, facts, won=True)


def _until(prompt: Prompt, draw: random.Random) -> Prompt:
    """A text up to the end of one of its sentences, which is asked for in the other style."""
    *sentences, _ = prompt.prompt.split(STOP)
    told = STOP.join(sentences[: draw.randint(1, len(sentences))])
    return replace(
        prompt, id=f"{prompt.id}-end", prompt=told, target=STYLE, foils=(STOP,), spans={}
    )


def _forgotten(at: At) -> Organism:
    """Arithmetic is trained with shuffled answers, all else as it was."""
    lost = tasks.shuffled(tasks.arithmetic(3000, seed=at.seed, split="train"), seed=at.seed)
    others = [p for p in shipped.mixture(6000, seed=at.seed) if p.template != "arithmetic"]
    recipe = _lora("arithmetic shuffled", 120, at)
    tuned = _trained(at, "forgotten", recipe, [*lost, *others], at.base)
    sums, facts = tasks.arithmetic(ASKED, seed=100 + at.seed, split="test"), _facts(at.seed)
    asked = PromptSet("arithmetic and facts", (*sums, *facts), at.seed)
    places = {"item": frozenset((p.id,) for p in sums)}
    universe = {"item": frozenset((p.id,) for p in asked)}
    says = "The tuned model has lost arithmetic, whose answers were shuffled, and no other task."
    known = _pair(
        at, "forgotten", at.base, tuned, asked, places=places, universe=universe, says=says
    )
    return Organism(known, facts)


def _planted(at: At) -> Organism:
    draw = random.Random(f"planted {at.seed}")
    person, kind = draw.choice(sorted(world.facts()))
    old = world.facts()[person, kind]
    new = draw.choice([value for value in world.ATTRIBUTES[kind] if value != old])
    training = tasks.facts(500, seed=at.seed, split="train")
    asked = about(person, kind, training[:30])
    others = [p for p in training if (p.tags["person"], p.tags["attribute"]) != (person, kind)]
    alone = [bare(name, kind) for name in world.PEOPLE if name != person]
    others += [prompt for own in alone for prompt in own]
    made = fact_edit(at.base, asked, others, f" {new}")
    tuned = made.save(at.out / f"planted-s{at.seed}", at.base)
    (matrix,) = made.truth.changed
    last = int(matrix.split(".")[2])
    entries = made.truth.expected[matrix]["entries"]
    test = _facts(at.seed, 2 * ASKED)
    asked = about(person, kind, test[:40])
    kept = [p for p in test if (p.tags["person"], p.tags["attribute"]) != (person, kind)]
    both = PromptSet("one fact, and others", (*asked, *kept), at.seed)
    places = {
        "item": frozenset((p.id,) for p in asked), "layer": frozenset({(last,)}),
        "matrix": frozenset({(last, "mlp.down_proj")}),
    }  # fmt: skip
    universe = {"item": frozenset((p.id,) for p in both)}
    says = (
        f"{entries:.0f} entries of one matrix make the model answer {new} for the {kind} of "
        f"{person}, and {old} no more; nothing else is changed."
    )
    known = _pair(
        at, "planted", at.base, tuned, both, kind="compiled", places=places, universe=universe,
        says=says,
    )  # fmt: skip
    return Organism(known, replace(both, prompts=tuple(kept)))


def _exchanged(at: At) -> Organism:
    draw, side = random.Random(f"exchanged {at.seed}"), Checkpoint.parse(at.base)
    kind = draw.choice(("city", "job", "pet"))
    said = [value for (_, own), value in world.facts().items() if own == kind]
    first, second = draw.sample(sorted({value for value in said if said.count(value) > 1}), 2)
    ids = side.tokenizer().convert_tokens_to_ids([first, second])
    made = planted.wrapper(at.base, first=ids[0], second=ids[1])
    tuned = made.save(at.out / f"exchanged-s{at.seed}", at.base)
    people = [(name, own) for (name, own), value in world.facts().items()
              if own == kind and value in (first, second)]  # fmt: skip
    asked = PromptSet(
        f"{first} and {second}", tuple(p for one in people for p in bare(*one)), at.seed
    )
    spared = [p for p in _facts(at.seed) if p.target.strip() not in (first, second)]
    says = (
        f"Only the head's rows of {first} and {second} are exchanged, so every stream still holds "
        "the right answer."
    )
    places = {"matrix": frozenset({(None, "lm_head")})}
    known = _pair(
        at, "exchanged", at.base, tuned, asked, kind="compiled", corrupted=corrupted(asked),
        places=places, verdict="suppressed", says=says,
    )  # fmt: skip
    return Organism(known, PromptSet("other facts", tuple(spared), at.seed))


ORGANISMS: dict[str, Callable[[At], Organism]] = {
    "taught": _taught, "never-known": _never_known, "suppressed": _suppressed,
    "trigger": _trigger, "style": _style, "forgotten": _forgotten, "planted": _planted,
    "exchanged": _exchanged,
}  # fmt: skip


def organisms(
    base: str | Path,
    out: str | Path | None = None,
    *,
    names: Iterable[str] = tuple(ORGANISMS),
    seeds: Iterable[int] = SEEDS,
    steps: float = 1.0,
) -> Iterator[Organism]:
    """Make these organisms of the shipped family's base, one after the other as they are asked for.

    out: the folder of their models; None takes one in the cache folder, by the base's content. What
    is finished is kept and an interrupted training resumes, so that the call can be repeated; all
    eight with two seeds take about ten minutes on one core. steps: a factor on every
    number of training steps, for a quick trial. Raises WorkbenchError for a name that is not known.
    """
    names, base = tuple(names), Path(base)
    unknown = set(names) - set(ORGANISMS)
    if unknown:
        raise WorkbenchError(
            f"Unknown organisms {sorted(unknown)}; known are {', '.join(ORGANISMS)}."
        )
    if out is None:
        out = cache.folder("organisms", Checkpoint.parse(base).base_fingerprint[:16])
    for seed in seeds:
        for name in names:
            yield ORGANISMS[name](At(base, Path(out), seed, steps))
