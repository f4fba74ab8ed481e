"""Which tokens of the prompt is an answer attributed to, by gradient times input?

With x_i the embedding of token i and f the log-probability of the answer, the attribution of a
token is |x_i . df/dx_i| (Shrikumar et al. 2016, arXiv 1605.01713v3; of embeddings summed over their
coordinates), and that of a span its tokens' share of the whole prompt's. It says what the answer is
sensitive to at this prompt, to first order: where a model is saturated a gradient is small though
all depends on the token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.tasks.batching import Row, in_batches, padded

Floats = NDArray[np.float64]


def spans_shares(
    model: Any, rows: Sequence[Row], names: Sequence[str], fill: int, batch_size: int
) -> Floats:
    """(names, prompts): the share of the prompt's attribution that lies in each span.

    rows: prompts with their answers. fill: the token with which shorter rows are filled.
    """
    found = np.zeros((len(names), len(rows)))

    def run(places: list[int]) -> list[Floats]:
        return _attributions(model, [rows[i] for i in places], fill)

    for places, made in in_batches([len(row.ids) for row in rows], batch_size, run):
        for place, own in zip(places, made, strict=True):
            spans = (rows[place].spans[name] for name in names)
            whole = own.sum()
            found[:, place] = [own[slice(*span)].sum() / whole if whole else 0.0 for span in spans]
    return found


def by_length(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    """(names, prompts): the share of the prompt's tokens that are of each span."""
    lengths = [[np.diff(row.spans[name])[0] / len(row.ids) for row in rows] for name in names]
    return np.array(lengths, dtype=float)


def _attributions(model: Any, rows: Sequence[Row], fill: int) -> list[Floats]:
    """|gradient . embedding| of each token of each prompt."""
    ids, mask = padded([row.fed for row in rows], fill)
    embedding = model.get_input_embeddings()
    place = embedding.weight.device
    with torch.enable_grad(), _leaf(embedding) as taken:
        logits = model(input_ids=ids.to(place), attention_mask=mask.to(place)).logits
        total = logits.new_zeros((), dtype=torch.float32)
        for own, row in zip(logits, rows, strict=True):
            start = len(row.ids) - 1
            said = own[start : start + len(row.answer)].float().log_softmax(-1)
            answer = torch.tensor(row.answer, device=said.device)[:, None]
            total = total + said.gather(1, answer).sum()
        (slope,) = torch.autograd.grad(total, taken)
    each = (slope.float() * taken[0].detach().float()).sum(-1).abs().double().cpu().numpy()
    return [own[: len(row.ids)] for own, row in zip(each, rows, strict=True)]


@contextmanager
def _leaf(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """What the embedding gives is a leaf of the graph, in the list behind the first call."""
    taken: list[Tensor] = []

    def cut(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        taken.append(out.detach().requires_grad_())
        return taken[-1]

    handle = embedding.register_forward_hook(cut)
    try:
        yield taken
    finally:
        handle.remove()
