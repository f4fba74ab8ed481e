"""What does a vector of the residual stream say? Read by a model's head, or by the model itself.

    lens      the logits as if the model's last layer had put the vector out: its norm, its head
    repeat    the next token where the vector stands in for a word that the model is about to repeat

The first is the logit lens (nostalgebraist 2020) of a vector, the second the token identity prompt
of Patchscopes (Ghandeharioun et al. 2024, arXiv 2401.06102): "cat->cat", "hello->hello", "?", where
the state at "?" behind some layer is replaced by the vector, made as long as what it replaces. No
method is here, only how a vector is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sides import Sides
from workbench.tasks.batching import Row, batch

Floats = NDArray[np.float64]
REPEAT = "cat->cat\n1135->1135\nhello->hello\n?"


def seen_through(stream: Tensor, run: Rerun) -> Tensor:
    """Logits (1, batch, 1, vocabulary) of a stream at the last token, (batch, 1, width), as `run`'s
    model would give them had its last layer put it out: its own norm, head, scaling and caps."""
    return run.again([{_last(run.layout): stream}])


def heads_differ(run: Sides) -> bool:
    """Whether fine-tuning changed the final norm or the head (or the embedding it is tied to)."""
    layout = run.layout
    head: Any = layout.root.get_output_embeddings()
    named = {id(module): name for name, module in layout.root.named_modules()}
    behind = [name for name in (layout.structure.norm, named[id(head)]) if name]
    embed: Any = layout.root.get_input_embeddings()
    if getattr(head, "base_layer", head).weight is getattr(embed, "base_layer", embed).weight:
        behind.append(named[id(embed)])
    return any(name == p or name.startswith(f"{p}.") for name in run.elsewhere for p in behind)


def repeating(words: Any, spoken: Sequence[int], room: int | None = None) -> Row:
    """The prompt whose last token stands for what is to be repeated: that of the paper, or, where
    the tokenizer does not know its words or the model has no places for them, three tokens of
    `spoken` said twice each (as many as there are places for) and a fourth. room: the model's
    places; None: any number."""
    ids = words(REPEAT)["input_ids"]
    stop = words.eos_token_id
    ids = ids[:-1] if stop is not None and ids[-1:] == [stop] else ids
    known = words.unk_token_id is None or words.unk_token_id not in ids
    if known and (room is None or len(ids) <= room):
        return Row("repeat", ids)
    start = [] if words.bos_token_id is None else [words.bos_token_id]
    few = (list(dict.fromkeys(spoken)) * 4)[:4]
    twice = [token for own in few[:3] for token in (own, own)]
    if room is not None:
        twice = twice[: 2 * max(0, (room - len(start) - 1) // 2)]
    return Row("repeat", [*start, *twice, few[3]])


@dataclass(frozen=True)
class Reader:
    """A model that reads vectors, through one prompt that it was run on. size: how many at once.
    known: tokens, from the first id on, that are told; a head can have more rows."""

    run: Rerun
    size: int
    known: int

    @classmethod
    def of(cls, model: Any, row: Row, *, size: int, known: int, fill: int, device: str) -> Reader:
        inputs = batch([row], [0], device, fill)
        places = [Site("resid_post", layer) for layer in range(Layout(model).layers)]
        return cls(Rerun(model, inputs, places), size, known)

    def lens(self, vectors: Floats) -> Floats:
        """Logits (n, known) of vectors (n, width), less their mean over the tokens."""
        found = self._read(vectors, _last(self.run.layout))
        return (found - found.mean(-1, keepdim=True)).numpy()

    def repeat(self, vectors: Floats, layer: int) -> Floats:
        """Log-probabilities (n, known) of the next token with each of the vectors (n, width) behind
        a layer at the prompt's last token, as long as the state that it replaces."""
        place = Site("resid_post", layer, position=-1)
        size = float(self.run.read(place).cpu().double().norm())
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled = vectors * size / np.where(lengths > 0, lengths, 1)
        return self._read(scaled, place).log_softmax(-1).numpy()

    def _read(self, vectors: Floats, place: Site) -> Tensor:
        like = self.run.read(place)
        values = torch.from_numpy(np.ascontiguousarray(vectors)).to(like.device, like.dtype)
        found = [
            self.run.again([{place: one[None, None]} for one in part])[:, 0, 0, : self.known]
            for part in values.split(self.size)
        ]
        return torch.cat(found).cpu().double()


def percentiles(scores: Floats, tokens: Sequence[int]) -> Floats:
    """(n, tokens) the share of all tokens with a lower score than each of these, of equal ones
    half. scores: (n, vocabulary)."""
    made = []
    for own in scores:
        order, said = np.sort(own), own[list(tokens)]
        below, upto = (np.searchsorted(order, said, side=side) for side in ("left", "right"))
        made.append((below + (upto - below - 1) / 2) / max(len(own) - 1, 1))
    return np.stack(made)


def _last(layout: Layout) -> Site:
    return Site("resid_post", layout.layers - 1, position=-1)
