"""What does a model write behind a prompt? transformers writes; this says where it begins and ends.

Rows of unequal length are filled on the left, which models see through their mask. What is drawn
takes a number of its own for each text and token, made of the seed and the prompt alone, so that
neither batches nor other prompts change it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.progress import progress
from workbench.tasks.batching import in_batches, pad_id
from workbench.tasks.forward import SOON
from workbench.tasks.kept import Kept
from workbench.tasks.prompts import Prompt
from workbench.tasks.scorers import Generation


def judged(prompt: Prompt, texts: Sequence[str], scorer: Generation) -> dict[str, Any]:
    """What the texts written behind a prompt are worth: correct, the share of right ones; right,
    how many; answer, the first of them; and pass@k."""
    right = sum(scorer.right(text, prompt.target) for text in texts)
    found: dict[str, Any] = {"correct": right / len(texts), "right": right, "answer": texts[0]}
    return found | {f"pass@{k}": pass_at(len(texts), right, k) for k in scorer.passes}


def pass_at(n: int, right: int, k: int) -> float:
    """The chance that one of k of n texts is right, drawn without putting back, of which `right`
    are: 1 - C(n - right, k) / C(n, k). Source: Chen et al. 2021 (arXiv 2107.03374v2), eq. 1, there
    the unbiased estimator of pass@k."""
    if n - right < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - right + 1, n + 1)))


def drawn(scores: Tensor, chance: Tensor | None) -> Tensor:
    """The tokens (rows,) at which the cumulative softmax of scores (rows, vocabulary) passes
    `chance`; where that is None the largest score's."""
    if chance is None:
        return scores.argmax(-1)
    mass = scores.double().softmax(-1).cumsum(-1)
    at = chance.to(mass)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, at, right=True)[:, 0].clamp(max=scores.shape[-1] - 1)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Scores (rows, vocabulary) with -inf for all but the fewest likeliest tokens that hold `top_p`
    of the probability. Source: Holtzman et al. 2020 (arXiv 1904.09751)."""
    if top_p >= 1:
        return scores
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    chances = scores.gather(-1, order).softmax(-1)
    # A token stays as long as those before it hold less.
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(-1, order, chances.cumsum(-1) - chances < top_p)
    return scores.masked_fill(~kept, -torch.inf)


def generations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    scorer: Generation,
    *,
    batch_size: int,
    device: torch.device,
    kept: Kept | None = None,
) -> list[list[str]]:
    """`scorer.samples` texts behind each prompt; a model that is ready to run.

    kept: where texts that were written before are found, and new ones put as soon as their batch is
    written. Raises WorkbenchError where a prompt leaves no room for the text.
    """
    coded = [_coded(tokenizer, prompt) for prompt in prompts]
    _require_room(model, tokenizer, prompts, coded, scorer.length)
    asked = [(i, n) for i in range(len(prompts)) for n in range(scorer.samples)]
    names = [_name(prompts[i], scorer, n) for i, n in asked]
    known = {} if kept is None else kept.known()
    found: dict[str, str] = {name: known[name] for name in names if name in known}
    left = [place for place, name in enumerate(names) if name not in found]

    def run(places: list[int]) -> list[str]:
        own = [asked[left[place]] for place in places]
        ids = [coded[i] for i, _ in own]
        chances = None
        if scorer.temperature:
            rows = [_chances(prompts[i], scorer, n) for i, n in own]
            chances = torch.from_numpy(np.stack(rows)).to(device)
        return _written(model, tokenizer, ids, scorer, chances, device)

    lengths = [len(coded[asked[place][0]]) for place in left]
    with progress(total=len(left), desc="texts written", delay=SOON) as bar:
        for places, texts in in_batches(lengths, batch_size, run):
            fresh = {names[left[at]]: text for at, text in zip(places, texts, strict=True)}
            found |= fresh
            if kept is not None:
                kept.put(fresh)
            bar.update(len(places))
    each = [found[name] for name in names]
    return [each[i : i + scorer.samples] for i in range(0, len(each), scorer.samples)]


def _coded(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt, without what the tokenizer puts at the end of a text."""
    ids = tokenizer(prompt.prompt)["input_ids"]
    if (
        ids
        and ids[-1] == tokenizer.eos_token_id
        and not prompt.prompt.endswith(str(tokenizer.eos_token))
    ):
        ids = ids[:-1]
    if not ids:
        raise WorkbenchError(
            f"Prompt {prompt.id!r} has no token after which a text could begin; give it words."
        )
    return ids


