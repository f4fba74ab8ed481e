"""Texts of unequal length as right-padded batches, with named places in each row.

Rows are padded on the right, whatever the tokenizer's side: causal attention then never reaches the
filling, and positions need no correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as once
from typing import Any, NamedTuple, TypeVar

import regex
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders.devices import entry
from workbench.log import log
from workbench.tasks.prompts import Prompt, PromptSet

Made = TypeVar("Made")


# A letter or digit of a script that parts its words.
WORD = regex.compile(
    r"(?V1)[[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
)


class Encoded(NamedTuple):
    """Token ids of one text, special tokens included; `start` is the first scored position."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Row:
    """One prompt to run. spans: name -> (first, last + 1) token numbers. answer: the target's
    tokens, which are fed behind the prompt up to the last (none for a plain text). foils: the first
    token of each foil that differs from the answer's. wrong: all tokens of each foil. choice: the
    answer is right where it is likelier than every foil, and need not be the likeliest token of
    all."""

    name: str
    ids: list[int]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    answer: tuple[int, ...] = ()
    foils: tuple[int, ...] = ()
    choice: bool = False
    wrong: tuple[tuple[int, ...], ...] = ()

    @property
    def fed(self) -> list[int]:
        """What the model is given: the prompt and all of the answer but its last token."""
        return [*self.ids, *self.answer[:-1]]


@dataclass(frozen=True)
class Batch:
    """ids, mask: (batch, longest), int64. last: (batch,), each prompt's last token. places: the
    rows' numbers among all prompts."""

    rows: tuple[Row, ...]
    places: tuple[int, ...]
    ids: Tensor
    mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a transformers model is called with."""
        return {"input_ids": self.ids, "attention_mask": self.mask}

    @property
    def lengths(self) -> Tensor:
        """(batch,) tokens of each prompt, without its answer."""
        return torch.tensor([len(row.ids) for row in self.rows], device=self.ids.device)

    @property
    def last(self) -> Tensor:
        return self.lengths - 1

    def index(self, position: int | str) -> Tensor:
        """(batch, p) token numbers of a position: an integer, from the row's own end where
        negative, or a span's name. Raises for a span that is missing or of unequal length."""
        lengths = self.lengths
        if isinstance(position, int):
            found = (lengths + position if position < 0 else torch.full_like(lengths, position))[
                :, None
            ]
            if bool((found < 0).any() or (found[:, 0] >= lengths).any()):
                raise WorkbenchError(
                    f"Position {position} lies outside a prompt of {int(lengths.min())} tokens."
                )
            return found
        missing = [row.name for row in self.rows if position not in row.spans]
        if missing:
            known = sorted({name for row in self.rows for name in row.spans})
            raise WorkbenchError(f"Prompt {missing[0]!r} has no span {position!r}; known: {known}.")
        spans = [row.spans[position] for row in self.rows]
        sizes = sorted({end - start for start, end in spans})
        if len(sizes) > 1:
            raise WorkbenchError(
                f"Span {position!r} has {sizes[0]} to {sizes[-1]} tokens; a site needs "
                "the same number in every prompt, so give another position."
            )
        starts = torch.tensor([start for start, _ in spans], device=self.ids.device)
        return starts[:, None] + torch.arange(sizes[0], device=self.ids.device)


def rows(
    tokenizer: Any, prompts: PromptSet | Sequence[Prompt | str], *, answers: bool = False
) -> list[Row]:
    """Every prompt up to its answer, or every plain text as a whole, tokenised; with `answers` the
    answer is fed too and the foils are known."""
    if isinstance(prompts, str):
        raise WorkbenchError(
            f"Expected a list of prompts, found one text; give [{prompts[:20]!r}]."
        )
    made = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            made.append(Row(str(number), tokenizer(prompt)["input_ids"]))
            continue
        ids = encode(tokenizer, prompt)
        offsets = tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
        spans = {name: _tokens(offsets, *span) for name, span in prompt.spans.items()}
        row = Row(prompt.id, ids.ids[: ids.start], spans)
        if answers:
            own, wrong = tuple(ids.ids[ids.start :]), foil_answers(tokenizer, prompt)
            foils = tuple(one[0] for one in wrong if one[0] != own[0])
            row = replace(row, answer=own, foils=foils, wrong=wrong)
        made.append(row)
    texts = {row.name: [*row.ids, *row.answer] for row in made}
    look_at(tokenizer, texts, [one for one in prompts if not isinstance(one, str)])
    if not made or not all(row.ids for row in made):
        raise WorkbenchError(
            "Expected prompts of at least one token each, found no prompt or an empty "
            "one; give prompts with text."
        )
    return made


def batch(given: Sequence[Row], places: Sequence[int], device: Any, fill: int) -> Batch:
    """The rows at these places, as one batch."""
    chosen = tuple(given[i] for i in places)
    ids, mask = padded([row.fed for row in chosen], fill)
    return Batch(chosen, tuple(places), ids.to(entry(device)), mask.to(entry(device)))


def padded(texts: Sequence[list[int]], fill: int) -> tuple[Tensor, Tensor]:
    """ids and mask, (rows, longest), filled on the right."""
    ids = torch.full((len(texts), max(map(len, texts))), fill)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(texts):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    return ids, mask


