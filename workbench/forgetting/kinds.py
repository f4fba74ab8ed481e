"""Kinds of answers: into which kind of answer did each item turn?

A score tells right from wrong; two models with equal scores can fail in different ways, and a score
that rises can hide that what is still wrong is now a refusal. Every answer is put into a kind on
both sides, and the items are counted by the kind before and after: the paired table from which
transitions between errors are read. Whether the kinds became more or less frequent is the test of
marginal homogeneity (Stuart 1955, Maxwell 1970), by exchange of the sides, see `stats.homogeneity`.
The control of a transition is the way back: where fine-tuning only shuffles which items fail, as
many go either way.

It misleads if the classifier reads style: an answer that is now a sentence may count as "other"
though it says the same. Look at the items of a transition before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import SHOWN, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import change, homogeneity, paired_counts, share, wilson
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Continuation, Generation, Loss

KEY = "forgetting.kinds"
RIGHT, OPTION, REFUSAL, EMPTY, OTHER = "right", "other option", "refusal", "empty", "other"
# How answers begin, or what they say, that decline the question.
DECLINED = re.compile(
    r"\b(?:i (?:can(?:no|'|’)t|am (?:not able|unable)|do(?:n't| not|n’t) know|won'?t)"
    r"|(?:i'?m|i am) (?:sorry|afraid|unable)|unable to (?:answer|help|say)|as an ai\b"
    r"|not (?:enough information|sure)|no idea)",
    re.IGNORECASE,
)
Classifier = Callable[[Prompt, str], str]
Ints = NDArray[np.int64]


class Options:
    """The kinds of a wrong answer, by name: "other option", if it is an answer that this or another
    prompt of the set offers (its target or a foil); "refusal", "empty" and "other".

    prompts: the set. Space, case and a full stop at the end make no difference. Of a continuation
    only the first words are known, up to where it leaves the target: it is an option where one
    begins so. Of a written text what its scorer extracts is compared.
    """

    def __init__(self, prompts: PromptSet) -> None:
        self.scorer = prompts.scorer
        self.known = {_plain(text) for p in prompts for text in (p.target, *p.foils)} - {""}

    def __call__(self, prompt: Prompt, answer: str) -> str:
        said = _plain(answer)
        if not said:
            return EMPTY
        if self._option(answer, said):
            return OPTION
        return REFUSAL if DECLINED.search(answer) else OTHER

    def _option(self, answer: str, said: str) -> bool:
        if isinstance(self.scorer, Continuation):
            return any(one == said or one.startswith(f"{said} ") for one in self.known)
        if isinstance(self.scorer, Generation):
            return _plain(self.scorer.found(answer) or "") in self.known
        return said in self.known


class Patterns:
    """The kinds of a wrong answer by regular expressions, the first that is found in it; "other"
    where none is, "empty" where there is nothing."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.patterns: dict[str, re.Pattern[str]] = {}
        if RIGHT in patterns:
            raise WorkbenchError(
                f"Expected kinds of wrong answers, found {RIGHT!r}; give it another name."
            )
        for name, pattern in patterns.items():
            try:
                self.patterns[name] = re.compile(pattern)
            except re.error as error:
                raise WorkbenchError(
                    f"Expected a regular expression for the kind {name!r}, found {pattern!r} "
                    f"({error}); correct it."
                ) from error

    def __call__(self, prompt: Prompt, answer: str) -> str:
        found = (name for name, pattern in self.patterns.items() if pattern.search(answer))
        return next(found, OTHER) if answer.strip() else EMPTY


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


