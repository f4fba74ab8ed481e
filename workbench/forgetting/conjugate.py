"""Conjugate prompting: is a lost answer still there if the prompt has a form that fine-tuning never
saw?

f is asked as s^-1(f(s(question))), s a reversible map of texts (`workbench.tasks`: renamed or
permuted symbols, other wordings, rescaled numbers, leetspeak, pig Latin, solved examples in front).
If fine-tuning taught the model to take the question for another task, the conjugate, unlike
anything of the fine-tuning, is not taken for it (Kotha et al. 2024, arXiv 2309.10105). Both answers
are scored, so that a model that switched the task and one that broke can be distinguished.

It misleads if s makes the question easier or harder by itself: the base's own score under s is the
baseline of every row. Of answers that are wrong by accident many are right wherever they are asked
again: a model that errs on one question in five, on others in every wording, "recovers" four in
five of the lost answers (regression to the mean). So recovery_net also counts what goes wrong
there, which makes a wording that is no better than the plain one recover nothing. The best of
several conjugations is chosen on one half of the prompts and reported on the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import Side, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, change, halves, ratios, share_of, shares
from workbench.tasks.batching import encode
from workbench.tasks.conjugations import RIVAL
from workbench.tasks.prompts import Prompt, PromptSet

KEY = "forgetting.conjugate"
PLAIN, BEST = "plain", "best"
Floats = NDArray[np.float64]
Outcomes = dict[str, Floats]  # outcome -> (prompts,), 0, 1 or NaN


def known(base: Floats, tuned: Floats, there: Floats) -> Floats:
    """`recovered` of the prompts that the base answers on plain prompts; NaN for the others."""
    return np.where(base == 1, recovered(base, tuned, there), np.nan)


def recovered(base: Floats, tuned: Floats, there: Floats) -> Floats:
    """(regained, lost) per prompt, of which recovery is the ratio of sums. base, tuned: right on
    the plain prompt; there: tuned, right on the conjugate one."""
    return np.stack([there - tuned, base - tuned])


@analysis(
    "Does a lost answer come back if the prompt is in a form that fine-tuning never saw?",
    paper="arXiv 2309.10105",
    example="--prompts facts.jsonl --conjugates leet=leet.jsonl",
    passes=6,
    takes={"prompts": "task", "conjugates": "conjugates", "task": "learned"},
    texts=True,
)
def conjugate(
    pair: CheckpointPair,
    prompts: PromptSet,
    conjugates: Mapping[str, PromptSet],
    *,
    task: PromptSet | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Compare the answers of both models to prompts and to their conjugates, prompt by prompt.

    prompts: prompts of the capability that may be lost. conjugates: name -> the same prompts in the
    same order behind a conjugation, as `tasks.permutation(...)(prompts)` gives them. task: prompts
    of the fine-tuned task, whose answers show whether the model switched to that task. A switch is
    an answer that is the prompt's tag "rival" or, if it has none, begins with the first token of
    any answer of `task`. If the prompts' own answers are among those, as for two tasks about
    numbers, a switch cannot be recognised and is NaN.

    Returns a Result with a row per (arm, metric); arm "plain", a conjugation's name, or "best", the
    conjugation with most right answers on one half of the prompts, reported on the other. score,
    switched and broke (neither right nor switched): shares of the tuned model's answers (baseline:
    the base's), right by greedy exact match, switched by the first token. score_change: tuned -
    base. For conjugations regained: tuned there - tuned on plain prompts (baseline: the same of the
    base), and recovery, its ratio to the loss base - tuned on plain prompts, NaN if the interval of
    that loss holds 0 or there is none; and recovery_lost, the share right there of the prompts that
    the base answers on plain prompts and the tuned model does not (n: those; baseline: the base's
    share of the same ones there); and recovery_net, what the prompts that the base answers gain
    there, right less newly wrong, as a ratio to what they lost (n: those; baseline: 0, what another
    wording with the plain prompts' own score gives, whichever answers it errs on). 95%
    intervals over prompts, all paired. Raises WorkbenchError if conjugates do not match the prompts
    one by one.
    """
    require_prompts(prompts)
    _require_alike(prompts, conjugates)
    base, tuned = both(pair, batch_size, device, dtype)
    rivals = _first_tokens(base.words, task) if task is not None else None
    sets = {PLAIN: prompts, **conjugates}
    read = [
        {name: _outcomes(side, one, rivals) for name, one in sets.items()} for side in (base, tuned)
    ]
    rows = []
    for arm in sets:
        rows += _rows(arm, read[0], read[1], slice(None), seed, same=pair.same)
    rows += _best(list(conjugates), read[0], read[1], len(prompts), seed, same=pair.same)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "conjugates": describe(dict(conjugates)),
        "task": describe(task),
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _require_alike(prompts: PromptSet, conjugates: Mapping[str, PromptSet]) -> None:
    if not conjugates:
        raise WorkbenchError(
            "Expected conjugate prompts by name, found none; give --conjugates NAME=FILE."
        )
    for name, one in conjugates.items():
        if name in (PLAIN, BEST):
            raise WorkbenchError(f"A conjugation cannot be called {name!r}; use another name.")
        if len(one) != len(prompts):
            raise WorkbenchError(
                f"Expected a conjugate of each of the {len(prompts)} prompts of {prompts.name!r}, "
                f"found {len(one)} of {name!r}."
            )