def in_batches(
    lengths: Sequence[int], batch_size: int, run: Callable[[list[int]], Made], bar: Any = None
) -> Iterator[tuple[list[int], Made]]:
    """(places, run(places)) for texts of these lengths, shortest first, every place once.

    A batch that does not fit in memory is halved, with a word, and so are those after it. bar: of
    progress, on which `run` counts what it has done, and which goes back where that was in vain.
    """
    if batch_size < 1:
        raise WorkbenchError(f"batch_size must be at least 1, not {batch_size}.")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    begin = 0
    while begin < len(order):
        chosen = order[begin : begin + batch_size]
        done = 0 if bar is None else bar.n
        try:
            made = run(chosen)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # The CPU allocator has no exception class of its own.
            memory = isinstance(error, torch.OutOfMemoryError) or "memory" in str(error)
            if not memory or len(chosen) == 1:
                raise
            batch_size = len(chosen) // 2
            if bar is not None:
                bar.update(done - bar.n)
            log.warning("the batch did not fit and was halved to %d texts", batch_size)
            continue
        yield chosen, made
        begin += len(chosen)


def look_at(tokenizer: Any, texts: Mapping[str, Sequence[int]], prompts: Sequence[Prompt]) -> None:
    """What is odd about texts, by name, before any of them is run: words that the tokenizer does
    not know, a start that stands twice, answers that go on with the question's last word; each
    said once, with the first it is true of. Raises WorkbenchError for a text that is longer than
    the model has places for."""
    most = tokenizer.model_max_length
    for name, ids in texts.items():
        if len(ids) > most:
            raise WorkbenchError(
                f"Prompt {name!r} has {len(ids)} tokens, but the model has {most} "
                "positions; shorten it, or leave it out."
            )
    unknown, start = tokenizer.unk_token_id, tokenizer.bos_token_id
    strange = [name for name, ids in texts.items() if unknown is not None and unknown in ids]
    twice = [n for n, ids in texts.items() if start is not None and [*ids[:2]] == [start, start]]
    glued = [one.id for one in prompts if goes_on_with(one.prompt, one.target)]
    for found, what in (
        (strange, "contain words that the tokenizer does not know: both models read "
                  f"{tokenizer.unk_token} in their place"),
        (twice, f"begin with two {tokenizer.bos_token}, and the tokenizer adds one of them: leave "
                "it out of the text"),
        (glued, "have an answer that continues the question's last word: begin it with a space"),
    ):  # fmt: skip
        if found:
            _say(f"{len(found)} of {len(texts)} prompts {what} (the first is {found[0]!r}).")


def goes_on_with(before: str, after: str) -> bool:
    """Whether a word or number at the end of a text goes on behind it: a letter or digit stands
    right behind one, or a mark inside a number ("3" and ".5"). In scripts that put no space between
    words nothing tells, and none does."""
    number = bool(regex.match(r"[.,]\d", after)) and before[-1:].isdigit()
    return number or bool(WORD.match(before[-1:]) and WORD.match(after))


@once
def _say(text: str) -> None:
    log.warning("%s", text)


def read_as(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt as the tokenizer cuts it, "Box| F| contains -> | apple": a doubled start, an unknown
    word or an answer that is glued to its question shows."""
    ids, start = encode(tokenizer, prompt)
    asked, answer = (
        "|".join(str(tokenizer.decode([token])) for token in part)
        for part in (ids[:start], ids[start:])
    )
    return f"{asked} -> {answer}"


def encode(tokenizer: Any, prompt: Prompt) -> Encoded:
    """Token ids of prompt + target and where the target's tokens begin.

    The full text is tokenised at once; target tokens are those that end after the prompt's last
    character. A token across the boundary belongs to the target unless only the boundary's white
    space ties it to the prompt.
    """
    if not tokenizer.is_fast:
        raise WorkbenchError(
            "Expected a fast tokenizer, which reports each token's place in the text, "
            f"found {type(tokenizer).__name__}, which does not; load it with AutoTokenizer."
        )
    coded = tokenizer(prompt.text, return_offsets_mapping=True)
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    boundary = len(prompt.prompt)
    own = [i for i, (a, b) in enumerate(offsets) if b > boundary and b > a]
    if not own or own[0] == 0:
        what = "has no token of its own" if not own else "begins at the text's first token"
        raise WorkbenchError(
            f"The target {prompt.target!r} of prompt {prompt.id!r} {what}; an answer must follow "
            "at least one token."
        )
    return Encoded(ids[: own[-1] + 1], own[0])


def foil_tokens(tokenizer: Any, prompt: Prompt, encoded: Encoded) -> tuple[int, ...]:
    """The first token of each foil, where it differs from the target's."""
    firsts = (foil[0] for foil in foil_answers(tokenizer, prompt))
    return tuple(token for token in firsts if token != encoded.ids[encoded.start])


def foil_answers(tokenizer: Any, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
    """The tokens of each foil behind the prompt."""
    coded = (encode(tokenizer, Prompt(prompt.id, prompt.prompt, foil)) for foil in prompt.foils)
    return tuple(tuple(one.ids[one.start :]) for one in coded)


def pad_id(tokenizer: Any) -> int:
    """A token id to fill rows with; its value never matters, since it is masked."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)


def _tokens(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that touch the characters start to end."""
    own = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    if not own:
        raise WorkbenchError(
            f"The span of characters {start} to {end} holds no token of a prompt; give "
            "another span."
        )
    return own[0], own[-1] + 1
