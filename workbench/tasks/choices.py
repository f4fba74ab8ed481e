"""Is the target the likeliest of the choices, its foils beside it? No token is written.

Choices that are fed alike, as letters are, which differ in their last token alone, share a pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.tasks.batching import Encoded, encode, foil_tokens, look_at, pad_id
from workbench.tasks.continuation import Watch, measured
from workbench.tasks.forward import predicted
from workbench.tasks.prompts import Prompt
from workbench.tasks.scorers import Choices

Floats = NDArray[np.float64]
ACC = {"sum": "acc", "byte": "acc_norm", "unconditional": "acc_mutual_info"}  # lm-eval's names


def chosen(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    scorer: Choices,
    *,
    batch_size: int,
    temperature: float,
    device: torch.device,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """A row per prompt, in order, see `tasks.answers`; a model that is ready to run."""
    alone = [p.id for p in prompts if not p.foils]
    if alone:
        raise WorkbenchError(
            f"Prompt {alone[0]!r} has no foils, so there is nothing to choose from ({len(alone)} "
            "of the prompts); give foils, or the scorer continuation."
        )
    coded = [[encode(tokenizer, one) for one in _each(prompt)] for prompt in prompts]
    longest = [max((one.ids for one in own), key=len) for own in coded]
    look_at(tokenizer, {p.id: ids for p, ids in zip(prompts, longest, strict=True)}, prompts)
    run: dict[str, Any] = {"batch_size": batch_size, "device": device}
    read, first = _read(model, tokenizer, coded, prompts, temperature, watch=watch, **run)
    plain: list[Floats | None] = [None] * len(read)
    if scorer.by == "unconditional":
        apart = [[unasked(tokenizer, text) for text in texts(prompt)] for prompt in prompts]
        plain[:], _ = _read(model, tokenizer, apart, None, temperature, **run)
    rows = []
    for i, prompt in enumerate(prompts):
        told = judged(prompt, read[i], plain[i], scorer.by, temperature)
        best = coded[i][texts(prompt).index(told["answer"])]
        rows.append({"id": prompt.id, **first[i], **told, "said": best.ids[best.start]})
    return rows


def judged(
    prompt: Prompt, log_p: Floats, plain: Floats | None, by: str, temperature: float = 1.0
) -> dict[str, Any]:
    """Which choice it is. log_p: (choices,), the target's first, in nats; plain: the same without
    the prompt, None where nobody asks for it."""
    known = ["sum", "byte", *(["unconditional"] if plain is not None else [])]
    every = {one: _scores(prompt, log_p, plain, one) for one in known}
    right = {ACC[one]: float(own[0] > own[1:].max()) for one, own in every.items()}
    scores = every[by]
    chances, sampled = (_softmax(part) for part in (scores, scores / temperature))
    # Of a tie with the target, which is not right, the foil is what is said.
    best = 0 if scores[0] > scores[1:].max() else 1 + int(scores[1:].argmax())
    return right | {
        "correct": right[ACC[by]],
        "first_correct": bool(right[ACC[by]]),
        "answer": texts(prompt)[best],
        "margin": float(scores[0] - scores[1:].max()),
        "tied": bool(scores[0] == scores[1:].max()),
        "confidence": float(chances[best]),
        "probability": float(sampled[0]),
        "chance": 1 / len(scores),
    }


def texts(prompt: Prompt) -> tuple[str, ...]:
    """The choices, the target first."""
    return (prompt.target, *prompt.foils)


def _each(prompt: Prompt) -> list[Prompt]:
    return [Prompt(prompt.id, prompt.prompt, text) for text in texts(prompt)]


def _scores(prompt: Prompt, log_p: Floats, plain: Floats | None, by: str) -> Floats:
    """(choices,): what is compared."""
    if by == "byte":
        return log_p / np.array([max(1, len(t.lstrip().encode())) for t in texts(prompt)])
    if by == "unconditional":
        assert plain is not None
        return log_p - plain
    return log_p


def _softmax(scores: Floats) -> Floats:
    part = np.exp(scores - scores.max())
    return part / part.sum()


def unasked(tokenizer: Any, text: str) -> Encoded:
    """A choice behind nothing but the start of a text."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((token for token in known if token is not None), None)
    if start is None:
        raise WorkbenchError(
            "The tokenizer has no start token to read a choice without its prompt; give the "
            "scorer choices by=sum or by=byte."
        )
    return Encoded([start, *tokenizer(text, add_special_tokens=False)["input_ids"]], 1)


def _read(
    model: Any,
    tokenizer: Any,
    coded: Sequence[Sequence[Encoded]],
    prompts: Sequence[Prompt] | None,
    temperature: float,
    *,
    batch_size: int,
    device: torch.device,
    watch: Watch | None = None,
) -> tuple[list[Floats], list[Mapping[str, Any]]]:
    """(log-probability of every choice in nats, what `measured` says of the target), by prompt."""
    fed: dict[tuple[tuple[int, ...], int], list[tuple[int, int]]] = defaultdict(list)
    for i, own in enumerate(coded):
        for j, one in enumerate(own):
            fed[tuple(one.ids[:-1]), one.start].append((i, j))
    shared = [Encoded(list(ids), start) for ids, start in fed]
    owners = list(fed.values())
    found = [np.zeros(len(own)) for own in coded]
    first: list[Mapping[str, Any]] = [{} for _ in coded]
    run = predicted(model, shared, batch_size, device, pad_id(tokenizer), behind=True)
    for index, logits in run:
        scores = logits.float()
        log_p = scores.log_softmax(-1)
        for i, j in owners[index]:
            own = coded[i][j].ids[coded[i][j].start :]
            targets = torch.tensor(own, device=log_p.device)[:, None]
            found[i][j] = log_p.gather(1, targets).sum().item()
            if j == 0 and prompts is not None:
                foils = foil_tokens(tokenizer, prompts[i], coded[i][0])
                first[i] = measured(scores, own, foils, temperature)
                if watch is not None:
                    watch(i, scores)
    return found, first
