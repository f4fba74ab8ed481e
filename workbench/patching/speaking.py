"""What is written with a direction added, and which words are the fine-tuning's own?

Texts are drawn from a first token on, with the same random numbers for every model and direction,
so that two kinds of text differ by what was changed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.models import Site
from workbench.models.sides import Sides
from workbench.patching.direction import Direction, equals
from workbench.stats import halves, ratios
from workbench.stats.novelty import WORD, overused
from workbench.tasks import PromptSet
from workbench.tasks.decoding import Choose, contrasted, last, written

Floats = NDArray[np.float64]
CONTRAST, PROMPTS, TUNED, DIFFERENCE, RANDOM = (
    "contrast", "prompts", "tuned", "difference", "random",
)  # fmt: skip
WORDS = 30  # told of each kind of text, and the most that make a reference
ALPHA = 0.1  # as in `behaviour.generate`
SHOWN = 3  # texts of each kind


class Reference(NamedTuple):
    """Words that are used more than the base uses them. arm: what used them. told: rows of word,
    count, other_count and z, those above chance. tokens: the first token of each."""

    arm: str
    told: list[dict[str, Any]]
    chance: float
    tokens: list[int]
    notes: list[str]

    @property
    def words(self) -> set[str]:
        return {row["word"] for row in self.told}


@dataclass(frozen=True)
class Speaking:
    """Both sides, and the first tokens of the texts that they write. length: the most tokens."""

    sides: Sides
    words: Any
    begun: Sequence[list[int]]
    length: int
    batch_size: int
    seed: int

    @cached_property
    def plain(self) -> list[list[int]]:
        """The base's own texts, without their first tokens."""
        return self._ids([self.sides.base])

    @property
    def reports(self) -> NDArray[np.bool_]:
        """(texts,) which of them report; by the others words are chosen."""
        return np.isin(np.arange(len(self.begun)), halves(len(self.begun), self.seed)[1])

    def reference(self, prompts: PromptSet | Sequence[str] | None) -> Reference:
        """The words of prompts, against those of the base's texts that choose; without prompts what
        the contrast of both models writes, against the base's contrast with itself."""
        arm, others = PROMPTS, _where(~self.reports, [self._text(ids) for ids in self.plain])
        if prompts is None:
            arm, choose = CONTRAST, contrasted(ALPHA)
            models = [self.sides.base, self.sides.tuned]
            texts = [self._text(ids) for ids in self._ids(models, choose)]
            others = [self._text(ids) for ids in self._ids(models[:1], choose)]
        else:
            texts = [one if isinstance(one, str) else one.text for one in prompts]
        table, chance = overused(texts, others, seed=self.seed)
        told = table[table["z"] > chance].head(WORDS).to_dict("records")
        tokens = words_of(self.words, [row["word"] for row in told])
        notes = []
        if not tokens:
            notes = [f"no word of the {arm} is used more than by the base, so there is nothing to "
                     "hold the reading against."]  # fmt: skip
        return Reference(arm, told, chance, tokens, notes)

    def rows(self, reference: Reference, vector: Floats, site: Site) -> Iterator[dict[str, Any]]:
        """Rows of what is written with the vector added to the base's stream at the site, with a
        random one, and by the tuned model; shares are of the texts that report."""
        about = {"layer": site.layer}
        for place, row in enumerate(reference.told):
            yield about | _word(reference.arm, place, row, reference.chance)
        own = vector.astype(np.float32)
        made = {DIFFERENCE: self._steered(own, site)}
        made[RANDOM] = self._steered(equals(own, 1, self.seed + site.layer)[0], site)
        made[TUNED] = self._ids([self.sides.tuned])
        plain = [self._text(ids) for ids in self.plain]
        for arm, written_ids in made.items():
            texts = [self._text(ids) for ids in written_ids]
            for number, text in enumerate(texts[:SHOWN]):
                said = {"arm": arm, "metric": "text", "x": float(number), "prompt": ""}
                yield about | said | {"text": text}
            ours, theirs = (_where(~self.reports, side) for side in (texts, plain))
            table, chance = overused(ours, theirs, seed=self.seed)
            for place, row in enumerate(table.head(WORDS).to_dict("records")):
                yield about | _word(arm, place, row, chance)
            new = {*table.loc[table["z"] > chance, "word"]}
            for metric, which in (("new_words", new), ("reference_words", reference.words)):
                told = self._share(texts, plain, which)
                yield about | {"arm": arm, "metric": metric} | told

    def _share(self, texts: Sequence[str], plain: Sequence[str], which: set[str]) -> dict[str, Any]:
        """The share of the words that are of these, in the texts that report; baseline: the base's
        texts."""
        counts = []
        for side in (texts, plain):
            said = [WORD.findall(one) for one in _where(self.reports, side)]
            counts.append([[sum(word in which for word in own), len(own)] for own in said])
        (top, bottom), (null, below) = (np.array(own, float).T for own in counts)
        found = ratios(top, bottom, seed=self.seed).first._asdict()
        return found | {"baseline": float(null.sum() / max(below.sum(), 1.0))}

    def _steered(self, vector: NDArray[np.float32], site: Site) -> list[list[int]]:
        with Direction("difference", site, vector).added(self.sides.base):
            return self._ids([self.sides.base])

    def _ids(self, models: Sequence[Any], choose: Choose = last) -> list[list[int]]:
        both = (self.sides.base, self.sides.tuned)
        known = min(len(model.get_input_embeddings().weight) for model in both)
        how: dict[str, Any] = {"stop": self.words.eos_token_id, "known": known, "sample": True}
        how |= {"batch_size": self.batch_size, "seed": self.seed}
        return written(models, self.begun, self.length, choose, **how)

    def _text(self, ids: Sequence[int]) -> str:
        return self.words.decode(ids)


def _where(which: NDArray[np.bool_], texts: Sequence[str]) -> list[str]:
    return [text for text, here in zip(texts, which, strict=True) if here]


def words_of(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The token with which each of these words begins behind a space, each token once, those that
    the tokenizer knows."""
    coded = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    first = [ids[0] for ids in coded if ids and ids[0] != tokenizer.unk_token_id]
    return [*dict.fromkeys(first)]


def _word(arm: str, place: int, row: dict[str, Any], chance: float) -> dict[str, Any]:
    about = {"arm": arm, "metric": "word", "x": float(place), "word": row["word"]}
    told = {name: row[name] for name in ("count", "other_count")}
    return about | told | {"value": row["z"], "baseline": chance}
