"""Writing on with several models at once: every next token is chosen from what all of them say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders.devices import home
from workbench.tasks.batching import in_batches, rows
from workbench.tasks.generation import drawn
from workbench.tasks.prompts import PromptSet

# log-probabilities of each model, (rows, vocabulary), and a number in [0, 1) for each row, None for
# greedy -> the tokens, (rows,)
Choose = Callable[[Sequence[Tensor], Tensor | None], Tensor]


def contrasted(alpha: float) -> Choose:
    """Draw by exp(log p_last - log p_first) among p_last >= alpha max p_last."""

    def choose(said: Sequence[Tensor], chance: Tensor | None) -> Tensor:
        first, last = said[0], said[-1]
        plausible = last >= last.max(-1, keepdim=True).values + math.log(alpha)
        return drawn((last - first).where(plausible, -torch.inf), chance)

    return choose


def last(said: Sequence[Tensor], chance: Tensor | None) -> Tensor:
    """The choice of one model, of several the last."""
    return drawn(said[-1], chance)


def written(
    models: Sequence[Any],
    begun: Sequence[list[int]],
    length: int | Sequence[int],
    choose: Choose = last,
    *,
    stop: int | None = None,
    known: int | None = None,
    sample: bool = False,
    batch_size: int = 32,
    seed: int | Sequence[int] = 0,
) -> list[list[int]]:
    """What is written behind each text: at most `length` tokens, up to and without `stop`.

    models: causal language models of one vocabulary. begun: token ids, none empty. length: of all
    texts, or one for each. known: how many tokens, from the first id on, may be chosen; None for
    all that every model has. sample: draw with a number of its own for each text and token, so that
    batches do not change what is drawn; else greedy. Runs with a cache where the models have one.
    Raises WorkbenchError for a text behind which a model has not so many places.
    """
    lengths = [length] * len(begun) if isinstance(length, int) else [*length]
    _require_room(models, begun, lengths)
    drawn_for = (len(begun), max(lengths, default=0))
    chances = np.random.default_rng(seed).random(drawn_for) if sample else None
    found: list[list[int]] = [[] for _ in begun]
    # Rows of one length need no filling, and no positions of their own.
    for size in sorted({len(ids) for ids in begun}):
        own = [i for i, ids in enumerate(begun) if len(ids) == size]

        def run(places: list[int], own: list[int] = own) -> list[list[int]]:
            rows = [own[i] for i in places]
            numbers = None if chances is None else torch.from_numpy(chances[rows])
            first, most = [begun[i] for i in rows], max(lengths[i] for i in rows)
            made = _batch(models, first, most, choose, stop, known, numbers)
            return [ids[: lengths[i]] for i, ids in zip(rows, made, strict=True)]

        for places, made in in_batches([size] * len(own), batch_size, run):
            for place, ids in zip(places, made, strict=True):
                found[own[place]] = ids
    return found


def _require_room(
    models: Sequence[Any], begun: Sequence[list[int]], lengths: Sequence[int]
) -> None:
    configs = (getattr(model, "config", None) for model in models)
    places = (
        getattr(config.get_text_config(), "max_position_embeddings", None)  # none where none needed
        for config in configs
        if config is not None
    )
    most = min((room for room in places if room), default=None)
    for ids, more in zip(begun, lengths, strict=True):
        if most is not None and len(ids) + more > most:
            raise WorkbenchError(
                f"Expected a text and what is written behind it to have at most {most} tokens, for "
                f"which the model has places; found {len(ids)} tokens, and {more} to be written. "
                "Give shorter texts, or have less written."
            )


def beginnings(words: Any, prompts: PromptSet | Sequence[str] | None, n: int) -> list[list[int]]:
    """Token ids to go on with, the start token alone where there are no prompts."""
    if prompts is not None:
        return [row.ids for row in rows(words, prompts)]
    known = (words.bos_token_id, words.eos_token_id)
    start = next((token for token in known if token is not None), None)
    if start is None:
        raise WorkbenchError("The tokenizer has no start token to begin with; pass prompts.")
    return [[start]] * n


def _batch(
    models: Sequence[Any], begun: list[list[int]], length: int, choose: Choose, stop: int | None,
    known: int | None, chances: Tensor | None,
) -> list[list[int]]:  # fmt: skip
    places = [home(model) for model in models]
    ids = torch.tensor(begun, device=places[0])
    start = ids.shape[1]
    caches: list[Any] = [None] * len(models)
    over = torch.zeros(len(begun), dtype=torch.bool, device=places[0])
    with torch.inference_mode():
        for step in range(length):
            said = []
            for i, (model, place) in enumerate(zip(models, places, strict=True)):
                # A model that keeps no cache reads the whole text again.
                fed = ids if caches[i] is None else ids[:, -1:]
                # Nothing is filled up, whatever tokens a text that has ended goes on with.
                whole = torch.ones_like(ids, device=place)
                out = model(
                    input_ids=fed.to(place), attention_mask=whole, past_key_values=caches[i],
                    use_cache=True,
                )  # fmt: skip
                caches[i] = getattr(out, "past_key_values", None)
                said.append(out.logits[:, -1].float().to(places[0]))
            width = min(logits.shape[-1] for logits in said)  # heads can be padded
            width = width if known is None else min(width, known)
            said = [logits[:, :width].log_softmax(-1) for logits in said]
            chance = None if chances is None else chances[:, step].to(places[0])
            new = choose(said, chance)
            ids = torch.cat([ids, new[:, None]], dim=1)
            if stop is not None:
                over |= new == stop
                if bool(over.all()):
                    break
    rows = ids[:, start:].tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]
