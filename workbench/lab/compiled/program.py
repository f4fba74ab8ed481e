"""What is a program that a transformer can be? Heads that select and aggregate, and neurons that
look up, on streams of known meaning.

A stream is a subspace of the residual stream with one direction a label: "token" (which word stands
here) and "position" (which place this is) come from the embeddings, all others are written by heads
and neurons. A head reads one stream as query, one as key and one as value, and adds what it found
to another; that is select-aggregate of RASP (Weiss, Goldberg & Yahav 2021, arXiv 2106.06981;
compiled by Lindner et al. 2023, Tracr, arXiv 2301.05062). Nothing here knows of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import WorkbenchError
from workbench.lab.words import SPECIAL

TOKEN, POSITION = "token", "position"
# Score of a key for a query, both as labels; 1 selects, 0 does not, more is preferred.
Match = Callable[[str, str], float]


def same(query: str, key: str) -> float:
    """Selects the keys that have the query's label."""
    return float(query == key)


def after(steps: int) -> Match:
    """Selects the position that lies so many steps after the query's; before it, where negative."""
    return lambda query, key: float(int(key) == int(query) + steps)


def renamed(names: Mapping[str, str]) -> Match:
    """Selects the keys whose label the query's is mapped to."""
    return lambda query, key: float(names.get(query) == key)


@dataclass(frozen=True)
class Head:
    """One attention head: at every token, the mean of `value` over the tokens whose `key` matches
    its `query`, added to `into` with a factor `strength`. Where nothing matches it reads the start
    token, and adds what that says (its label is no word of the program's)."""

    layer: int
    head: int
    query: str
    key: str
    value: str
    into: str
    match: Match = same
    strength: float = 1.0

    @property
    def place(self) -> tuple[int, int]:
        return self.layer, self.head


@dataclass(frozen=True)
class Neuron:
    """One hidden unit of an MLP: relu(bias + sum of weight x what is read), times what it adds.

    reads, adds: (stream, label) -> weight.
    """

    layer: int
    reads: Mapping[tuple[str, str], float]
    adds: Mapping[tuple[str, str], float]
    bias: float = 0.0


def rule(layer: int, when: Mapping[str, str], adds: Mapping[tuple[str, str], float]) -> Neuron:
    """The neuron that is 1 where every stream of `when` has the label named there, 0 elsewhere."""
    return Neuron(layer, dict.fromkeys(when.items(), 1.0), adds, 1.0 - len(when))


@dataclass(frozen=True)
class Program:
    """A transformer in words.

    words: the vocabulary, beside the special tokens. positions: the longest text in tokens, the
    start token among them. streams: name -> labels of those beside token and position; "words"
    and "positions" stand for all of these. says: stream -> weight of its words in the logits.
    layers, heads: the model's shape.
    """

    name: str
    words: tuple[str, ...]
    positions: int
    streams: Mapping[str, tuple[str, ...] | str]
    heads: tuple[Head, ...] = ()
    neurons: tuple[Neuron, ...] = ()
    says: Mapping[str, float] = field(default_factory=lambda: {"answer": 10.0})
    layers: int = 3
    width: int = 4  # heads of a layer

    def __post_init__(self) -> None:
        known = {*self.labels}
        for one in self.heads:
            if one.layer >= self.layers or one.head >= self.width:
                self._refuse(f"a head at {one.place}", f"{self.layers} layers of {self.width}")
            for stream in (one.query, one.key, one.value, one.into):
                if stream not in known:
                    self._refuse(f"a stream {stream!r}", ", ".join(sorted(known)))
            if {*self.labels[one.value]} - {*self.labels[one.into], *SPECIAL}:
                self._refuse(f"labels of {one.value!r}", f"those of {one.into!r}")
        if len({one.place for one in self.heads}) < len(self.heads):
            self._refuse("two heads at one place", "one at each")
        for neuron in self.neurons:
            for stream, label in (*neuron.reads, *neuron.adds):
                if label not in self.labels.get(stream, ()):
                    self._refuse(f"a label {label!r}", f"those of {stream!r}")

    def _refuse(self, found: str, expected: str) -> None:
        raise WorkbenchError(f"Program {self.name!r} names {found}; it has {expected}.")

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Every stream with its labels, in the order in which they lie in the residual stream."""
        places = tuple(str(i) for i in range(self.positions))
        named: dict[str, Any] = {"words": self.words, "positions": places}
        own = {name: named[of] if isinstance(of, str) else of for name, of in self.streams.items()}
        return {TOKEN: (*SPECIAL, *self.words), POSITION: places, **own}

    @property
    def edges(self) -> set[tuple[str, str]]:
        """(sender, receiver) of all that the program hands on, named as in the table of
        `patching.attribution`: who writes a stream, and who reads it later."""
        writers: list[tuple[float, str, str]] = [
            (-1.0, "embedding", TOKEN), (-1.0, "embedding", POSITION),
            *((h.layer, f"{h.layer}.z.h{h.head}", h.into) for h in self.heads),
            *((n.layer + 0.5, f"{n.layer}.mlp_out", s) for n in self.neurons for s, _ in n.adds),
        ]  # fmt: skip
        readers: list[tuple[float, str, str]] = [
            *(
                (h.layer, f"{h.layer}.{part}.h{h.head}", stream)
                for h in self.heads
                for part, stream in (("q", h.query), ("k", h.key), ("v", h.value))
            ),
            *((n.layer + 0.5, f"{n.layer}.mlp", s) for n in self.neurons for s, _ in n.reads),
            *((float(self.layers), "logits", stream) for stream in self.says),
        ]
        return {
            (sender, receiver)
            for when, sender, wrote in writers
            for later, receiver, read in readers
            if wrote == read and when < later
        }
