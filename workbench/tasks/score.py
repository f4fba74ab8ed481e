"""How well does a model answer prompts, and how well does it predict texts?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F

from workbench.errors import WorkbenchError
from workbench.tasks.batching import Encoded, pad_id
from workbench.tasks.choices import chosen
from workbench.tasks.continuation import Watch, continuations
from workbench.tasks.forward import predicted, ready
from workbench.tasks.generation import generations, judged
from workbench.tasks.kept import Kept
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Choices, Continuation, Generation, Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ANSWERED = (
    "id", "log_probability", "logit_difference", "tokens", "said", "confidence", "energy",
    "first_correct", "probability", "correct", "answer",
)  # fmt: skip


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet | Sequence[Prompt],
    *,
    batch_size: int = 32,
    temperature: float = 1.0,
    device: str | torch.device | None = None,
    kept: Kept | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Score every prompt as its set's scorer says, plain prompts as continuations; one row per
    prompt, in order.

    Columns: id; correct, in [0, 1], whether the answer is right (of several samples their share);
    answer, what is said, as far as it is known; and of the target, teacher-forced: log_probability,
    the sum over its tokens in nats; logit_difference, its first token's logit minus the largest
    among the foils' first tokens (NaN without foils); tokens, how many it has; said, the most
    likely first token; confidence, its probability; energy, -log sum exp of the logits there (Liu
    et al. 2020, arXiv 2010.03759, at temperature 1); first_correct, whether said is the target's;
    probability, that of the whole target where its tokens are sampled at `temperature`, whatever is
    then said behind it, like log_probability.

    Of continuations it is correct where greedy decoding gives exactly the target: every token of it
    is the most likely one, and what is most likely behind it does not go on with its last word or
    number ("9" is no answer where "908" is said). Of choices said, confidence, first_correct and
    probability are of the choice, and there are also acc and acc_norm (right by the sum and per
    byte), acc_mutual_info where that is asked for, margin, the target's score less the best foil's,
    tied, whether that is 0, and chance, one by the number of choices. Of generations there are
    also right, how many samples are, and pass@k.

    Special tokens are added as the tokenizer does by default. Foils that begin with the target's
    own first token say nothing at that place and are left out of logit_difference. device: where
    to run; None leaves the model where it is. kept: where texts that were written before are found.
    watch: is called with each prompt's number and its target's logits, (tokens, vocabulary), as
    they come. Raises WorkbenchError where the tokenizer gives no offsets, a target has no token of
    its own, or nothing can be right, as of plain texts.
    """
    scorer = prompts.scorer if isinstance(prompts, PromptSet) else Continuation()
    if isinstance(scorer, Loss):
        raise WorkbenchError(
            f"Expected prompts with answers to score, found plain texts in {prompts!r}; only "
            "forgetting.retention and behaviour.tokens read those."
        )
    asked = list(prompts)
    run: dict[str, Any] = {"batch_size": batch_size}
    with ready(model, device) as where:
        run["device"] = where
        if isinstance(scorer, Choices):
            rows = chosen(
                *(model, tokenizer, asked, scorer), temperature=temperature, watch=watch, **run
            )
        else:
            rows = continuations(
                *(model, tokenizer, asked), temperature=temperature, watch=watch, **run
            )
        if isinstance(scorer, Generation):
            texts = generations(model, tokenizer, asked, scorer, kept=kept, **run)
            for row, prompt, own in zip(rows, asked, texts, strict=True):
                row |= judged(prompt, own, scorer)
    return pd.DataFrame(rows, columns=None if rows else pd.Index(ANSWERED))


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

    Columns: id, the text's place in `texts`; loss; tokens, how many were predicted, and bytes, of
    how much text in UTF-8 (without the first token's, which nothing predicts). max_length:
    the longest piece in tokens; longer texts are cut into pieces that share one token, so that
    every token but the first is predicted once. None takes the model's own number of positions,
    at most 1024. Weight losses by `tokens` for a corpus mean. A text with nothing to predict has
    loss NaN and 0 tokens.
    """
    parts, owners = pieces(model, tokenizer, texts, max_length)
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    with ready(model, device) as where:
        for index, logits in predicted(model, parts, batch_size, where, pad_id(tokenizer)):
            targets = torch.tensor(parts[index].ids[1:], device=where)
            sums[owners[index]] += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            counts[owners[index]] += len(targets)
    losses = [s / c if c else float("nan") for s, c in zip(sums, counts, strict=True)]
    made = {"id": range(len(texts)), "loss": losses, "tokens": counts}
    return pd.DataFrame(made | {"bytes": bytes_predicted(tokenizer, texts)})


def bytes_predicted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Of how much of each text, in bytes of UTF-8, a loss is."""
    return [len(_behind_first(tokenizer, text).encode()) for text in texts]


def _behind_first(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without its first token's; the whole where that stands for no text."""
    if not tokenizer.is_fast:
        return text
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text[offsets[0][1] :] if offsets else text


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
    *,
    behind: bool = False,
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """(index, log-probabilities of each model) for every text, float32 and each (scored tokens,
    vocabulary), with `behind` one row more, for what follows the text; only one batch a model lives
    at a time. Where one side has more tokens (a padded or
    resized head), all are cut to those that every side has."""
    fill = pad_id(tokenizer)
    with contextlib.ExitStack() as stack:
        where = [stack.enter_context(ready(model, None)) for model in models]
        runs = [
            predicted(model, encoded, batch_size, device, fill, behind=behind)
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
