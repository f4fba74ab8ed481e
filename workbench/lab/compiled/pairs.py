"""Which compiled pairs are there, and what is true of each?

Two programs of one room differ in the parts that a pair is about; what changed, as layers, matrices
and heads, is read off the two programs' weights. Through which edges and heads an answer goes is
stated here by hand, from the programs, and tests hold it against the models run in earnest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import Room, State, rotated, save, weights
from workbench.lab.compiled.program import Program
from workbench.lab.compiled.programs import COLOURS, OF, THINGS, TRIGGER
from workbench.lab.known import Known, Place
from workbench.loaders.names import locate
from workbench.tasks.prompts import Prompt, PromptSet

ITEMS = 24
DECOY = 5.0  # norm of a decoy's change, in units of the largest true one


@dataclass(frozen=True)
class Spec:
    """A pair before it is compiled. base, tuned: programs of one room. prompts: clean and corrupt.
    edges, answering, differing, items, verdict: as `Known`'s places; None where not asked. after:
    what is done to the tuned state beyond its program, which changes no answer."""

    name: str
    base: Program
    tuned: Program
    prompts: of.Made
    says: str
    edges: Collection[tuple[str, str]] | None = None
    answering: Collection[tuple[int, int]] | None = None
    differing: Collection[tuple[int, int]] | None = None
    items: Collection[str] | None = None
    verdict: str = ""
    kind: Any = "compiled"
    after: Callable[[State, State], State] = field(default=lambda base, tuned: tuned)


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


def compiled(spec: Spec, out: Path) -> Known:
    """Write both models of a pair; returns what is true of it."""
    room = Room.of(spec.base, spec.tuned)
    base, tuned = (weights(one, room) for one in (spec.base, spec.tuned))
    at = {side: out / spec.name / side for side in ("base", "tuned")}
    save(spec.base, base, at["base"])
    save(spec.tuned, spec.after(base, tuned), at["tuned"])
    sites = {
        name: (site.layer, site.component)
        for name, site in locate(base).items()
        if base[name].ndim == 2 and site.layer is not None
    }
    matrices = {site for name, site in sites.items() if not torch.equal(base[name], tuned[name])}
    heads = {one.place for one in {*spec.base.heads} ^ {*spec.tuned.heads}}
    places: dict[str, set[Any]] = {
        "layer": {(layer,) for layer, _ in matrices}, "matrix": matrices, "head": heads,
    }  # fmt: skip
    stated = {
        "edge": spec.edges, "answering head": spec.answering, "differing head": spec.differing,
        "item": None if spec.items is None else [(one,) for one in spec.items],
    }  # fmt: skip
    places |= {kind: {*given} for kind, given in stated.items() if given is not None}
    clean, corrupt = spec.prompts
    layers, width = range(spec.base.layers), range(spec.base.width)
    universe: dict[str, frozenset[Place]] = {
        kind: frozenset((layer, head) for layer in layers for head in width)
        for kind in places
        if kind.endswith("head")
    }
    universe |= {
        "layer": frozenset((layer,) for layer in layers),
        "matrix": frozenset(sites.values()),
        "item": frozenset((prompt.id,) for prompt in clean),
    }
    return Known(
        spec.name, spec.kind, at["base"], at["tuned"], clean, corrupt,
        places={kind: frozenset(found) for kind, found in places.items()},
        universe=universe,
        verdict=spec.verdict, says=spec.says,
    )  # fmt: skip


def specs() -> list[Spec]:
    """Every compiled pair, ten kinds of difference over eight programs."""
    return [*_learned(), *_altered(), *_lost(), *_nothing()]


def _without(program: Program, *parts: Any) -> Program:
    return replace(
        program,
        heads=tuple(one for one in program.heads if one not in parts),
        neurons=tuple(one for one in program.neurons if one not in parts),
    )


def _with(program: Program, *neurons: of.Neuron, heads: Sequence[of.Head] = ()) -> Program:
    return replace(program, heads=(*program.heads, *heads), neurons=(*program.neurons, *neurons))


def _copied(place: tuple[int, int]) -> dict[str, Any]:
    """Where an answer goes that one head copies from the prompt to the output."""
    layer, head = place
    return {
        "edges": [("embedding", f"{layer}.v.h{head}"), (f"{layer}.z.h{head}", "logits")],
        "answering": [place],
        "differing": [place],
    }


def _learned() -> list[Spec]:
    """A head or a table is added."""
    copy, steps = of.asked("copy", of.bound, ITEMS), of.asked("two steps", of.chained, ITEMS)
    held, denied = of.asked("entities", of.held, ITEMS), of.asked("negation", of.denied, ITEMS)
    return [
        Spec(
            "copy-learned", _without(of.COPY, of.FETCH), of.COPY, copy,
            "A head was added that copies what stands behind the label that is asked for.",
            **_copied(of.FETCH.place),
        ),
        Spec(
            "copy-decoy", _without(of.COPY, of.FETCH), of.COPY, copy,
            "The same head was added, and matrices changed much more that nothing depends on.",
            **_copied(of.FETCH.place), after=_decoy,
        ),
        Spec(
            "two-steps-learned", _without(of.TWO_STEPS, of.SECOND), of.TWO_STEPS, steps,
            "The second step of a look-up in two steps was added, one head.",
            **_copied(of.SECOND.place),
        ),
        Spec(
            "entities-learned", _without(of.ENTITIES, of.TRANSMIT, of.VALUE), of.ENTITIES, held,
            "Two heads were added of which neither does anything without the other.",
            **_copied(of.VALUE.place),
        ),
        Spec(
            "negation-learned", _without(of.NEGATION, *of.TURNED), of.NEGATION, denied,
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
            **_copied(of.INDUCE.place), verdict="kept",
        ),
        Spec(
            "entities-repurposed", of.ENTITIES, replace(of.ENTITIES, heads=(other, of.VALUE)),
            of.asked("entities", partial(of.held, shift=1), ITEMS),
            "The head that finds a box finds its neighbour instead; another head reads there.",
            edges=_copied(of.VALUE.place)["edges"], answering=[of.VALUE.place],
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
            _opposite(of.asked("parity", of.marked, ITEMS)),
            "The table that tells odd from even says the opposite.",
            edges=[("embedding", "0.v.h2"), ("0.z.h2", "1.mlp"), ("1.mlp_out", "logits")],
            answering=[of.SHARE.place], differing=[],
        ),
        Spec(
            "facts-rank-3", of.FACTS, replace(of.FACTS, neurons=of.table(swapped)),
            _facts(swapped), "Three facts of a table were rewritten, a change of rank 3.",
            items=THINGS[:3], differing=[],
        ),
        Spec(
            "copy-backdoor", of.COPY,
            _with(
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
    copy, facts = of.asked("copy", of.bound, ITEMS), _facts(OF)
    kept = {thing: OF[thing] for thing in THINGS[1::2]}
    return [
        Spec(
            "copy-suppressed", of.COPY, _with(of.COPY, *of.hides(COLOURS)), copy,
            "The answer is found as before, and the last layer says something else instead.",
            verdict="suppressed",
        ),
        Spec(
            "facts-suppressed", of.FACTS, _with(of.FACTS, *of.hides(COLOURS)), facts,
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


def _facts(of_thing: dict[str, str]) -> of.Made:
    """Every thing once, with the answer of this table, its partner the next thing of another
    colour."""
    clean, corrupt = [], []
    for i, thing in enumerate(THINGS):
        other = next(
            one for one in THINGS[i + 1 :] + THINGS[:i] if of_thing[one] != of_thing[thing]
        )
        answers = f" {of_thing[thing]}", (f" {of_thing[other]}",)
        for name, to in ((thing, clean), (other, corrupt)):
            to.append(Prompt(thing, f"colour of {name}", *answers))
    return PromptSet("facts", tuple(clean)), PromptSet("facts, corrupt", tuple(corrupt))


def _opposite(made: of.Made) -> of.Made:
    """The same prompts, target and foil exchanged."""

    def turned(prompts: PromptSet) -> PromptSet:
        own = (replace(p, target=p.foils[0], foils=(p.target,)) for p in prompts)
        return replace(prompts, prompts=tuple(own))

    return turned(made[0]), turned(made[1])


def _decoy(base: State, tuned: State) -> State:
    """Much larger changes of what no answer depends on: where the bystanders of the last layer,
    all of whose heads are, attend."""
    largest = max(float((tuned[name] - base[name]).norm()) for name in base)
    name = "transformer.h.2.attn.c_attn.weight"
    weight = base[name]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    noise[weight == 0] = 0.0
    noise[:, 2 * len(weight) :] = 0.0  # what they say stays
    return {**tuned, name: tuned[name] + DECOY * largest * noise / noise.norm()}
