"""Critical tokens: which tokens of a written text decide its answer?

Each model writes its text greedily. At one token of it the runner-up is taken instead, the text is
written on greedily, and the answer is found again: if it is another one, the token was critical.
Lin et al. 2024 (arXiv 2411.19943v3) find such tokens by sampling on from every token of a wrong
solution; here one replacement is tried, so that the numbers are of the most likely other way.

Three kinds of tokens are replaced, as many of each in every text: those where the runner-up is
nearest ("fork"), those where fine-tuning moved the distribution most, by KL(tuned || base)
("moved"), and random ones, which are the control and estimate the share of critical tokens. Tokens
of the answer itself, and what stands behind it, are left out: to replace them changes the answer by
definition.

It misleads on short texts, whose few tokens are all forks, and if the runner-up is another spelling
of the same word: then nothing was decided there, and the answer stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios, share, shares
from workbench.tasks.batching import Encoded
from workbench.tasks.decoding import written
from workbench.tasks.generation import ended
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import side_by_side
from workbench.tasks.scorers import Generation

KEY = "behaviour.critical"
SIDES = ("base", "tuned")
FORK, MOVED, RANDOM = "fork", "moved", "random"
ARMS = (FORK, MOVED, RANDOM)
Floats = NDArray[np.float64]


class Answer(NamedTuple):
    """What is found in a text, and whether it is right."""

    found: str | None
    right: bool


@dataclass
class Text:
    """One text as a model wrote it. asked: the prompt's tokens; ids: the text's; said: its answer;
    before: tokens before the answer, which may be replaced. other: (before,) the runner-up at each;
    margin: how much less likely it is, nats; kl: KL(tuned || base) there. places: arm -> the tokens
    that are replaced; then: the answer after each replacement."""

    prompt: Prompt
    asked: list[int]
    ids: list[int]
    said: Answer
    before: int
    other: list[int] = field(default_factory=list)
    margin: Floats = field(default_factory=lambda: np.zeros(0))
    kl: Floats = field(default_factory=lambda: np.zeros(0))
    places: dict[str, list[int]] = field(default_factory=dict)
    then: dict[int, Answer] = field(default_factory=dict)


def before_answer(words: Any, ids: Sequence[int], scorer: Generation) -> int:
    """How many tokens of a text stand before its answer; all of them where it has none.

    The answer is what `scorer` finds in the whole text. It begins at the token from which on it is
    found, whatever follows, or at the first of those of which only a beginning was found before
    ("1" of "18"): a last step that states the answer is left out too.
    """
    found = [scorer.found(words.decode(ids[:n])) for n in range(len(ids) + 1)]
    answer = found[-1]
    if answer is None:
        return len(ids)
    n = len(ids)
    while n and found[n - 1] == answer:
        n -= 1
    while n and found[n - 1] and answer.startswith(str(found[n - 1])):
        n -= 1
    return max(n - 1, 0)


def chosen(text: Text, most: int, draw: np.random.Generator) -> dict[str, list[int]]:
    """arm -> at most `most` of the tokens before the answer."""
    return {
        FORK: np.argsort(text.margin, kind="stable")[:most].tolist(),
        MOVED: np.argsort(-text.kl, kind="stable")[:most].tolist(),
        RANDOM: draw.permutation(text.before)[:most].tolist(),
    }


@analysis(
    "Which tokens of a written text decide its answer?",
    paper="arXiv 2411.19943",
    example='--prompts gsm8k.jsonl --scorer "generation length=128 extract=[0-9]+"',
    passes=24,
    quick={"most": 2},
    few={"prompts": 12},
    quick_passes=12,
    texts=True,
)
def critical(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    most: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Replace single tokens of each model's own greedy texts by the runner-up and write on.

    prompts: prompts whose scorer is a generation that finds the answer in the text ("extract"); its
    length and stops hold for the texts, which are written greedily. most: the number of tokens of
    each kind that are replaced in a text, one at a time; a text with fewer before its answer gives
    all it has.

    The command line takes 12 prompts and 2 tokens of each kind; with --full all prompts and 4.

    Returns a Result with rows by side ("base", "tuned") and arm ("fork", "moved", "random"): flip,
    the share of replacements after which the answer is another one (baseline: of random tokens),
    broken, the share after which a right answer is wrong (over texts that were right), and fixed,
    the share after which a wrong one is right; flip_beyond_random, flip less that of random tokens
    of the same texts, paired; and flip_change, tuned - base on the same prompts (arm "random": the
    change of the share of critical tokens). By side also score, and tokens, how many stand before
    an answer. 95% intervals over prompts; rows flip are NaN if no text has a token before its
    answer. Raises WorkbenchError for prompts whose scorer finds no answer inside a text.
    """
    scorer = prompts.scorer
    if not len(prompts) or not isinstance(scorer, Generation) or not scorer.extract:
        raise WorkbenchError(
            "Expected prompts whose scorer finds the answer in a written text, found "
            f"{getattr(scorer, 'name', scorer)!r} of {len(prompts)} prompts; give one with extract "
            '(tasks.GSM8K, or --scorer "generation extract=...").'
        )
    if most < 1:
        raise WorkbenchError(f"Expected 1 token or more of each kind, found {most}.")
    words = pair.base.tokenizer()
    with pair.models(device, named_dtype(dtype)) as sides:
        models = (sides.base, sides.tuned)
        asker = Asker(models, words, scorer, batch_size)
        read = []
        with progress(total=2 * len(prompts), desc=f"{pair.name}: tokens replaced") as bar:
            for side in (0, 1):
                texts = asker.texts(side, prompts)
                draw = np.random.default_rng(seed)
                for text in texts:
                    text.places = chosen(text, most, draw)
                asker.replace(side, texts)
                read.append(texts)
                bar.update(len(prompts))
    table = pd.DataFrame([*_rows(read, seed)])
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {"prompts": describe(prompts), "most": most}
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


