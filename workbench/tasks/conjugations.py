"""Conjugations: the same question where fine-tuning never was, its answer brought back from there.

s is a map of texts with an inverse on answers; a model f is asked as s^-1(f(s(question))). Source:
Kotha et al. (2024), arXiv 2309.10105, who translate into another language, write leetspeak or
pig Latin, or scale the labels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.errors import WorkbenchError
from workbench.tasks.prompts import Prompt, PromptSet

CONSONANTS = "bcdfghjklmnpqrstvwxz"
PIG_LATIN = re.compile(r"(?<![\w-])([A-Za-z]*)-([A-Za-z]*)ay\b")
RIVAL = "rival"  # the tag that holds what the fine-tuned task would answer


@dataclass(frozen=True)
class Conjugation:
    """there: a question or an answer -> its conjugate. back: an answer's conjugate -> the answer.

    Called on a prompt set it gives the conjugate prompts in the same order: prompt, target, foils
    and the tag "rival" are carried over. Raises WorkbenchError where an answer does not come back,
    or no prompt changes.
    """

    name: str
    there: Callable[[str], str]
    back: Callable[[str], str]

    def __call__(self, prompts: PromptSet) -> PromptSet:
        made = tuple(map(self._one, prompts))
        if all(new.prompt == old.prompt for new, old in zip(made, prompts, strict=True)):
            raise WorkbenchError(
                f"{self.name} changes no prompt of {prompts.name!r}; use another conjugation."
            )
        return replace(prompts, name=f"{prompts.name}, {self.name}", prompts=made)

    def _one(self, prompt: Prompt) -> Prompt:
        rival = {RIVAL: prompt.tags[RIVAL]} if RIVAL in prompt.tags else {}
        for answer in (prompt.target, *prompt.foils, *rival.values()):
            if self.back(self.there(answer)) != answer:
                raise WorkbenchError(
                    f"{self.name} cannot turn {answer!r} of prompt {prompt.id!r} back; "
                    "use another conjugation for these answers."
                )
        return replace(
            prompt,
            id=f"{prompt.id}-{self.name}",
            prompt=self.there(prompt.prompt),
            target=self.there(prompt.target),
            foils=tuple(map(self.there, prompt.foils)),
            tags=dict(prompt.tags) | {name: self.there(text) for name, text in rival.items()},
            spans={},
        )


def renaming(words: Mapping[str, str], name: str = "renamed") -> Conjugation:
    """Every word of `words` replaced by its partner, all at once. Raises WorkbenchError where two
    words would become one."""
    if len(set(words.values())) < len(words):
        raise WorkbenchError(
            "A renaming must be reversible, but two words have the same new name; "
            "give each its own."
        )
    if not words:
        raise WorkbenchError("Expected words to rename, found none; name at least one.")
    there, back = dict(words), {new: old for old, new in words.items()}
    return Conjugation(name, lambda t: _swapped(t, there), lambda t: _swapped(t, back))


def permutation(words: Sequence[str], *, seed: int = 0, name: str = "permuted") -> Conjugation:
    """Each of these words replaced by another one of them, by seed: a renaming that needs no new
    word. Raises WorkbenchError for fewer than two words."""
    if len(set(words)) < 2:
        raise WorkbenchError(f"Expected two words or more to permute, found {len(set(words))}.")
    order = list(dict.fromkeys(words))
    random.Random(f"permutation {seed}").shuffle(order)
    # A cycle through the shuffled words: none keeps its name.
    return renaming(dict(zip(order, order[1:] + order[:1], strict=True)), name)


def _swapped(text: str, words: Mapping[str, str]) -> str:
    pattern = r"(?<!\w)(" + "|".join(map(re.escape, sorted(words, key=len)[::-1])) + r")(?!\w)"
    return re.sub(pattern, lambda found: words[found[0]], text)


def leetspeak() -> Conjugation:
    """a e i o s t written as 4 3 1 0 5 7. Answers that hold those digits do not come back."""
    there = str.maketrans("aeiost", "431057")
    back = str.maketrans("431057", "aeiost")
    return Conjugation("leetspeak", lambda t: t.translate(there), lambda t: t.translate(back))


def pig_latin() -> Conjugation:
    """The consonants a word begins with moved behind a hyphen before "ay": "apple-ay", "ook-bay".
    The hyphen, which plain pig Latin lacks, makes it turn back."""

    def there(text: str) -> str:
        return re.sub(r"(?<![\w-])([A-Za-z]+)(?![\w-])", lambda found: turned(found[0]), text)

    def turned(word: str) -> str:
        rest = word.lstrip(CONSONANTS + CONSONANTS.upper())
        return f"{rest}-{word[: len(word) - len(rest)]}ay"

    def back(text: str) -> str:
        return PIG_LATIN.sub(lambda found: found[2] + found[1], text)

    return Conjugation("pig Latin", there, back)


def rescaling(factor: float, pattern: str = r"-?\d+(?:\.\d+)?") -> Conjugation:
    """Every number that the pattern finds times `factor`; of whole numbers by a whole factor the
    result is whole. For tasks whose answer scales with what is asked (sums, labels of a linear
    regression). Raises WorkbenchError for a factor of 0."""
    if not factor:
        raise WorkbenchError("A rescaling by 0 is not reversible; use another factor.")

    def times(by: float) -> Callable[[str], str]:
        return lambda text: re.sub(pattern, lambda found: _number(float(found[0]) * by), text)

    return Conjugation(f"numbers times {factor:g}", times(factor), times(1 / factor))


def _number(value: float) -> str:
    return f"{value:.10g}"


def rewording(wordings: Mapping[str, str], name: str = "reworded") -> Conjugation:
    """Questions in another wording; answers stay. wordings: wording -> the one to say instead, with
    the same {fields}, each a single word: "{name} lives in" -> "The home of {name} is in"."""
    rules = [(_reader(old), _writer(new)) for old, new in wordings.items() if old != new]
    if not rules:
        raise WorkbenchError("Expected wordings to replace, found none; give at least one.")

    def there(text: str) -> str:
        for reader, writer in rules:
            text = reader.sub(writer, text)
        return text

    return Conjugation(name, there, lambda answer: answer)


def _reader(wording: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", wording)
    told = "".join(rf"(?P<{p}>\w+)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
    return re.compile(rf"(?<!\w){told}(?!\w)")


def _writer(wording: str) -> Callable[[re.Match[str]], str]:
    return lambda found: wording.format(**found.groupdict())
