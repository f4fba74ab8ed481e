"""Is the target what greedy decoding writes behind the prompt? Teacher-forced, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.tasks.batching import (
    encode,
    foil_tokens,
    goes_on_with,
    look_at,
    pad_id,
)
from workbench.tasks.forward import predicted
from workbench.tasks.prompts import Prompt

# Is shown each prompt's number and its target's logits, float32 (tokens, vocabulary), as they come.
Watch = Callable[[int, Tensor], None]


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    temperature: float,
    device: torch.device,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """A row per prompt, in order, see `tasks.answers`; a model that is ready to run."""
    encoded = [encode(tokenizer, p) for p in prompts]
    look_at(tokenizer, {p.id: e.ids for p, e in zip(prompts, encoded, strict=True)}, prompts)
    foils = [foil_tokens(tokenizer, p, e) for p, e in zip(prompts, encoded, strict=True)]
    rows: list[dict[str, Any]] = [{} for _ in prompts]
    run = predicted(model, encoded, batch_size, device, pad_id(tokenizer), behind=True)
    for index, logits in run:
        ids, start = encoded[index]
        scores, own = logits[:-1].float(), ids[start:]
        if watch is not None:
            watch(index, scores)
        best, then = scores.argmax(-1).tolist(), int(logits[-1].argmax())
        greedy = best == own
        rows[index] = {"id": prompts[index].id} | measured(scores, own, foils[index], temperature)
        rows[index] |= {
            "correct": greedy and not goes_on(tokenizer, own, then),
            "answer": _said(tokenizer, own, best, then),
        }
    return rows


def measured(
    scores: Tensor, own: Sequence[int], foils: Sequence[int], temperature: float
) -> dict[str, Any]:
    """What one target's logits (tokens, vocabulary) say of it. own: its tokens; foils: the first
    token of each foil that begins otherwise."""
    targets = torch.tensor(own, device=scores.device)[:, None]
    picked = scores.log_softmax(-1).gather(1, targets)
    sampled = (scores / temperature).log_softmax(-1).gather(1, targets)
    best_foil = scores[0, list(foils)].max().item() if len(foils) else float("nan")
    confidence, said = scores[0].softmax(-1).max(-1)
    return {
        "log_probability": picked.sum().item(),
        "logit_difference": scores[0, own[0]].item() - best_foil,
        "tokens": len(own),
        "said": said.item(),
        "confidence": confidence.item(),
        "energy": -scores[0].logsumexp(-1).item(),
        "first_correct": said.item() == own[0],
        "probability": sampled.sum().exp().item(),
    }


def goes_on(tokenizer: Any, said: Sequence[int], then: int) -> bool:
    """Whether the token `then` goes on with the last word or number of what was `said`."""
    if then in tokenizer.all_special_ids:
        return False
    own, whole = (str(tokenizer.decode(ids)) for ids in (list(said), [*said, then]))
    if own.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character still to come
        return True
    more = whole[len(own) :] if whole.startswith(own) else ""
    return goes_on_with(own, more)


def _said(tokenizer: Any, own: Sequence[int], best: Sequence[int], then: int) -> str:
    """What greedy decoding begins with, as far as the target's own tokens tell: up to the first
    that is another, and one more where all are the same."""
    same = next((i for i, (a, b) in enumerate(zip(own, best, strict=True)) if a != b), len(own))
    return str(tokenizer.decode([*own[:same], [*best, then][same]], skip_special_tokens=True))
