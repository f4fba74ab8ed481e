"""How well does a model answer prompts, and how well does it predict texts?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F

from workbench.errors import WorkbenchError
from workbench.loaders.devices import entry, home
from workbench.progress import progress
from workbench.tasks.batching import (
    Encoded,
    encode,
    foil_tokens,
    goes_on_with,
    in_batches,
    look_at,
    pad_id,
    padded,
)
from workbench.tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SOON = 2.0  # seconds of reading that no bar is drawn of
ANSWERED = (
    "id", "log_probability", "correct", "logit_difference", "tokens", "said", "confidence",
    "first_correct", "probability",
)  # fmt: skip


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt] | Any,
    *,
    batch_size: int = 32,
    temperature: float = 1.0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Score every prompt's target, teacher-forced; one row per prompt, in order.

    Columns: id; log_probability, the sum over the target's tokens in nats; correct, whether greedy
    decoding gives exactly the target: every token of it is the most likely one, and what is most
    likely behind it does not go on with its last word or number ("9" is no answer where "908" is
    said; see `goes_on`); logit_difference, the first target token's logit minus the largest among
    the foils' first tokens (NaN without foils); tokens, how many the target has; said, the most
    likely first token; confidence, its probability; first_correct, whether it is the target's;
    probability, that of the whole target where its tokens are sampled at `temperature`, whatever
    is then said behind it, like log_probability.

    Special tokens are added as the tokenizer does by default. Foils that begin with the target's
    own first token say nothing at that place and are left out of logit_difference. device: where
    to run; None leaves the model where it is. Raises where the tokenizer gives no offsets or a
    target has no token of its own.
    """
    prompts = list(prompts)
    encoded = [encode(tokenizer, p) for p in prompts]
    look_at(tokenizer, {p.id: e.ids for p, e in zip(prompts, encoded, strict=True)}, prompts)
    foils = [list(foil_tokens(tokenizer, p, e)) for p, e in zip(prompts, encoded, strict=True)]
    rows: list[dict] = [{} for _ in prompts]
    with _ready(model, device) as where:
        fill = pad_id(tokenizer)
        for index, logits in _logits(model, encoded, batch_size, where, fill, behind=True):
            ids, start = encoded[index]
            targets = torch.tensor(ids[start:], device=where)
            scores, then = logits[:-1].float(), int(logits[-1].argmax())
            greedy = bool((scores.argmax(-1) == targets).all())
            picked = scores.log_softmax(-1).gather(1, targets[:, None])
            sampled = (scores / temperature).log_softmax(-1).gather(1, targets[:, None])
            best_foil = scores[0, foils[index]].max().item() if foils[index] else float("nan")
            confidence, said = scores[0].softmax(-1).max(-1)
            rows[index] = {
                "id": prompts[index].id,
                "log_probability": picked.sum().item(),
                "correct": greedy and not goes_on(tokenizer, ids[start:], then),
                "logit_difference": scores[0, targets[0]].item() - best_foil,
                "tokens": len(targets),
                "said": said.item(),
                "confidence": confidence.item(),
                "first_correct": bool(said == targets[0]),
                "probability": sampled.sum().exp().item(),
            }
    return pd.DataFrame(rows, columns=pd.Index(ANSWERED))


