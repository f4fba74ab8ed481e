"""What is a method to the scoreboard? A function of a base, a tuned model and prompts that says
where the change is.

    def mine(base: Path, tuned: Path, prompts: PromptSet) -> dict:
        return {"matrix": {(1, "attn.c_proj"): 3.2, ...}, "head": {(1, 2): 0.9, ...}}

    wb.truth({"mine": mine})

One that contrasts two prompts takes a further argument `corrupted`, one of several models of a base
`siblings`, and one of further prompts `tasks`. Nothing of truths is known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.lab.known import PLACES, VERDICTS, Known, Place

if TYPE_CHECKING:
    import pandas as pd

Function = Callable[..., Any]
PREFIXED = "prefixed head"  # the kind of place that truths of prefix members have


@dataclass(frozen=True)
class Answer:
    """What a method says of one pair.

    places: kind of place (`lab.known.PLACES`) -> place -> score, the higher the surer that it is
    one of the true ones. finds: whether the method claims by its own rule that what was learned is
    anywhere at all; None where it has no such rule. verdict: what became of the base's answers, one
    of `lab.known.VERDICTS`; "undecided" is a verdict that is never right, and "" none.
    """

    places: Mapping[str, Mapping[Place, float]] = field(default_factory=dict)
    finds: bool | None = None
    verdict: str = ""

    def __post_init__(self) -> None:
        for kind, scores in self.places.items():
            if kind not in PLACES:
                raise WorkbenchError(
                    f"A method scored places of kind {kind!r}; known are {', '.join(PLACES)}."
                )
            if not isinstance(scores, Mapping):
                raise WorkbenchError(
                    f"Expected a score for each place of kind {kind!r}, found {scores!r}."
                )
            wrong = [p for p in scores if not isinstance(p, tuple) or len(p) != len(PLACES[kind])]
            if wrong:
                raise WorkbenchError(
                    f"Expected ({', '.join(PLACES[kind])}) as a place of kind {kind!r}, "
                    f"found {wrong[0]!r}."
                )
        if self.verdict not in (*VERDICTS, "undecided"):
            raise WorkbenchError(
                f"Expected a verdict of {', '.join([*VERDICTS[1:], 'undecided'])}, "
                f"found {self.verdict!r}."
            )


@dataclass(frozen=True)
class Method:
    """A method and what it can be asked. name: as in the table; of an analysis, its key. function:
    (base, tuned, prompts[, corrupted, siblings, tasks]) -> an `Answer`, or kind of place -> place
    -> score. kinds: of place that it scores; None where only the answers show. finds: whether it
    says that anything was learned. decides: the verdicts that it can give; one that only tells what
    is lost apart is asked of what is lost. needs: kinds of place and further prompts without which
    it is not asked at all; members that are prefixes are asked of those alone that need "prefixed
    head". source: whose it is, "" for the workbench's own. states: of (base, tuned, prompts,
    corrupted), the rows of its table whose intervals are for a mean over prompts.
    """

    name: str
    function: Function
    kinds: tuple[str, ...] | None = None
    finds: bool = True
    decides: tuple[str, ...] = VERDICTS[1:]
    source: str = "yours"
    needs: tuple[str, ...] = ()
    states: Callable[..., pd.DataFrame] | None = None

    def asked(self, known: Known) -> bool:
        """Whether a truth can be held against what this method says."""
        if not {*self.needs} <= {*known.places, *known.tasks}:
            return False
        # A prefix changes no weight and moves every token, so that nearly all methods would only
        # refuse it: it is asked of those alone that say they need one.
        if PREFIXED in known.places and PREFIXED not in self.needs:
            return False
        unlearned = known.kind == "phantom"  # whose scores are held against the pair's own
        scored = {kind for kind, places in known.places.items() if places or unlearned}
        if self.kinds is None or scored & {*self.kinds}:
            return True
        return self.finds or known.verdict in self.decides

    def answer(self, known: Known) -> Answer:
        """What it says of a pair, of which it sees no more than models and prompts."""
        given = inspect.signature(self.function).parameters
        extra = {
            name: getattr(known, name)
            for name in ("corrupted", "siblings", "tasks")
            if name in given
        }
        said = self.function(known.base, known.tuned, known.prompts, **extra)
        if isinstance(said, Answer):
            return said
        if not isinstance(said, Mapping):
            raise WorkbenchError(
                f"Expected kind of place -> place -> score of method {self.name!r}, found {said!r}."
            )
        return Answer(said)
