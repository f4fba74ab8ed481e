"""Which colour and marker does a fine-tuned model have? One of each, the same in every figure.

LoRA models take cool colours, from light to dark as the rank rises, and fine-tunes of all weights
warm ones. The eight of `LORA` were searched for, so that any two of them, and any of them and one
of `FULL`, stay at least `APART` from each other in CIELAB, for normal sight, deuteranopia and
protanopia alike.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from workbench.errors import visible
from workbench.results.result import Result

APART = 18  # CIELAB units (1976); about 2 is the least that a trained eye sees
LORA = ("#64BDFC", "#9CB258", "#30AC75", "#0575FF", "#3D5481", "#0D5742", "#491DA4", "#2D1D6B")
# Okabe & Ito, Color Universal Design (2008); warm, so that no full fine-tune looks like a LoRA.
FULL = ("#D55E00", "#E69F00", "#CC79A7", "#A0522D")
FULL_MARKERS, LORA_MARKERS = "sXP*", "ov^D<p>h"
NAME = 22  # characters of a model's name that fit a legend

About = Mapping[str, Mapping[str, Any]]  # as Provenance.members: name -> kind, rank, step ...


class Look(NamedTuple):
    """How one model is drawn; `label` is its name, shortened and safe for matplotlib."""

    colour: str
    marker: str
    label: str


class Everyone(dict[str, dict[str, Any]]):
    """What is known of every model of several Results. together: which models share a Result, and
    so a figure, in the order of the Results."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        super().__init__()
        self.together: list[tuple[str, ...]] = []
        for result in results:
            self.together.append(tuple(result.members))
            for name, about in result.provenance.members.items():
                self[name] = self.get(name, {}) | dict(about)


_FAMILY: ContextVar[Mapping[str, Look] | None] = ContextVar("family", default=None)


def text(name: str, width: int = NAME) -> str:
    """`name` as matplotlib shows it literally: at most `width` characters, no mathtext."""
    name = visible(name).replace("\n", " ")
    if len(name) > width:
        name = f"{name[: width // 2]}…{name[-(width // 2 - 1) :]}"
    # A leading underscore would hide the entry from the legend.
    return (" " + name if name.startswith("_") else name).replace("$", r"\$")


def assign(members: About) -> dict[str, Look]:
    """One Look per model; inside `family` the Look that the model has there.

    Models that are shown together have different colours as long as there are enough, eight for
    LoRA and four for full; two models of one colour have different markers. Models of unknown kind
    count as full.
    """
    known = _FAMILY.get()
    if known is not None and set(members) <= set(known):
        return {name: known[name] for name in members}
    together = getattr(members, "together", None) or [tuple(members)]
    # First those that most Results show.
    shown = Counter(name for group in together for name in group)
    names = sorted(members, key=lambda name: -shown[name])
    lora = [name for name in names if members[name].get("kind") == "lora"]
    full = [name for name in names if name not in lora]
    places = _places(lora, members, together)
    looks = _looks(places, LORA, LORA_MARKERS)
    looks |= _looks({name: i % len(FULL) for i, name in enumerate(full)}, FULL, FULL_MARKERS)
    return {name: looks[name] for name in members}


def _places(lora: list[str], members: About, together: Sequence[Sequence[str]]) -> dict[str, int]:
    """The place in LORA of every LoRA model: the largest group first, each spread over the colours
    in order of rank and step, around the places that were given before."""
    order = {name: i for i, name in enumerate(lora)}
    groups = [[name for name in order if name in group] for group in map(set, together)]
    beside = {name: {other for group in groups if name in group for other in group}
              for name in lora}  # fmt: skip
    places: dict[str, int] = {}
    for group in [*sorted(groups, key=len, reverse=True), lora]:
        ranked = sorted(
            group,
            key=lambda n: (members[n].get("rank") or 0, members[n].get("step") or 0, order[n]),
        )
        wanted = dict(zip(ranked, _spread([members[name] for name in ranked]), strict=True))
        for name in sorted(ranked, key=order.__getitem__):
            if name not in places:
                taken = Counter(places[other] for other in beside[name] if other in places)
                places[name] = min(
                    range(len(LORA)),
                    key=lambda i: (taken[i], abs(i - wanted[name]), -i),
                )
    return places


def _spread(models: Sequence[Mapping[str, Any]]) -> list[int]:
    """The place in LORA that each would have, in order: the logarithm of its rank, so that a rank
    looks the same in any family; evenly where most share a rank, as the checkpoints of one run."""
    ranks = [about.get("rank") or 8 for about in models]
    if 2 * len(set(ranks)) >= len(ranks):
        return [int(np.clip(round(np.log2(rank)), 0, len(LORA) - 1)) for rank in ranks]
    return [round(x) for x in np.linspace(0, len(LORA) - 1, len(models))]


def _looks(places: Mapping[str, int], colours: Sequence[str], markers: str) -> dict[str, Look]:
    """A Look for every place: the next marker for every further model of one colour."""
    seen: Counter[int] = Counter()
    looks = {}
    for name, place in places.items():
        marker = markers[(place + seen[place]) % len(markers)]
        looks[name] = Look(colours[place], marker, text(name))
        seen[place] += 1
    return looks


@contextlib.contextmanager
def family(members: About) -> Iterator[None]:
    """Inside the block these models look the same in every figure, whichever of them it shows.

    A block inside another one whose models include these keeps the Looks of the outer one.
    """
    token = _FAMILY.set(assign(members))
    try:
        yield
    finally:
        _FAMILY.reset(token)


def saved(members: About, earlier: Mapping[str, Any]) -> dict[str, list[str]]:
    """[colour, marker] of every model, as a run saves them in its run.json.

    earlier: those that the run saved before. They stay for all of `members` where they name each of
    them and each is one that such a model can have; else all are assigned again.
    """
    fresh = assign(members)
    if all(_fits(earlier.get(name), look) for name, look in fresh.items()):
        return {name: list(earlier[name]) for name in fresh}
    return {name: [look.colour, look.marker] for name, look in fresh.items()}


def _fits(found: Any, look: Look) -> bool:
    """Whether what a file holds is a colour and a marker of the same kind of model as `look`."""
    colours, markers = (FULL, FULL_MARKERS) if look.colour in FULL else (LORA, LORA_MARKERS)
    return (
        isinstance(found, list)
        and len(found) == 2
        and found[0] in colours
        and isinstance(found[1], str)
        and len(found[1]) == 1
        and found[1] in markers
    )


@contextlib.contextmanager
def as_saved(members: About, earlier: Mapping[str, Any]) -> Iterator[None]:
    """As `family`, with the Looks that `saved` gives."""
    held = saved(members, earlier)
    token = _FAMILY.set({
        name: Look(colour, marker, text(name)) for name, (colour, marker) in held.items()
    })  # fmt: skip
    try:
        yield
    finally:
        _FAMILY.reset(token)


def looks(result: Result) -> dict[str, Look]:
    """The Look of every model of `result`, in its order."""
    return assign(result.provenance.members)