def _require_room(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], coded: Sequence[list[int]], length: int
) -> None:
    config = model.config.get_text_config()
    places = getattr(config, "max_position_embeddings", None)  # none of a model that needs none
    most = min(tokenizer.model_max_length, places or tokenizer.model_max_length)
    for prompt, ids in zip(prompts, coded, strict=True):
        if len(ids) + length > most:
            raise WorkbenchError(
                f"Prompt {prompt.id!r} has {len(ids)} tokens, and {length} more would be written, "
                f"but the model has places for {most}; shorten it, or give the scorer a smaller "
                "length."
            )


def _name(prompt: Prompt, scorer: Generation, sample: int) -> str:
    """What a text is kept under: everything but the model that decides it."""
    drawn = (scorer.temperature, scorer.top_p, scorer.seed, sample) if scorer.temperature else ()
    told = repr((prompt.prompt, scorer.length, scorer.stop, *drawn))
    return hashlib.sha256(told.encode()).hexdigest()


def _chances(prompt: Prompt, scorer: Generation, sample: int) -> np.ndarray:
    """(length,) numbers in [0, 1) for one text."""
    own = int(hashlib.sha256(prompt.prompt.encode()).hexdigest()[:16], 16)
    return np.random.default_rng([scorer.seed, own, sample]).random(scorer.length)


def _written(
    model: Any,
    tokenizer: Any,
    ids: Sequence[list[int]],
    scorer: Generation,
    chances: Tensor | None,
    device: torch.device,
) -> list[str]:
    """One text behind each row, up to the first stop."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    fill, longest = pad_id(tokenizer), max(map(len, ids))
    given = torch.full((len(ids), longest), fill)
    mask = torch.zeros_like(given)
    for row, own in enumerate(ids):
        given[row, longest - len(own) :] = torch.tensor(own)
        mask[row, longest - len(own) :] = 1
    settings = GenerationConfig(
        max_new_tokens=scorer.length,
        do_sample=False,
        eos_token_id=ends(model, tokenizer) or None,
        pad_token_id=fill,
    )
    more: dict[str, Any] = {}
    if scorer.stop:
        stopped = _Stopped(tokenizer, scorer.stop, longest)
        more["stopping_criteria"] = StoppingCriteriaList([stopped])  # pyright: ignore[reportArgumentType]
    if chances is not None:
        more["logits_processor"] = LogitsProcessorList([_Drawn(scorer, chances, longest)])
    with by(settings, model):
        made = model.generate(
            input_ids=given.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            **more,
        )
    rows = made[:, longest:].tolist()
    return [ended(tokenizer.decode(_before(row, model, tokenizer)), scorer.stop) for row in rows]


class _Stopped:
    """Which rows hold a stop. transformers' own criterion needs a vocabulary of byte-level or
    sentence pieces, whose words hang together without spaces."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        # A token of a text is a byte of it at least; some begin a character or stand for nothing.
        self.tail = max(len(one.encode()) for one in stop) + 8

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        begin = max(self.start, input_ids.shape[1] - self.tail)
        texts = self.tokenizer.batch_decode(input_ids[:, begin:])
        found = [any(one in text for one in self.stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)


class _Drawn:
    """Of each row's logits the token that its own number falls on is left."""

    def __init__(self, scorer: Generation, chances: Tensor, start: int) -> None:
        self.scorer, self.chances, self.start = scorer, chances, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own = nucleus(scores.float() / self.scorer.temperature, self.scorer.top_p)
        new = drawn(own, self.chances[:, input_ids.shape[1] - self.start])
        return torch.full_like(scores, -torch.inf).scatter(-1, new[:, None], 0.0)


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's own settings."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = own if isinstance(own, list | tuple) else [own]
    found = [tokenizer.eos_token_id, *several]
    return sorted({int(one) for one in found if one is not None})


def _before(ids: list[int], model: Any, tokenizer: Any) -> list[int]:
    """The tokens before the first that ends a text."""
    over = ends(model, tokenizer)
    return ids[: next((i for i, token in enumerate(ids) if token in over), len(ids))]


def ended(text: str, stop: Sequence[str]) -> str:
    """The text before the first of these."""
    places = [text.find(one) for one in stop if one in text]
    return text[: min(places)] if places else text


@contextlib.contextmanager
def by(settings: Any, model: Any) -> Iterator[None]:
    """`model` writes by these settings and by none that it has of its own."""
    holders = [m for m in model.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in holders]
    try:
        for holder in holders:
            holder.generation_config = settings
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
