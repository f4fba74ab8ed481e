"""Reliance: on which part of the prompt does the answer depend, before and after fine-tuning?

Two changes of a prompt are asked of both sides. A confounder flipped: each prompt has a twin that
differs only in something that should not matter (a name, a hint, a spurious cue) and has the same
right answer. A premise taken out: the text of a named span is deleted. With log p the
log-probability of the right answer, in nats, summed over its tokens,

    reliance = log p(answer | prompt) - log p(answer | changed prompt)

is 0 for what the model does not use. Deleting any words moves an answer, so each premise's control
is as many words taken out elsewhere, outside every named span. Input deletion is the
occlusion of Zeiler & Fergus 2014 (arXiv 1311.2901, section 4.2), here on text. Beside it stands the
share of the input attribution that lies in a premise of the prompt as it is, by gradient times
input (`behaviour.input_attribution`), and its share of the prompt's tokens, which is what an
attribution spread evenly would give.

It misleads where a changed prompt is unlike any text: what is then lost is fluency. A twin whose
answer is not the same measures something else. A gradient tells a small change of the embeddings,
so that attribution and deletion need not agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.behaviour.input_attribution import by_length, spans_shares
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, change, share
from workbench.tasks.batching import encode, pad_id, rows
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import side_by_side

KEY = "behaviour.reliance"
SIDES = ("base", "tuned")
GIVEN, FLIPPED, OTHER = "given", "flipped", "without other words"
WORD = re.compile(r"\S+\s*")
Floats = NDArray[np.float64]


@analysis(
    "On which part of the prompt does the answer depend?",
    paper="arXiv 1311.2901",
    example="--prompts task.jsonl --flipped twins.jsonl",
    passes=8,
    texts=True,
)
def reliance(
    pair: CheckpointPair,
    prompts: PromptSet,
    flipped: PromptSet | None = None,
    *,
    premises: Sequence[str] = (),
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Compare the answers of both models to prompts with a confounder flipped, or a premise less.

    prompts: prompts with answers. flipped: a twin of each prompt, by its id, in which the
    confounder is flipped; the answer may be worded anew in it. premises: the names of spans of the
    prompts that are taken out, one at a time; without `flipped` and `premises` every span that all
    prompts have.

    Returns a Result with rows by arm ("given", "flipped", "without NAME", and its control, "without
    other words (NAME)", as many words as that premise has) and side ("base", "tuned"): score,
    whether the answer is the likeliest (baseline: the base's), and log_p in nats; of every arm but
    "given" reliance in nats and score_drop, given less changed prompt (baseline: that of its
    control, 0 where there is none); of premises reliance_beyond_other, paired, and attribution, the
    premise's share of the given prompt's (baseline: its share of the tokens); and by arm
    reliance_change, score_drop_change and attribution_change, tuned - base, paired. 95% intervals
    over prompts. Raises WorkbenchError where a prompt has no twin or lacks a span, or has no words
    but these.
    """
    names = [*premises] or ([] if flipped is not None else _shared(prompts))
    if not len(prompts) or (flipped is None and not names):
        raise WorkbenchError(
            "Expected flipped twins of the prompts, or prompts with named spans to take out; found "
            f"{len(prompts)} prompts of {prompts.name!r} without either. Give --flipped, or spans."
        )
    arms = {GIVEN: list(prompts)}
    if flipped is not None:
        arms[FLIPPED] = _twins(prompts, flipped)
    arms |= {f"without {name}": [_without(p, name) for p in prompts] for name in names}
    if names:
        draw = np.random.default_rng(seed)
        arms |= {control(name): [_otherwise(p, name, draw) for p in prompts] for name in names}
    words = pair.base.tokenizer()
    given = rows(words, prompts, answers=True) if names else []
    coded = [encode(words, prompt) for own in arms.values() for prompt in own]
    # (measures, sides, arms, prompts)
    read = np.zeros((2, 2, len(arms), len(prompts)))
    with pair.models(device, named_dtype(dtype)) as sides:
        for index, both in side_by_side((sides.base, sides.tuned), words, coded, batch_size):
            arm, number = divmod(index, len(prompts))
            for side, said in enumerate(both):
                ids = torch.tensor(coded[index].ids[coded[index].start :], device=said.device)
                log_p = said.double().gather(1, ids[:, None]).sum()
                right = bool((said.argmax(-1) == ids).all())
                read[:, side, arm, number] = float(right), float(log_p)
        shares = [
            spans_shares(one, given, names, pad_id(words), batch_size)
            for one in (sides.base, sides.tuned)
        ]
    own = _attributed(names, np.stack(shares), by_length(given, names), seed)
    table = pd.DataFrame([*_rows([*arms], read, seed), *own])
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "flipped": describe(flipped), "premises": names,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _shared(prompts: PromptSet) -> list[str]:
    """The spans that all prompts have."""
    first = [*prompts[0].spans] if len(prompts) else []
    return [name for name in first if all(name in p.spans for p in prompts)]