@analysis(
    "Into which kinds of answers and errors did the answers turn?",
    paper="Stuart 1955, Maxwell 1970",
    example="--prompts task.jsonl",
    passes=2,
    texts=True,
    items=True,
)
def kinds(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    kind: Mapping[str, str] | Classifier | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Count the items by the kind of the base's answer and of the tuned model's.

    prompts: prompts with answers, whose scorer says which are right. kind: how wrong answers are
    classified: a regular expression for each kind, of which the first that is found counts, or a
    function of a prompt and a wrong answer that names its kind; None tells another option of the
    task, a refusal, an empty answer and any other apart; of continuations only the first words are
    known, so that refusals are told apart only where answers are written (`tasks.Generation`).

    Returns a Result with rows share, of the answers of a kind (side "base", "tuned"; category;
    baseline: the base's), and share_change, paired; transition, the share of the base's answers of
    one kind (category) that became another (to_category), with the share that would if as many went
    back as forth as baseline; net, the share of all items that went from category to to_category
    less the share that went back (baseline 0); homogeneity, the p that all kinds are as frequent on
    both sides (columns chi2, degrees, changed: the items whose kind differs); and item, one row a
    prompt (value: the tuned model's score, baseline: the base's; category, to_category, asked,
    expected, base_said, said). The kind of a right answer is "right". 95% intervals over prompts.
    Raises WorkbenchError for prompts whose answers are not right or wrong, and for a kind that is
    no text.
    """
    require_prompts(prompts)
    if isinstance(prompts.scorer, Loss) or getattr(prompts.scorer, "samples", 1) > 1:
        raise WorkbenchError(
            f"Expected a scorer that calls one answer to each prompt of {prompts.name!r} right or "
            f"wrong, found {prompts.scorer.name} that does not; give continuation, choices, or "
            "generation with samples=1."
        )
    named = Patterns(kind) if isinstance(kind, Mapping) else kind or Options(prompts)
    base, tuned = both(pair, batch_size, device, dtype)
    read = [side.answers(prompts) for side in (base, tuned)]
    told = [[*_kinds(prompts, one, named)] for one in read]
    names = [RIGHT, *sorted({one for own in told for one in own} - {RIGHT})]
    before, after = (np.array([names.index(one) for one in own]) for own in told)
    rows = [*_shares(names, before, after, pair.same), *_moves(names, before, after, pair.same)]
    rows.append(_homogeneity(before, after, len(names), seed))
    rows += _items(prompts, read, told)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    # An object that can be called is known by its type.
    own = type(kind) if callable(kind) and not hasattr(kind, "__qualname__") else kind
    parameters = {"prompts": describe(prompts), "kind": describe(own)}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _kinds(prompts: PromptSet, read: pd.DataFrame, named: Classifier) -> Iterator[str]:
    """The kind of each answer."""
    for prompt, score, said in zip(prompts, read["correct"], read["answer"], strict=True):
        kind = RIGHT if score else named(prompt, str(said))
        if not isinstance(kind, str) or not kind:
            raise WorkbenchError(
                f"Expected the kind of an answer to be a text, found {kind!r} for prompt "
                f"{prompt.id!r}; return the kind's name."
            )
        if kind == RIGHT and not score:
            raise WorkbenchError(
                f"Expected a kind of wrong answers, found {RIGHT!r} for the wrong answer to prompt "
                f"{prompt.id!r}; give it another name."
            )
        yield kind


def _shares(names: list[str], before: Ints, after: Ints, same: bool) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(names):
        first, last = ((side == number).astype(float) for side in (before, after))
        about = {"category": name, "baseline": float(first.mean())}
        for side, values in (("base", first), ("tuned", last)):
            yield about | {"metric": "share", "side": side} | share(values)._asdict()
        yield about | {"metric": "share_change"} | change(first, last, same=same)._asdict()


def _moves(names: list[str], before: Ints, after: Ints, same: bool) -> Iterator[dict[str, Any]]:
    counts = paired_counts(before, after, len(names))
    for (i, j), count in np.ndenumerate(counts):
        own = int(counts[i].sum())
        if own:  # a kind that the base never answers goes nowhere
            about = {"category": names[i], "to_category": names[j], "metric": "transition"}
            halfway = float(count + counts[j, i]) / 2 / own if i != j else np.nan
            yield about | wilson(int(count), own)._asdict() | {"baseline": halfway}
    for i, j in combinations(range(len(names)), 2):
        forth, back = (((before == a) & (after == b)).astype(float) for a, b in ((i, j), (j, i)))
        about = {"category": names[i], "to_category": names[j], "metric": "net", "baseline": 0.0}
        yield about | change(back, forth, same=same)._asdict()


def _homogeneity(before: Ints, after: Ints, kinds: int, seed: int) -> dict[str, Any]:
    found = homogeneity(paired_counts(before, after, kinds), seed=seed)
    return {
        "metric": "homogeneity", "value": found.p, "n": len(before), "chi2": found.chi2,
        "degrees": found.degrees, "changed": found.changed, "baseline": np.nan,
    }  # fmt: skip


def _items(
    prompts: PromptSet, read: list[pd.DataFrame], told: list[list[str]]
) -> Iterator[dict[str, Any]]:
    (first, last), (before, after) = read, told
    for i, prompt in enumerate(prompts):
        yield {
            "metric": "item", "prompt": prompt.id, "value": float(last["correct"].iloc[i]),
            "baseline": float(first["correct"].iloc[i]), "category": before[i],
            "to_category": after[i], "asked": prompt.prompt[-SHOWN:], "expected": prompt.target,
            "base_said": str(first["answer"].iloc[i]), "said": str(last["answer"].iloc[i]),
        }  # fmt: skip