@dataclass(frozen=True)
class Asker:
    """Both models, asked for texts and for what they hold likely. models: base and tuned, called as
    transformers' causal models are."""

    models: Sequence[Any]
    words: Any
    scorer: Generation
    batch_size: int

    def texts(self, side: int, prompts: PromptSet) -> list[Text]:
        """What one side writes, with its runners-up and what both sides differ by there."""
        asked = [self.words(prompt.prompt)["input_ids"] for prompt in prompts]
        made = []
        texts = self._written(side, asked, self.scorer.length)
        for prompt, ids, own in zip(prompts, asked, texts, strict=True):
            before = before_answer(self.words, self._kept(own), self.scorer)
            made.append(Text(prompt, ids, own, self._answer(own, prompt), before))
        coded = [Encoded([*one.asked, *one.ids], len(one.asked)) for one in made]
        full = [place for place, one in enumerate(made) if one.before]
        given = [coded[place] for place in full]
        for index, both in side_by_side(self.models, self.words, given, self.batch_size):
            one = made[full[index]]
            base, tuned = (said[: one.before].float().cpu() for said in both)
            own = (base, tuned)[side].clone()
            tokens = np.asarray(one.ids[: one.before])
            rows = np.arange(one.before)
            first = own[rows, tokens].clone()
            own[rows, tokens] = -np.inf
            best = own.max(-1)
            one.other = best.indices.tolist()
            one.margin = (first - best.values).double().numpy()
            moved = tuned.exp() * (tuned - base).nan_to_num(0.0)
            one.kl = moved.sum(-1).double().numpy()
        return made

    def replace(self, side: int, texts: Sequence[Text]) -> None:
        """Fill in the answer of each text after each of its replacements."""
        asked = [
            (one, place)
            for one in texts
            for place in sorted({place for own in one.places.values() for place in own})
        ]
        if not asked:
            return
        heads = [[*one.ids[:place], one.other[place]] for one, place in asked]
        begun = [[*one.asked, *head] for (one, _), head in zip(asked, heads, strict=True)]
        lengths = [self.scorer.length - len(head) for head in heads]
        more = self._written(side, begun, lengths)
        for (one, place), head, tail in zip(asked, heads, more, strict=True):
            one.then[place] = self._answer([*head, *tail], one.prompt)

    def _written(
        self, side: int, begun: Sequence[list[int]], length: int | Sequence[int]
    ) -> list[list[int]]:
        stop = self.words.eos_token_id
        model = [self.models[side]]
        return written(model, begun, length, stop=stop, batch_size=self.batch_size)

    def _answer(self, ids: Sequence[int], prompt: Prompt) -> Answer:
        text = ended(self.words.decode(ids), self.scorer.stop)
        return Answer(self.scorer.found(text), self.scorer.right(text, prompt.target))

    def _kept(self, ids: list[int]) -> list[int]:
        """The tokens up to the first stop, behind which nothing counts."""
        text = ended(self.words.decode(ids), self.scorer.stop)
        n = len(ids)
        while n and len(self.words.decode(ids[: n - 1])) >= len(text):
            n -= 1
        return ids[:n]


def _rows(read: Sequence[Sequence[Text]], seed: int) -> Iterator[dict[str, Any]]:
    rates: list[dict[str, dict[str, Floats]]] = []
    for side, texts in zip(SIDES, read, strict=True):
        rates.append({arm: _rates(texts, arm) for arm in ARMS})
        right = np.array([one.said.right for one in texts], dtype=float)
        own = share(right, seed=seed)._asdict()
        yield {"metric": "score", "side": side, **own, "baseline": np.nan}
        lengths = np.array([one.before for one in texts], dtype=float)
        own = ratios(lengths, seed=seed).first._asdict()
        yield {"metric": "tokens", "side": side, **own, "baseline": np.nan}
        beside = rates[-1][RANDOM]
        for arm, found in rates[-1].items():
            for metric, values in found.items():
                own = shares(values, seed=seed).first._asdict()
                base = _mean(beside[metric])
                yield {"metric": metric, "side": side, "arm": arm, **own, "baseline": base}
            if arm != RANDOM:
                more = ratios(found["flip"] - beside["flip"], seed=seed).first._asdict()
                told = {"metric": "flip_beyond_random", "side": side, "arm": arm}
                yield told | more | {"baseline": 0.0}
    for arm in ARMS:
        before, after = (own[arm]["flip"] for own in rates)
        moved = ratios(after - before, seed=seed).first._asdict()
        yield {"metric": "flip_change", "arm": arm, **moved, "baseline": _mean(before)}


def _rates(texts: Sequence[Text], arm: str) -> dict[str, Floats]:
    """(prompts,) of each text's replacements the share that flip its answer, and that break a right
    or fix a wrong one; NaN where there is nothing to replace, break or fix."""
    found = {name: np.full(len(texts), np.nan) for name in ("flip", "broken", "fixed")}
    for i, text in enumerate(texts):
        then = [text.then[place] for place in text.places[arm]]
        if then:
            found["flip"][i] = np.mean([one.found != text.said.found for one in then])
            right = np.mean([one.right for one in then])
            where, value = ("broken", 1 - right) if text.said.right else ("fixed", right)
            found[where][i] = value
    return found


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
