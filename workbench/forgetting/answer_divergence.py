"""How far did fine-tuning move the distribution of the answers? KL(base || tuned) on prompts.

At every token of the target, which is fed behind the prompt as both models read it when they are
scored, the two next-token distributions p (base) and q (tuned) over the vocabulary differ by

    KL(p || q) = sum_v p(v) (log p(v) - log q(v))    nats

and a prompt has the mean over its target's tokens. The mean over the prompts of the task that was
learned is the forward divergence that predicts forgetting in arXiv 2509.04259, there of the whole
distribution of answers, here along the target alone: what either model would have said behind
another answer is not seen. Base against itself gives exactly 0.

It misleads on a task that the base cannot do at all: there the divergence is that of being sure of
something else, about as large for every model that learned the task, and differences between models
are of how little they leave to the base's words.

The base's logits of a set are kept for the members to come, so that no pass is added; a set whose
logits are more than ROOM, and one whose answers are written out, which may be known already, is
read once more by both models, side by side.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from workbench.forgetting.side_answers import Side
from workbench.tasks.batching import encode
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import side_by_side
from workbench.tasks.scorers import Generation

ROOM = 2**27  # bytes of logits that are kept, of all sets together
Read = tuple[pd.DataFrame, list[Tensor] | None]
_KEPT: dict[tuple[object, ...], Read] = {}


def divergences(base: Tensor, tuned: Tensor) -> Tensor:
    """KL(base || tuned) in nats of each place. base, tuned: logits or log-probabilities (tokens,
    vocabulary) -> (tokens,), float64 on the CPU. If one vocabulary is padded to more entries, both
    are cut to those that they share."""
    width = min(base.shape[-1], tuned.shape[-1])
    ours, theirs = (one[..., :width].cpu().double().log_softmax(-1) for one in (base, tuned))
    p = ours.exp()
    # An entry that the base never says adds nothing, also where both logarithms are -inf.
    return torch.where(p > 0, p * (ours - theirs), 0.0).sum(-1)


def with_divergence(
    base: Side, tuned: Side, prompts: PromptSet
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the base's answers, the tuned model's with a column kl): `Side.answers` of both, and of each
    prompt the mean over its target's tokens of KL(base || tuned), nats."""
    if isinstance(prompts.scorer, Generation):
        before, kept = base.answers(prompts), None
    else:
        before, kept = _known(base, prompts)
    each = [float("nan")] * len(prompts)
    if kept is not None:

        def compare(index: int, theirs: Tensor) -> None:
            each[index] = float(divergences(kept[index], theirs).mean())

        after = tuned.watched(prompts, compare)
    else:
        after = tuned.answers(prompts)
        coded = [encode(base.words, prompt) for prompt in prompts]
        models = (base.model, tuned.model)
        for index, sides in side_by_side(models, base.words, coded, base.batch_size):
            each[index] = float(divergences(*sides).mean())
    return before, after.assign(kl=each)


def _known(base: Side, prompts: PromptSet) -> Read:
    """`_read`, once for all members; the oldest sets make room for a new one."""
    found = base.once(("logits", prompts.fingerprint), lambda: _read(base, prompts), _KEPT)
    while len(_KEPT) > 1 and sum(map(_bytes, _KEPT.values())) > ROOM:
        _KEPT.pop(next(iter(_KEPT)))
    return found


def _read(base: Side, prompts: PromptSet) -> Read:
    """The base's answers, and its logits of every target, float32 (tokens, vocabulary), on the CPU;
    None if they are more than ROOM."""
    kept: dict[int, Tensor] = {}
    size = 0

    def keep(index: int, logits: Tensor) -> None:
        nonlocal size
        size += 4 * logits.numel()
        if size <= ROOM:
            kept[index] = logits.cpu().clone()  # a view would hold its whole batch

    before = base.watched(prompts, keep)
    return before, [kept[index] for index in range(len(prompts))] if size <= ROOM else None


def _bytes(read: Read) -> int:
    return sum(4 * one.numel() for one in read[1] or ())