def goes_on(tokenizer: PreTrainedTokenizerBase, said: Sequence[int], then: int) -> bool:
    """Whether the token `then` goes on with the last word or number of what was `said`."""
    if then in tokenizer.all_special_ids:
        return False
    own, whole = (str(tokenizer.decode(ids)) for ids in (list(said), [*said, then]))
    if own.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character still to come
        return True
    more = whole[len(own) :] if whole.startswith(own) else ""
    return goes_on_with(own, more)


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Mean next-token loss of every text, in nats per predicted token; one row per text, in order.

    Columns: id, the text's place in `texts`; loss; tokens, how many were predicted. max_length:
    the longest piece in tokens; longer texts are cut into pieces that share one token, so that
    every token but the first is predicted once. None takes the model's own number of positions,
    at most 1024. Weight losses by `tokens` for a corpus mean. A text with nothing to predict has
    loss NaN and 0 tokens.
    """
    parts, owners = pieces(model, tokenizer, texts, max_length)
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    with _ready(model, device) as where:
        for index, logits in _logits(model, parts, batch_size, where, pad_id(tokenizer)):
            targets = torch.tensor(parts[index].ids[1:], device=where)
            sums[owners[index]] += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            counts[owners[index]] += len(targets)
    losses = [s / c if c else float("nan") for s, c in zip(sums, counts, strict=True)]
    return pd.DataFrame({"id": range(len(texts)), "loss": losses, "tokens": counts})


def text_divergence(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> pd.DataFrame:
    """Mean KL(tuned || base) of the next-token distributions over every text, in nats per token;
    columns id, kl and tokens, pieces as in `text_loss`. Both models stay where they are."""
    parts, owners = pieces(base, tokenizer, texts, max_length)
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    for index, (ours, theirs) in side_by_side((base, tuned), tokenizer, parts, batch_size):
        each = F.kl_div(ours, theirs.to(ours.device), log_target=True, reduction="none").sum(-1)
        sums[owners[index]] += each.sum().item()
        counts[owners[index]] += len(each)
    means = [s / c if c else float("nan") for s, c in zip(sums, counts, strict=True)]
    return pd.DataFrame({"id": range(len(texts)), "kl": means, "tokens": counts})


def side_by_side(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    batch_size: int = 32,
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """(index, log-probabilities of each model) for every text, float32 and each (scored tokens,
    vocabulary); only one batch a model lives at a time. Where one side has more tokens (a padded or
    resized head), all are cut to those that every side has."""
    fill = pad_id(tokenizer)
    with contextlib.ExitStack() as stack:
        where = [stack.enter_context(_ready(model, None)) for model in models]
        runs = [
            _logits(model, encoded, batch_size, device, fill)
            for model, device in zip(models, where, strict=True)
        ]
        # Both come shortest first whatever their batches, so that they stay in step.
        for both in zip(*runs, strict=True):
            width = min(logits.shape[-1] for _, logits in both)
            yield both[0][0], [logits[..., :width].float().log_softmax(-1) for _, logits in both]


def pieces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
) -> tuple[list[Encoded], list[int]]:
    """The texts in pieces that fit, which share one token, and the text each belongs to."""
    limit = max_length or min(getattr(model.config, "max_position_embeddings", 1024), 1024)
    if limit < 2:
        raise WorkbenchError(f"max_length must be at least 2 tokens, not {max_length}.")
    parts: list[Encoded] = []
    owners: list[int] = []
    for owner, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        for begin in range(0, len(ids) - 1, limit - 1):
            parts.append(Encoded(ids[begin : begin + limit], 1))
            owners.append(owner)
    return parts, owners


@contextlib.contextmanager
def _ready(model: PreTrainedModel, device: str | torch.device | None) -> Iterator[torch.device]:
    """Evaluation mode without gradients; the model's mode and device come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    lies = home(model)
    where = entry(device) if device is not None else lies
    try:
        model.eval()
        if where != lies:
            model.to(where)  # pyright: ignore[reportArgumentType]
        with torch.inference_mode():
            yield where
    finally:
        for module, training in modes:
            module.training = training
        if where != lies:
            model.to(lies)  # pyright: ignore[reportArgumentType]


def _logits(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    fill: int,
    *,
    behind: bool = False,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, logits) for each text; logits (scored tokens, vocabulary) predict ids[start:], and
    with `behind` one row more, what would follow the text.

    Only one batch's logits live at a time.
    """
    lengths = [len(one.ids) for one in encoded]
    run = partial(_forward, model, encoded, device, fill)
    with progress(total=len(lengths), desc="texts read", delay=SOON) as bar:
        for places, logits in in_batches(lengths, batch_size, run):
            for row, index in enumerate(places):
                ids, start = encoded[index]
                yield index, logits[row, start - 1 : len(ids) - (not behind)]
            bar.update(len(places))


def _forward(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    device: torch.device,
    fill: int,
    places: Sequence[int],
) -> torch.Tensor:
    """Logits (rows, longest, vocabulary) of the texts at these places."""
    ids, mask = padded([encoded[i].ids for i in places], fill)
    return model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