def _first_tokens(words: Any, task: PromptSet) -> frozenset[int]:
    """The first tokens of a task's answers."""
    coded = (encode(words, prompt) for prompt in task)
    return frozenset(one.ids[one.start] for one in coded)


def _outcomes(side: Side, prompts: PromptSet, rivals: frozenset[int] | None) -> Outcomes:
    """Right, switched and broke, prompt by prompt."""
    found = side.answers(prompts)
    right, said = found["correct"].to_numpy(float), found["said"].to_numpy()
    found_rivals = [_rivals(side.words, prompt, rivals) for prompt in prompts]
    told = all(one is not None for one in found_rivals)
    switched = np.array([
        float(token in (one or ())) if told else np.nan
        for one, token in zip(found_rivals, said, strict=True)
    ])  # fmt: skip
    # What is right is right, whatever its first token.
    switched = np.where(np.isnan(switched), np.nan, switched * (1 - right))
    return {"score": right, "switched": switched, "broke": 1 - right - switched}


def _rivals(words: Any, prompt: Prompt, rivals: frozenset[int] | None) -> frozenset[int] | None:
    """The first tokens that tell a switched task; None where they cannot."""
    own = encode(words, prompt)
    if RIVAL in prompt.tags:
        other = encode(words, Prompt(prompt.id, prompt.prompt, prompt.tags[RIVAL]))
        rivals = frozenset([other.ids[other.start]])
    return None if rivals is None or own.ids[own.start] in rivals else rivals


def _rows(
    arm: str,
    base: dict[str, Outcomes],
    tuned: dict[str, Outcomes],
    part: Any,
    seed: int,
    *,
    same: bool = False,
) -> list[dict[str, Any]]:
    """The rows of one arm over some of the prompts. same: base and tuned model are one."""

    def row(metric: str, found: Interval, baseline: float):
        return {"arm": arm, "metric": metric} | found._asdict() | {"baseline": baseline}

    def outcome(metric: str, values: Floats, baseline: float):
        return row(metric, shares(values[part], seed=seed).first, baseline)

    def mean(values: Floats) -> float:
        known = values[part][np.isfinite(values[part])]
        return float(known.mean()) if known.size else np.nan

    ours, theirs = base[arm], tuned[arm]
    made = [outcome(metric, theirs[metric], mean(ours[metric])) for metric in theirs]
    moved = change(ours["score"][part], theirs["score"][part], same=same, seed=seed)
    made.append(row("score_change", moved, mean(ours["score"])))
    if arm == PLAIN:
        return made
    first, last = base[PLAIN]["score"], tuned[PLAIN]["score"]
    regained, lost = recovered(first, last, theirs["score"])
    more = ratios(regained[part], seed=seed).first
    made.append(row("regained", more, mean(ours["score"] - first)))
    made.append(row("recovery", share_of(regained[part], lost[part], seed=seed), 0.0))
    net = known(first, last, theirs["score"])[:, part]
    made.append(row("recovery_net", share_of(*net, seed=seed), 0.0))
    gone = (first == 1) & (last == 0)
    back, own = (np.where(gone, side["score"], np.nan) for side in (theirs, ours))
    return [*made, outcome("recovery_lost", back, mean(own))]


def _best(
    names: list[str],
    base: dict[str, Outcomes],
    tuned: dict[str, Outcomes],
    n: int,
    seed: int,
    *,
    same: bool = False,
) -> list[dict[str, Any]]:
    """The conjugation that half of the prompts choose, on the other half."""
    if n < 4:
        return []
    choose, report = halves(n, seed)
    name = max(names, key=lambda one: tuned[one]["score"][choose].mean())
    made = _rows(name, base, tuned, report, seed, same=same)
    return [row | {"arm": BEST, "chosen": name} for row in made]
