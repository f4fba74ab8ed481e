"""What is a compiled pair before it is compiled, and what of its truth do its weights tell?

Two programs of one room differ in the parts that a pair is about; what changed, as layers, matrices
and heads, is read off the two programs' weights; a prefix changes none. All else that is true is
stated by hand, from the programs, and tests hold it against the models run in earnest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import Room, State, save, save_prefix, weights
from workbench.lab.compiled.llama import llama, save_llama
from workbench.lab.compiled.program import Program
from workbench.lab.known import Known, Place
from workbench.loaders.names import locate
from workbench.tasks.prompts import Prompt, PromptSet

ITEMS = 24


@dataclass(frozen=True)
class Spec:
    """A pair before it is compiled. base, tuned: programs of one room. prompts: clean and corrupt.
    edges, answering, differing, needed, items, verdict: as `Known`'s places; None where not asked.
    more, among: further kinds of place, and what there is of them. siblings: further models.
    after: what is done to the tuned state beyond its program, which changes no answer. llama:
    whether both are written as Llama folders. prefix: the keys and values, (layer, 2, head, token,
    d_head), of an adapter over the base that is the tuned side instead of a program."""

    name: str
    base: Program
    tuned: Program
    prompts: tuple[PromptSet, PromptSet | None]
    says: str
    edges: Collection[tuple[str, str]] | None = None
    answering: Collection[tuple[int, int]] | None = None
    differing: Collection[tuple[int, int]] | None = None
    needed: Collection[tuple[int, int]] | None = None
    items: Collection[str] | None = None
    verdict: str = ""
    kind: Any = "compiled"
    after: Callable[[State, State], State] = field(default=lambda base, tuned: tuned)
    more: Mapping[str, Collection[Place]] = field(default_factory=dict)
    among: Mapping[str, Collection[Place]] = field(default_factory=dict)
    siblings: Mapping[str, Program] = field(default_factory=dict)
    tasks: Mapping[str, PromptSet] = field(default_factory=dict)
    llama: bool = False
    prefix: Callable[[Room], Tensor] | None = None


def compiled(spec: Spec, out: Path) -> Known:
    """Write the models of a pair; returns what is true of it."""
    room = Room.of(spec.base, spec.tuned, *spec.siblings.values())
    base, tuned = (weights(one, room) for one in (spec.base, spec.tuned))
    changed = tuned
    tuned = spec.after(base, tuned)
    if spec.llama:
        base, changed, tuned = (llama(one) for one in (base, changed, tuned))
    write = save_llama if spec.llama else save
    at = {side: out / spec.name / side for side in ("base", "tuned")}
    write(spec.base, base, at["base"])
    if spec.prefix is None:
        write(spec.tuned, tuned, at["tuned"])
        found = _read_off(spec, base, changed)
    else:
        save_prefix(spec.base, spec.prefix(room), at["base"], at["tuned"])
        found = {}
    siblings = {name: out / spec.name / name for name in spec.siblings}
    for name, one in spec.siblings.items():
        write(one, weights(one, room), siblings[name])
    places = {**found, **_stated(spec)}
    return Known(
        spec.name, spec.kind, at["base"], at["tuned"], *spec.prompts,
        places={kind: frozenset(found) for kind, found in places.items()},
        universe=_universe(spec, base, places),
        verdict=spec.verdict, says=spec.says, siblings=siblings, tasks=spec.tasks,
    )  # fmt: skip


def _sites(state: State) -> dict[str, Place]:
    return {
        name: (site.layer, site.component)
        for name, site in locate(state).items()
        if state[name].ndim == 2 and site.layer is not None
    }


def _read_off(spec: Spec, base: State, tuned: State) -> dict[str, Collection[Any]]:
    """What changed, without what was done beyond the program."""
    sites = _sites(base)
    matrices = {site for name, site in sites.items() if not torch.equal(base[name], tuned[name])}
    heads = {one.place for one in {*spec.base.heads} ^ {*spec.tuned.heads}}
    return {"layer": {(layer,) for layer, _ in matrices}, "matrix": matrices, "head": heads}


def _stated(spec: Spec) -> dict[str, Collection[Any]]:
    """What is stated by hand; who writes the answer follows from the edges."""
    stated = {
        "edge": spec.edges, "answering head": spec.answering, "differing head": spec.differing,
        "needed head": spec.needed, "writing head": spec.answering and _writing(spec.edges or ()),
        "item": None if spec.items is None else [(one,) for one in spec.items], **spec.more,
    }  # fmt: skip
    return {kind: given for kind, given in stated.items() if given is not None}


def _writing(edges: Collection[tuple[str, str]]) -> list[tuple[int, int]]:
    """The heads from which an edge goes to the logits."""
    names = [sender.split(".z.h") for sender, receiver in edges if receiver == "logits"]
    return [(int(name[0]), int(name[1])) for name in names if len(name) == 2]


def _universe(
    spec: Spec, base: State, places: Mapping[str, Collection[Any]]
) -> dict[str, frozenset[Place]]:
    layers, width = range(spec.base.layers), range(spec.base.width)
    heads = frozenset((layer, head) for layer in layers for head in width)
    found = {kind: heads for kind in places if kind.endswith("head")}
    found |= {
        "layer": frozenset((layer,) for layer in layers),
        "matrix": frozenset(_sites(base).values()),
        "item": frozenset((prompt.id,) for prompt in spec.prompts[0]),
    }
    return found | {kind: frozenset(of_kind) for kind, of_kind in spec.among.items()}


def without(program: Program, *parts: Any) -> Program:
    """The program less these heads and neurons."""
    return replace(
        program,
        heads=tuple(one for one in program.heads if one not in parts),
        neurons=tuple(one for one in program.neurons if one not in parts),
    )


def with_more(program: Program, *neurons: of.Neuron, heads: Sequence[of.Head] = ()) -> Program:
    """The program and these."""
    return replace(program, heads=(*program.heads, *heads), neurons=(*program.neurons, *neurons))


def copied(place: tuple[int, int]) -> dict[str, Any]:
    """Where an answer goes that one head copies from the prompt to the output."""
    layer, head = place
    return {
        "edges": [("embedding", f"{layer}.v.h{head}"), (f"{layer}.z.h{head}", "logits")],
        "answering": [place],
        "differing": [place],
    }


def asked_facts(
    of_thing: Mapping[str, str], things: Sequence[str] = of.THINGS, form: str = "colour"
) -> of.Made:
    """Each of these things once, with the answer of this table, its partner the next thing of
    another colour. form: the word by which it is asked for."""
    clean, corrupt = [], []
    for i, thing in enumerate(things):
        other = next(
            one for one in (*things[i + 1 :], *things[:i]) if of_thing[one] != of_thing[thing]
        )
        answers = f" {of_thing[thing]}", (f" {of_thing[other]}",)
        for name, to in ((thing, clean), (other, corrupt)):
            to.append(Prompt(thing, f"{form} of {name}", *answers))
    return PromptSet("facts", tuple(clean)), PromptSet("facts, corrupt", tuple(corrupt))


def opposite(made: of.Made) -> of.Made:
    """The same prompts, target and foil exchanged."""

    def turned(prompts: PromptSet) -> PromptSet:
        own = (replace(p, target=p.foils[0], foils=(p.target,)) for p in prompts)
        return replace(prompts, prompts=tuple(own))

    return turned(made[0]), turned(made[1])
