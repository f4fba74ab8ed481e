"""By what is a run judged? One metric for every patching method: a name, or any function.

A metric gives each prompt one number, from the logits at the tokens that predict its answer:

    metric(logits, batch) -> (rows,)      logits: (rows, answer, vocabulary), float32

    logit_difference   the answer's logit less a foil's; foil=best (the default), mean (over the
                       prompt's foils), a number (that foil of every prompt) or a text (the same for
                       all); tokens=first (of the answer and the foil, the default) or all (the sum
                       over the tokens of both that stand at one place, the answer being fed)
    log_probability    of the whole answer, in nats
    probability        of the whole answer
    rank               the mean rank of the answer's tokens in the vocabulary; 1 is the likeliest
    kl                 KL(reference || run) in nats, the mean over the answer's tokens
    score              whether the answer is right, by the prompts' own scorer

The reference of `kl` is the run whose activations are patched in (`activation`, `cross_model`,
`restore`, `attribution`), else the whole model's on the same prompt (`path`, `circuit`,
`knockout`). A metric is beside the usual measures of a method, and it picks and sorts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.tasks.batching import Batch, encode
from workbench.tasks.prompts import Prompt
from workbench.tasks.scorers import Choices, Continuation

# A metric as it is asked for.
Asked = str | Callable[[Tensor, Batch], Tensor]

MEASURES = ("logit_difference", "log_probability", "score")
SCORED = ("score", "agreement")
DIFFERENCE = "logit_difference"
SETTINGS = ("foil", "tokens")  # of the logit difference
TOKENS = ("first", "all")
# Names that tables have for something else.
TAKEN = (*MEASURES, "probability", "rank", "kl", "squared_error", "agreement", "krs", "kl_krs")


@dataclass(frozen=True)
class Metric:
    """A metric and what a method must know of it. name: of its rows. function: (logits, batch) ->
    (rows,), and where it `compares` (logits, batch, the reference's logits) -> (rows,). lower:
    whether less of it is better. smooth: whether it has a gradient."""

    name: str
    function: Callable[..., Tensor]
    lower: bool = False
    smooth: bool = True
    compares: bool = False

    def __call__(self, logits: Tensor, inputs: Batch, reference: Tensor | None = None) -> Tensor:
        """(rows,) from logits (rows, answer, vocabulary). Raises WorkbenchError for a function that
        gives anything else."""
        more = (reference,) if self.compares else ()
        found = self.function(logits.float(), inputs, *more)
        if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise WorkbenchError(
                f"Expected the metric {self.name!r} to give one number a prompt, shape "
                f"({len(logits)},), found {told}; give a function metric(logits, batch) -> (rows,)."
            )
        return found.float()


def metric_of(asked: Asked | Metric | None, words: Any) -> Metric | None:
    """The metric that is asked for: by its name and settings ("logit_difference foil=mean"), a
    scorer of `tasks` that one run tells, or a function (logits, batch) -> (rows,). words: the
    tokenizer. Raises WorkbenchError for anything else."""
    if isinstance(asked, Metric) and asked.name in TAKEN and asked is not PLAIN.get(asked.name):
        return replace(asked, name=f"own {asked.name}")
    if asked is None or isinstance(asked, Metric):
        return asked
    if isinstance(asked, Continuation):
        return Metric("continuation", _greedy, smooth=False)
    if isinstance(asked, Choices):
        return Metric("choices", _likelier, smooth=False)
    if callable(asked):
        name = getattr(asked, "__name__", type(asked).__name__).strip("<>")
        return Metric(f"own {name}" if name in TAKEN else name, asked)
    if not isinstance(asked, str):
        raise WorkbenchError(
            f"Expected a metric's name or a function metric(logits, batch) -> (rows,), found "
            f"{asked!r}; give one of {', '.join((DIFFERENCE, *PLAIN))}, or a function."
        )
    return _named(asked, words)


def measures(metric: Metric | None, usual: Sequence[str] = MEASURES) -> list[str]:
    """The usual measures and this metric, each once."""
    return list(dict.fromkeys([*usual, *([] if metric is None else [metric.name])]))


def require_smooth(metric: Metric | None, what: str) -> None:
    """Raises for a metric without a gradient."""
    if metric is not None and not metric.smooth:
        raise WorkbenchError(
            f"{what} follows gradients, and the metric {metric.name!r} counts whole answers, which "
            "have none; give logit_difference, log_probability, probability, kl or a function that "
            "has a gradient."
        )


def measured(
    logits: Tensor, inputs: Batch, reference: Tensor | None = None, metric: Metric | None = None
) -> dict[str, Tensor]:
    """Measures of every patch and prompt, each (patches, batch), from logits (patches, batch,
    answer, vocabulary) at the answer's predictors.

    score: whether greedy decoding gives the whole answer, of choices whether it is likelier than
    every foil. logit_difference: the answer's first
    token less the best foil (NaN without foils). log_probability: nats, of the whole answer. With a
    reference, logits (batch, answer, vocabulary) of another run: squared_error, summed over answer
    tokens and vocabulary; kl, KL(reference || run) in nats, the mean over answer tokens; agreement,
    whether every most likely token is the reference's. Where one side has more tokens, error and
    divergence are over those that both have. metric: one more, by its name.
    """
    answer, counted, foils = _targets(inputs)
    scores = logits.float()
    best = scores.argmax(-1)
    log_p = scores.log_softmax(-1)
    own = log_p.gather(-1, answer.expand(*log_p.shape[:-1])[..., None])[..., 0]
    first = scores[:, :, 0]
    right = first.gather(-1, answer[:, :1].expand(len(first), -1, 1))[..., 0]
    wrong = first.gather(-1, foils.clamp(min=0).expand(len(first), -1, -1))
    wrong = wrong.masked_fill(foils < 0, -torch.inf).amax(-1)
    greedy = ((best == answer) | ~counted).all(-1)
    chooses = torch.tensor([row.choice for row in inputs.rows], device=greedy.device)
    found = {
        "score": torch.where(chooses, right > wrong, greedy).float(),
        "logit_difference": torch.where(wrong.isfinite(), right - wrong, torch.nan),
        "log_probability": (own * counted).sum(-1),
    }
    if reference is not None:
        goal = reference.float()
        shared = min(scores.shape[-1], goal.shape[-1])
        both = (scores[..., :shared], goal[..., :shared])
        error = (both[0] - both[1]).square().sum(-1)
        found |= {
            "squared_error": (error * counted).sum(-1),
            "kl": _divergence(scores, goal, counted),
            "agreement": ((best == goal.argmax(-1)) | ~counted).all(-1).float(),
        }
    if metric is not None and metric.name not in found:
        found[metric.name] = torch.stack([metric(one, inputs, reference) for one in scores])
    return found


def _named(text: str, words: Any) -> Metric:
    """A metric as it is typed: its name, then NAME=VALUE, quoted as in a shell."""
    try:
        name, *given = shlex.split(text) or [""]
    except ValueError as error:
        raise WorkbenchError(f"The metric {text!r} cannot be read ({error}).") from error
    if name not in (DIFFERENCE, *PLAIN):
        known = ", ".join((DIFFERENCE, *PLAIN))
        raise WorkbenchError(f"Expected a metric of {known}, found {text!r}.")
    parts = [one.partition("=") for one in given]
    settings = {key: value for key, _, value in parts}
    has = SETTINGS if name == DIFFERENCE else ()
    unknown = [one for one in settings if one not in has]
    if unknown:
        what = ", ".join(has) or "none"
        raise WorkbenchError(f"The metric {name} has no setting {unknown[0]!r}; it has {what}.")
    return PLAIN[name] if name in PLAIN else _difference(words, **settings)


def _difference(words: Any, foil: str = "best", tokens: str = "first") -> Metric:
    """The logit difference with these settings, named by those that are not the usual ones."""
    if tokens not in TOKENS:
        raise WorkbenchError(f"Expected tokens {' or '.join(TOKENS)}, found {tokens!r}.")
    told = [f"foil={foil}"] if foil != "best" else []
    told += [f"tokens={tokens}"] if tokens != "first" else []
    same: tuple[int, ...] = ()
    if foil not in ("best", "mean") and not foil.isdigit():
        coded = encode(words, Prompt("", "A", foil))
        same = tuple(coded.ids[coded.start :])
    most = 1 if tokens == "first" else None

    def difference(logits: Tensor, inputs: Batch) -> Tensor:
        rows = [
            [other[:most] for other in _others(row, foil, same) if _differ(row.answer, other, most)]
            for row in inputs.rows
        ]
        against = _against(logits, [row.answer for row in inputs.rows], rows)
        known = against.isfinite()
        if foil == "mean":
            found = against.masked_fill(~known, 0).sum(-1) / known.sum(-1)
        else:
            found = against.amin(-1)  # of the foil that comes closest
        return torch.where(known.any(-1), found, torch.nan)

    return Metric(" ".join([DIFFERENCE, *told]), difference)


def _others(row: Any, foil: str, same: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
    """The foils of one prompt that count, as whole token sequences."""
    if same:
        return [same]
    return row.wrong[int(foil) : int(foil) + 1] if foil.isdigit() else row.wrong


def _differ(answer: Sequence[int], other: Sequence[int], most: int | None) -> bool:
    """Whether two answers differ where both have a token."""
    return any(a != b for a, b in zip(answer[:most], other[:most], strict=False))


def _against(
    logits: Tensor, answers: Sequence[Sequence[int]], foils: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """(rows, foils) sum over the tokens that both have of the answer's logit less the foil's; inf
    where a row has fewer foils."""
    most = max(1, *map(len, foils)) if foils else 1
    width = logits.shape[1]
    right = torch.zeros(len(answers), most, width, dtype=torch.long)
    wrong = torch.zeros_like(right)
    none = torch.ones(len(answers), most, dtype=torch.bool)
    for i, (answer, own) in enumerate(zip(answers, foils, strict=True)):
        for j, other in enumerate(own):
            both = min(len(answer), len(other), width)
            right[i, j, :both] = torch.tensor(answer[:both])
            wrong[i, j, :both] = torch.tensor(other[:both])
            none[i, j] = False
    where = logits.device
    rows = torch.arange(len(answers), device=where)[:, None, None]
    places = torch.arange(width, device=where)
    found = logits[rows, places, right.to(where)] - logits[rows, places, wrong.to(where)]
    return found.sum(-1).masked_fill(none.to(where), torch.inf)


def _log_p(logits: Tensor, inputs: Batch) -> Tensor:
    answer, counted, _ = _targets(inputs)
    own = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]
    return (own * counted).sum(-1)


def _rank(logits: Tensor, inputs: Batch) -> Tensor:
    answer, counted, _ = _targets(inputs)
    above = (logits > logits.gather(-1, answer[..., None])).sum(-1) + 1
    return (above * counted).sum(-1) / counted.sum(-1)


def _greedy(logits: Tensor, inputs: Batch) -> Tensor:
    answer, counted, _ = _targets(inputs)
    return ((logits.argmax(-1) == answer) | ~counted).all(-1).float()


def _likelier(logits: Tensor, inputs: Batch) -> Tensor:
    answer, _, foils = _targets(inputs)
    first = logits[:, 0]
    wrong = first.gather(-1, foils.clamp(min=0)).masked_fill(foils < 0, -torch.inf).amax(-1)
    right = first.gather(-1, answer[:, :1])[:, 0]
    return torch.where(wrong.isfinite(), (right > wrong).float(), torch.nan)


def _score(logits: Tensor, inputs: Batch) -> Tensor:
    chooses = torch.tensor([row.choice for row in inputs.rows], device=logits.device)
    return torch.where(chooses, _likelier(logits, inputs), _greedy(logits, inputs))


def _divergence(scores: Tensor, goal: Tensor, counted: Tensor) -> Tensor:
    """KL(goal || scores) in nats, the mean over answer tokens; (..., batch)."""
    shared = min(scores.shape[-1], goal.shape[-1])
    log_p, goal_log_p = (one[..., :shared].log_softmax(-1) for one in (scores, goal.float()))
    each = (goal_log_p.exp() * (goal_log_p - log_p)).sum(-1).clamp(min=0)
    return (each * counted).sum(-1) / counted.sum(-1)


def _kl(logits: Tensor, inputs: Batch, reference: Tensor) -> Tensor:
    return _divergence(logits, reference, _targets(inputs)[1])


def _targets(inputs: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """answer (batch, a) padded with zeros, counted (batch, a) bool, foils (batch, f) padded with
    -1."""
    rows = inputs.rows
    longest = max(len(row.answer) for row in rows)
    most = max(1, *(len(row.foils) for row in rows))
    answer = torch.zeros(len(rows), longest, dtype=torch.long)
    counted = torch.zeros(len(rows), longest, dtype=torch.bool)
    foils = torch.full((len(rows), most), -1)
    for i, row in enumerate(rows):
        answer[i, : len(row.answer)] = torch.tensor(row.answer)
        counted[i, : len(row.answer)] = True
        foils[i, : len(row.foils)] = torch.tensor(row.foils, dtype=torch.long)
    where = inputs.ids.device
    return answer.to(where), counted.to(where), foils.to(where)


PLAIN = {  # those without settings
    one.name: one
    for one in (
        Metric("log_probability", _log_p),
        Metric("probability", lambda logits, inputs: _log_p(logits, inputs).exp()),
        Metric("rank", _rank, lower=True, smooth=False),
        Metric("kl", _kl, lower=True, compares=True),
        Metric("score", _score, smooth=False),
    )
}
