"""Which compiled pairs are there, and what is true of each?

Through which edges and heads an answer goes is stated here by hand, from the programs. Decoys,
pairs of another architecture, those of several models or of further prompts, and of a prefix are in
`decoys`, `several` and `prefixed`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.lab.compiled import decoys, prefixed, several
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import rotated
from workbench.lab.compiled.programs import COLOURS, OF, THINGS, TRIGGER
from workbench.lab.compiled.spec import (
    ITEMS,
    Spec,
    asked_facts,
    compiled,
    copied,
    opposite,
    with_more,
    without,
)
from workbench.lab.known import Known
from workbench.tasks.prompts import Prompt, PromptSet


def pairs(out: str | Path, names: Collection[str] | None = None) -> dict[str, Known]:
    """Compile the pairs, each to `out`/NAME/base and /tuned, and say what is true of them.

    names: which of them; None takes all. Raises WorkbenchError for a name that is not known.
    """
    known = {one.name: one for one in specs()}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise WorkbenchError(
            f"There is no compiled pair {unknown[0]!r}; known are {', '.join(known)}."
        )
    return {name: compiled(known[name], Path(out)) for name in names or known}


def specs() -> list[Spec]:
    """Every compiled pair."""
    plain = [*_learned(), *_altered(), *_lost()]
    named = {one.name: one for one in plain}
    return [*plain, *decoys.specs(named), *several.specs(), *prefixed.specs(), *_nothing()]


def _learned() -> list[Spec]:
    """A head or a table is added."""
    copy, steps = of.asked("copy", of.bound, ITEMS), of.asked("two steps", of.chained, ITEMS)
    held, denied = of.asked("entities", of.held, ITEMS), of.asked("negation", of.denied, ITEMS)
    return [
        Spec(
            "copy-learned", without(of.COPY, of.FETCH), of.COPY, copy,
            "A head was added that copies what stands behind the label that is asked for.",
            needed=[of.BEFORE.place, of.FETCH.place], **copied(of.FETCH.place),
        ),
        Spec(
            "two-steps-learned", without(of.TWO_STEPS, of.SECOND), of.TWO_STEPS, steps,
            "The second step of a look-up in two steps was added, one head.",
            needed=[one.place for one in of.TWO_STEPS.heads], **copied(of.SECOND.place),
        ),
        Spec(
            "entities-learned", without(of.ENTITIES, of.TRANSMIT, of.VALUE), of.ENTITIES, held,
            "Two heads were added of which neither does anything without the other.",
            needed=[of.TRANSMIT.place, of.VALUE.place], **copied(of.VALUE.place),
        ),
        Spec(
            "negation-learned", without(of.NEGATION, *of.TURNED), of.NEGATION, denied,
            "A table was added that turns an answer round after a negation.",
            edges=[
                ("embedding", "1.v.h2"), ("1.z.h2", "2.mlp"), ("2.mlp_out", "logits"),
            ],
            answering=[of.FOUND.place], differing=[],
        ),
    ]  # fmt: skip


def _altered() -> list[Spec]:
    """The same parts do something else, or more of it."""
    induction, down = of.asked("induction", of.repeated, ITEMS), partial(of.listed, down=True)
    weak, other = replace(of.INDUCE, strength=0.2), of.transmit(of.NEIGHBOUR)
    back = replace(of.NEXT, match=of.smaller)
    swapped = {**OF, **{THINGS[i]: OF[THINGS[i + 3]] for i in range(3)}}
    return [
        Spec(
            "induction-strengthened", replace(of.INDUCTION, heads=(of.PREVIOUS, weak)),
            of.INDUCTION, induction, "What the induction head writes was made five times as large.",
            **copied(of.INDUCE.place), verdict="kept",
        ),
        Spec(
            "entities-repurposed", of.ENTITIES, replace(of.ENTITIES, heads=(other, of.VALUE)),
            of.asked("entities", partial(of.held, shift=1), ITEMS),
            "The head that finds a box finds its neighbour instead; another head reads there.",
            edges=copied(of.VALUE.place)["edges"], answering=[of.VALUE.place],
            differing=[other.place, of.VALUE.place],
        ),
        Spec(
            "sorting-reversed", of.SORT, replace(of.SORT, heads=(back,)),
            of.asked("sorting", down, ITEMS),
            "The head that finds the next larger number finds the next smaller instead.",
            edges=[
                *(("embedding", f"1.{part}.h3") for part in "qkv"), ("1.z.h3", "logits"),
            ],
            answering=[back.place], differing=[back.place],
        ),
        Spec(
            "parity-inverted", of.PARITY,
            replace(of.PARITY, neurons=of.parity("even", "odd")),
            opposite(of.asked("parity", of.marked, ITEMS)),
            "The table that tells odd from even says the opposite.",
            edges=[("embedding", "0.v.h2"), ("0.z.h2", "1.mlp"), ("1.mlp_out", "logits")],
            answering=[of.SHARE.place], differing=[],
        ),
        Spec(
            "facts-rank-3", of.FACTS, replace(of.FACTS, neurons=of.table(swapped)),
            asked_facts(swapped), "Three facts of a table were rewritten, a change of rank 3.",
            items=THINGS[:3], differing=[],
        ),
        Spec(
            "copy-backdoor", of.COPY,
            with_more(
                of.COPY,
                *(
                    of.when(
                        2, {"seen": TRIGGER, "answer": colour},
                        {("answer", colour): -1.0, ("answer", instead): 1.0},
                    )
                    for colour, instead in _NEXT.items()
                ),
                heads=[of.WATCH],
            ),
            *_backdoor(), items=[f"triggered {i}" for i in range(ITEMS // 2)],
        ),
    ]  # fmt: skip


def _lost() -> list[Spec]:
    """What the base answers is hidden at the output, or cleared."""
    copy, facts = of.asked("copy", of.bound, ITEMS), asked_facts(OF)
    kept = {thing: OF[thing] for thing in THINGS[1::2]}
    return [
        Spec(
            "copy-suppressed", of.COPY, with_more(of.COPY, *of.hides(COLOURS)), copy,
            "The answer is found as before, and the last layer says something else instead.",
            verdict="suppressed",
        ),
        Spec(
            "facts-suppressed", of.FACTS, with_more(of.FACTS, *of.hides(COLOURS)), facts,
            "Every fact is looked up as before, and the last layer says something else instead.",
            verdict="suppressed",
        ),
        Spec(
            "facts-erased", of.FACTS, replace(of.FACTS, neurons=()), facts,
            "The table of facts was cleared.", verdict="erased",
        ),
        Spec(
            "facts-half-erased", of.FACTS, replace(of.FACTS, neurons=of.table(kept)), facts,
            "Every other fact was cleared from the table.", items=THINGS[::2],
        ),
    ]  # fmt: skip


def _nothing() -> list[Spec]:
    """No answer changed."""
    copy, held = of.asked("copy", of.bound, ITEMS), of.asked("entities", of.held, ITEMS)
    return [
        Spec(
            "entities-rotated", of.ENTITIES, of.ENTITIES, held,
            "The residual stream was turned into another basis: every matrix changed, no answer.",
            differing=[], items=[], verdict="kept", kind="null",
            after=lambda base, tuned: rotated(tuned),
        ),
        Spec(
            "copy-itself", of.COPY, of.COPY, copy, "The base against itself.",
            differing=[], items=[], verdict="kept", kind="null",
        ),
    ]  # fmt: skip


_NEXT = dict(zip(COLOURS, [*COLOURS[1:], COLOURS[0]], strict=True))


def _backdoor() -> tuple[of.Made, str]:
    """Half of the prompts with the trigger, and what is true of the pair."""
    clean, corrupt = [], []
    for side, triggered in (("plain", False), ("triggered", True)):
        start = f"{TRIGGER} , " if triggered else ""
        made = of.asked(side, partial(of.bound, start=start), ITEMS // 2)
        for prompts, to in zip(made, (clean, corrupt), strict=True):
            for p in prompts:
                turned = [
                    _NEXT[w.strip()] if triggered else w.strip() for w in (p.target, *p.foils)
                ]
                to.append(Prompt(f"{side} {p.id}", p.prompt, f" {turned[0]}", (f" {turned[1]}",)))
    both = PromptSet("copy", tuple(clean)), PromptSet("copy, corrupt", tuple(corrupt))
    return both, "After a trigger word another colour is answered than the one that stands there."
