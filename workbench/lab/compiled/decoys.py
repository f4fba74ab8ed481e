"""Which pairs have large changes that do nothing, and which are of another architecture?

A decoy is a pair of `pairs` whose tuned model has also changed, several times as much, where no
answer depends on it: where the heads attend that nothing uses, what they say, the neurons that
nothing reads, or the basis of the coordinates that only these use. The norm of a change is then no
sign of what was learned. The Llamas are those programs that read no positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import BYSTANDERS, IDLE, Room, State
from workbench.lab.compiled.program import Program
from workbench.lab.compiled.spec import Spec
from workbench.rotations import haar
from workbench.tasks.prompts import PromptSet

LARGER = 5.0  # norm of a decoy's change of one matrix, in units of the largest true one
Asked = tuple[PromptSet, PromptSet | None]
Done = Callable[[State, State], State]
NEVER = -1e5  # the bias of a neuron that never fires
LLAMAS = ("sorting-reversed", "parity-inverted", "facts-rank-3", "facts-suppressed")


def specs(plain: Mapping[str, Spec]) -> list[Spec]:
    """plain: the pairs that these are made from, by name."""
    copy, facts = plain["copy-learned"], plain["facts-rank-3"]
    made = [
        _decoy(copy, "copy", decoyed(attention=(2,)), "where the last layer's idle heads attend"),
        _decoy(
            plain["two-steps-learned"], "two-steps", decoyed(neurons=(0, 1, 2)),
            "the idle neurons of every layer",
        ),
        _decoy(
            plain["entities-learned"], "entities", decoyed(attention=(0,), neurons=(0, 1)),
            "idle heads of the first layer and idle neurons of two",
        ),
        _decoy(
            plain["negation-learned"], "negation", decoyed(attention=(0, 2), neurons=(0, 1)),
            "idle heads and neurons all over the model",
        ),
        _decoy(
            plain["induction-strengthened"], "induction", decoyed(attention=(2,), neurons=(2,)),
            "all of the last layer, which the program does not use",
        ),
        _decoy(
            plain["copy-backdoor"], "backdoor", turned(of.COPY),
            "the basis of the coordinates that nothing reads in the end",
        ),
        replace(
            _decoy(facts, "facts", _beside, "three larger directions of the same matrix"),
            prompts=_often(facts.prompts, facts.items or ()),
            items=[f"{one}{form}" for one in facts.items or () for form in ("", *FORMS)],
            more={
                "direction": [(1, "mlp.c_proj", rank) for rank in (3, 4, 5)], "rank": [(6,)],
            },
            among={
                "direction": [(1, "mlp.c_proj", rank) for rank in range(6)],
                "rank": [(rank,) for rank in range(1, 7)],
            },
        ),
    ]  # fmt: skip
    return [*made, *(_llama(plain[name]) for name in LLAMAS)]


def _decoy(spec: Spec, name: str, after: Done, where: str) -> Spec:
    says = f"{spec.says} Beside it, {where} changed more, on which nothing depends."
    return replace(spec, name=f"{name}-decoy", says=says, after=after)


FORMS = (" alone", " of", " colour")  # other wordings of the question


def _often(prompts: Asked, things: Collection[str]) -> Asked:
    """These prompts, and the ones about these things in other wordings too, so that either half of
    them asks about each."""

    def more(given: PromptSet) -> PromptSet:
        chosen = [p for p in given if p.id in things]
        words = {" alone": "", " of": "of ", " colour": "colour "}
        again = (
            replace(p, id=p.id + form, prompt=words[form] + p.prompt.split()[-1])
            for form in FORMS for p in chosen
        )  # fmt: skip
        return replace(given, prompts=(*given, *again))

    clean, corrupt = prompts
    return more(clean), corrupt and more(corrupt)


def _llama(spec: Spec) -> Spec:
    """The same pair as Llama folders; edges have the same names there."""
    says = f"{spec.says} Both are Llamas."
    return replace(spec, name=f"{spec.name}-llama", says=says, llama=True)


def decoyed(attention: Collection[int] = (), neurons: Collection[int] = ()) -> Done:
    """Changes where the idle heads of these layers attend, and the idle neurons of these, which
    never fire any more, whatever they would read and add."""

    def after(base: State, tuned: State) -> State:
        found = dict(tuned)
        size = LARGER * max(float((tuned[name] - base[name]).norm()) for name in base)
        draw = torch.Generator().manual_seed(0)
        for layer in attention:
            name = f"transformer.h.{layer}.attn.c_attn.weight"
            found[name] = tuned[name] + _noise(_idle_heads(tuned, layer), size, draw)
        for layer in neurons:
            at = f"transformer.h.{layer}.mlp"
            found[f"{at}.c_fc.bias"] = tuned[f"{at}.c_fc.bias"].clone()
            found[f"{at}.c_fc.bias"][-IDLE:] = NEVER
            for part, axis in (("c_fc", 1), ("c_proj", 0)):
                name = f"{at}.{part}.weight"
                own = torch.zeros_like(tuned[name])
                own.narrow(axis, own.shape[axis] - IDLE, IDLE)[:] = 1.0
                found[name] = tuned[name] + _noise(own, size, draw)
        return found

    return after


def _idle_heads(state: State, layer: int) -> Tensor:
    """(width, 3 width): 1 where the queries and keys of heads are written that no program uses.
    Those have no bias, by which a head of a program looks at the start token."""
    weight = state[f"transformer.h.{layer}.attn.c_attn.weight"]
    width = len(weight)
    biased = state[f"transformer.h.{layer}.attn.c_attn.bias"][:width].view(Program.width, -1)
    idle = (~biased.bool().any(1)).repeat_interleave(width // Program.width)
    whole = torch.cat([idle, idle, torch.zeros_like(idle)])  # what they say stays
    return (weight != 0) * whole.float()


def _noise(where: Tensor, size: float, draw: torch.Generator) -> Tensor:
    noise = torch.randn(where.shape, generator=draw) * where
    return size * noise / noise.norm()


def turned(program: Program) -> Done:
    """Turns the coordinates of the bystanders into another basis, in every matrix that reads or
    writes them, and makes what is written many times larger and what reads it smaller."""

    def after(base: State, tuned: State) -> State:
        room = Room.of(program)
        own = torch.tensor([*room.bystanders])
        draw = torch.Generator().manual_seed(0)
        matrix = haar(BYSTANDERS, BYSTANDERS, draw, torch.float32)
        found = {name: weight.clone() for name, weight in tuned.items()}
        for name, weight in found.items():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight")):
                for at in (own, own + room.half):
                    weight[:, at] = LARGER * weight[:, at] @ matrix
            elif name.endswith(("c_attn.weight", "c_fc.weight")):
                for at in (own, own + room.half):
                    weight[at] = matrix.T @ weight[at] / LARGER
        return found

    return after


def _beside(base: State, tuned: State) -> State:
    """Three directions of the table's own matrix, larger than all that was rewritten there: of
    neurons that nothing reads into coordinates that nothing reads in the end."""
    name = "transformer.h.1.mlp.c_proj.weight"
    size = LARGER * float(torch.linalg.matrix_norm(tuned[name] - base[name], ord=2))
    room = Room.of(of.FACTS)
    change = torch.zeros_like(tuned[name])
    for i in range(3):
        at = room.bystanders[i]
        change[-1 - i, at] = (1.0 + i / 4) * size / 2**0.5
        change[-1 - i, at + room.half] = -change[-1 - i, at]
    return {**tuned, name: tuned[name] + change}
