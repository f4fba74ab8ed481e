"""What is true of a pair? A base and a tuned model, with the answers that every method can be held
against: where the change is, what became of what was known, and that nothing was learned at all.

Compiled pairs know them by construction, organisms by their recipe and a test of their behaviour,
phantoms because their change has no objective. No method is run or judged here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from workbench.errors import WorkbenchError
from workbench.tasks.prompts import PromptSet

Kind = Literal["compiled", "trained", "phantom", "null"]
Place = tuple[int | float | str | None, ...]
# The kinds of place, and what the tuple of one holds. Edges are named as in `patching.attribution`,
# components and layers as in a table of any analysis; layer is None outside the blocks.
PLACES: Mapping[str, tuple[str, ...]] = {
    "layer": ("layer",),
    "matrix": ("layer", "component"),
    "head": ("layer", "head"),
    "answering head": ("layer", "head"),
    "differing head": ("layer", "head"),
    "needed head": ("layer", "head"),
    "writing head": ("layer", "head"),
    "prefixed head": ("layer", "head"),
    "edge": ("sender", "receiver"),
    "direction": ("layer", "component", "rank"),
    "item": ("prompt",),
    "rank": ("rank",),
    "alpha": ("x",),
    "step": ("x",),
    "task": ("task",),
    "measure": ("measure",),
    "base": ("checkpoint",),
    "shared": ("first", "second"),
    "conflict": ("first", "second"),
}
VERDICTS = ("", "kept", "suppressed", "erased", "strengthened", "overconfident")


@dataclass(frozen=True)
class Known:
    """A pair and what is true of it.

    name: unique among those that are scored together. kind: how it is known: "compiled" (weights
    written by construction), "trained" (an organism made by recipe), "phantom" (a change without
    an objective) or "null" (a base against itself, or a change that changes no answer). base,
    tuned: folders, or an adapter's for tuned. prompts: what the change is about, with answers.
    corrupted: as many prompts, each the same but for what decides its answer, and scored on the
    same answer (`patching.activation`); None where no method that contrasts two prompts is asked.
    places: kind of place -> the true ones, {"head": {(2, 1)}}; an empty set says that there are
    none, a kind that is missing that it is not known. A layer, a matrix and a head are true where
    what was changed there matters for the answers, an item where its answer is another; an edge
    and an "answering head" where the tuned model's answer goes from `prompts` to `corrupted` by it;
    a "differing head" where its output, put into the base, brings the tuned answers by itself; a
    "needed head" where the tuned model's answers end without it, and none of the base's; a "writing
    head" where the tuned model's answer is written by it, directly to the output; a "prefixed
    head" where it looks at a prefix in front of the text. A "direction"
    (singular, counted from 0) is true where answers depend on it; a "rank" where a change cut down
    to it answers as the tuned model does; an "alpha" where the model at this place between base
    and tuned answers all of `prompts` and of the further prompts; a "step" (counted from 1) of
    worked ones where the answer is read; a "task" of the further prompts where it was learned and
    forgotten; two models (in alphabetical order) are "shared" where they learned the
    same in the same directions, and in "conflict" where one of both skills is lost in their sum; a
    "measure" of the change where it goes with how much each of the siblings forgot; a "base" among
    the siblings where it gains most by becoming this pair's base.
    universe: by kind of place, all that there are, where they are not simply all that a method has
    an answer for.
    verdict: what became of the base's answers to `prompts`; "" where that is not asked. says: one
    plain sentence: what is true here. siblings: name -> folder of further models of the same base,
    in their order, without the tuned one, which is called "tuned" beside them and comes last.
    tasks: name -> further prompts; a model's own are called as it is.
    """

    name: str
    kind: Kind
    base: Path
    tuned: Path
    prompts: PromptSet
    corrupted: PromptSet | None = None
    places: Mapping[str, frozenset[Place]] = field(default_factory=dict)
    universe: Mapping[str, frozenset[Place]] = field(default_factory=dict)
    verdict: str = ""
    says: str = ""
    siblings: Mapping[str, Path] = field(default_factory=dict)
    tasks: Mapping[str, PromptSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "tuned" in self.siblings:
            raise WorkbenchError(
                f"{self.name!r} has a sibling called 'tuned', which is what the tuned model is "
                "called; give another name."
            )
        if self.kind not in get_args(Kind):
            raise WorkbenchError(
                f"{self.name!r} is of kind {self.kind!r}; use one of {', '.join(get_args(Kind))}."
            )
        if self.verdict not in VERDICTS:
            told = ", ".join(VERDICTS[1:])
            raise WorkbenchError(
                f"{self.name!r} has the verdict {self.verdict!r}; use one of {told}, or none."
            )
        if self.corrupted is not None and len(self.corrupted) != len(self.prompts):
            raise WorkbenchError(
                f"{self.name!r} has {len(self.prompts)} prompts and {len(self.corrupted)} "
                "corrupted ones; give one for each."
            )
        for what, given in (("places", self.places), ("universe", self.universe)):
            object.__setattr__(self, what, {kind: frozenset(of) for kind, of in given.items()})
            for kind, of in given.items():
                _require_shape(f"{what} of {self.name!r}", kind, of)
        for kind, of in self.universe.items():
            if not self.places.get(kind, frozenset()) <= of:
                raise WorkbenchError(
                    f"{self.name!r} names places of kind {kind!r} that its universe does not hold."
                )

    @property
    def learned(self) -> bool:
        """Whether there is anything to find: no phantom and no null."""
        return self.kind in ("compiled", "trained")

    def few(self, n: int) -> Known:
        """The same of n prompts, evenly spaced, which is all for a method that runs long."""
        if n < 1:
            raise WorkbenchError(f"Expected at least 1 prompt, found {n}.")
        if n >= len(self.prompts):
            return self
        at = [round(i * (len(self.prompts) - 1) / max(n - 1, 1)) for i in range(n)]
        left = frozenset((self.prompts[i].id,) for i in at)
        cut = {
            what: {kind: of & left if kind == "item" else of for kind, of in given.items()}
            for what, given in (("places", self.places), ("universe", self.universe))
        }
        corrupted = self.corrupted and self.corrupted.at(at)
        return replace(self, prompts=self.prompts.at(at), corrupted=corrupted, **cut)

    def truth(self, kind: str, place: Place) -> bool | None:
        """Whether a place is among the true ones; None where that is not known: a kind that is not
        listed, or a place outside its universe."""
        if kind not in self.places or place not in self.universe.get(kind, {place}):
            return None
        return place in self.places[kind]


def _require_shape(owner: str, kind: str, places: Collection[Place]) -> None:
    if kind not in PLACES:
        raise WorkbenchError(
            f"Unknown kind of place {kind!r} in {owner}; known are {', '.join(PLACES)}."
        )
    wanted = PLACES[kind]
    for place in places:
        if not isinstance(place, tuple) or len(place) != len(wanted):
            raise WorkbenchError(
                f"Expected ({', '.join(wanted)}) as a place of kind {kind!r} in {owner}, "
                f"found {place!r}."
            )