def _twins(prompts: PromptSet, flipped: PromptSet) -> list[Prompt]:
    twins = {p.id: p for p in flipped}
    alone = [p.id for p in prompts if p.id not in twins]
    if alone:
        raise WorkbenchError(
            f"Expected a twin of every prompt by its id, but {flipped.name!r} has none of "
            f"{alone[0]!r} ({len(alone)} of {len(prompts)}); give the twins the prompts' ids."
        )
    return [twins[p.id] for p in prompts]


def _without(prompt: Prompt, name: str) -> Prompt:
    """The prompt less the text of a span, and the blanks behind it."""
    if name not in prompt.spans:
        raise WorkbenchError(
            f"Expected a span {name!r} in every prompt, but {prompt.id!r} has "
            f"{', '.join(prompt.spans) or 'none'}; name a span that all have."
        )
    first, last = prompt.spans[name]
    before, behind = prompt.prompt[:first], prompt.prompt[last:]
    if not before or before[-1].isspace():
        behind = behind.lstrip()
    return _changed(prompt, before + behind if behind else before.rstrip())


def control(name: str) -> str:
    """The arm that a premise is held against."""
    return f"{OTHER} ({name})"


def _otherwise(prompt: Prompt, name: str, draw: np.random.Generator) -> Prompt:
    """The prompt less as many words in a row as this premise has, none of any named span and not
    the last word, which the answer follows."""
    first, last = prompt.spans[name]
    many, taken = len(prompt.prompt[first:last].split()), [*prompt.spans.values()]
    known = [match.span() for match in WORD.finditer(prompt.prompt)][:-1]
    free = [
        at
        for at in range(len(known) - many + 1)
        if not any(known[at][0] < last and first < known[at + many - 1][1] for first, last in taken)
    ]
    if not free:
        raise WorkbenchError(
            f"Expected {many} words in a row outside the spans {', '.join(prompt.spans)} in prompt "
            f"{prompt.id!r}, for the control of {name!r}; there are none. Give the prompt fewer or "
            "shorter spans."
        )
    at = int(draw.choice(free))
    text = prompt.prompt[: known[at][0]] + prompt.prompt[known[at + many - 1][1] :]
    return _changed(prompt, text)


def _changed(prompt: Prompt, text: str) -> Prompt:
    return replace(prompt, prompt=text, spans={})


def _rows(arms: Sequence[str], read: Floats, seed: int) -> Iterator[dict[str, Any]]:
    """read: (score and log p, sides, arms, prompts)."""
    lost = read[:, :, :1] - read
    for (number, side), (place, arm) in ((s, a) for s in enumerate(SIDES) for a in enumerate(arms)):
        told = {"side": side, "arm": arm}
        score, log_p = read[:, number, place]
        before = read[:, 0, place].mean(-1)
        yield told | {"metric": "score"} | share(score)._asdict() | {"baseline": before[0]}
        yield told | {"metric": "log_p"} | _mean(log_p, seed) | {"baseline": before[1]}
        if arm == GIVEN:
            continue
        beside = control(arm.removeprefix("without "))
        other = lost[:, number, arms.index(beside)] if beside in arms else None
        drop = change(read[0, number, place], read[0, number, 0], seed=seed)._asdict()
        fall = _mean(lost[1, number, place], seed)
        for row, (metric, found) in enumerate((("score_drop", drop), ("reliance", fall))):
            zero = 0.0 if other is None else float(other[row].mean())
            yield told | {"metric": metric} | found | {"baseline": zero}
        if other is not None:
            beyond = lost[1, number, place] - other[1]
            told |= {"metric": "reliance_beyond_other", "baseline": 0.0}
            yield told | _mean(beyond, seed)
    for place, arm in enumerate(arms[1:], 1):
        for row, metric in enumerate(("score_drop", "reliance")):
            before, after = lost[row, :, place]
            told = {"arm": arm, "metric": f"{metric}_change", "baseline": float(before.mean())}
            yield told | _mean(after - before, seed)


def _attributed(
    names: Sequence[str], shares: Floats, evenly: Floats, seed: int
) -> Iterator[dict[str, Any]]:
    """shares: (sides, names, prompts), of the input attribution; evenly: (names, prompts)."""
    for place, name in enumerate(names):
        told = {"arm": f"without {name}", "baseline": float(evenly[place].mean())}
        for side, own in zip(SIDES, shares[:, place], strict=True):
            yield told | {"metric": "attribution", "side": side} | _mean(own, seed)
        before, after = shares[:, place]
        told |= {"metric": "attribution_change", "baseline": float(before.mean())}
        yield told | _mean(after - before, seed)


def _mean(values: Floats, seed: int) -> dict[str, Any]:
    return bootstrap(values, seed=seed)._asdict()
