"""What is a prompt with a known answer, and a set of them?"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from workbench.conveniences import convenience
from workbench.errors import WorkbenchError
from workbench.files.reading import is_count
from workbench.files.writing import Mark, says, writing
from workbench.tasks.groups import GROUPS, grouped
from workbench.tasks.scorers import Continuation, Scorer, as_data

Split = Literal["train", "validation", "test"]
TEMPLATES = ("base", "tuned", "plain")
SPLITS: tuple[Split, ...] = get_args(Split)
# How files of prompts end.
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
DATASET, DATASETS = "state.json", "dataset_dict.json"  # by which a folder of `datasets` is known
SAVED = Mark("a saved set of prompts", says(b'{"name": ', b', "seed": '))


@dataclass(frozen=True)
class Prompt:
    """One question with its answer. The full text is `prompt + target`.

    target: the right continuation; it carries its own leading space.
    foils: wrong continuations of the same kind, each with its leading space; may be empty.
    template: which wording the generator used. spans: name -> (first, last + 1) character of the
    prompt's parts that a site can be placed at ("query box"). messages: the conversation up to the
    answer, where there is one, each {"role": ..., "content": ...}: a chat template renders it
    before anything is run (`PromptSet.template`), and `prompt` is then its last message alone.
    """

    id: str
    prompt: str
    target: str
    foils: tuple[str, ...] = ()
    split: Split = "test"
    tags: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "target", "template"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise WorkbenchError(f"A prompt's {name} must be text, not {value!r}.")
        if not self.target:
            raise WorkbenchError(f"Prompt {self.id!r} has an empty target; give the answer.")
        if self.split not in SPLITS:
            raise WorkbenchError(
                f"Prompt {self.id!r} has split {self.split!r}; use one of {', '.join(SPLITS)}."
            )
        if not isinstance(self.foils, list | tuple) or not _texts(self.foils):
            raise WorkbenchError(f"Prompt {self.id!r}: foils must be a list of texts.")
        if not isinstance(self.tags, Mapping) or not _texts([*self.tags, *self.tags.values()]):
            raise WorkbenchError(f"Prompt {self.id!r}: tags must map names to texts.")
        if not isinstance(self.spans, Mapping):
            raise WorkbenchError(f"Prompt {self.id!r}: spans must map names to [first, last + 1].")
        for name, span in self.spans.items():
            pair = isinstance(span, list | tuple) and len(span) == 2
            if (
                not pair
                or not all(is_count(place, 0) for place in span)
                or not (span[0] < span[1] <= len(self.prompt))
            ):
                raise WorkbenchError(
                    f"Prompt {self.id!r}: span {name!r} must be [first, last + 1] within the "
                    f"prompt's {len(self.prompt)} characters, not {span}."
                )
        if not isinstance(self.messages, list | tuple) or not all(map(_is_message, self.messages)):
            raise WorkbenchError(
                f"Prompt {self.id!r}: messages must be objects of two texts, role and content."
            )
        spans = {name: tuple(span) for name, span in self.spans.items()}
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "foils", tuple(self.foils))
        object.__setattr__(self, "tags", dict(self.tags))
        object.__setattr__(self, "messages", tuple(dict(one) for one in self.messages))

    @property
    def text(self) -> str:
        """prompt + target."""
        return self.prompt + self.target


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, with the seed that drew them. Ids are unique.

    scorer: when an answer is right (`tasks.Continuation`, `Choices`, `Generation`, or `Loss`, where
    none is). template: whose chat template the prompts are rendered by before they are run:
    "base", "tuned", or "plain" for none ("user: ..." a line); None renders those that have
    messages, by the base's where it has one, else by the tuned model's.
    """

    name: str
    prompts: tuple[Prompt, ...]
    seed: int = 0
    scorer: Scorer = Continuation()  # noqa: RUF009
    template: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not isinstance(self.scorer, Scorer):
            kinds = ", ".join(f"tasks.{kind.__name__}()" for kind in get_args(Scorer))
            raise WorkbenchError(
                f"Expected a scorer for {self.name!r}, found {self.scorer!r}; give one of {kinds}."
            )
        if self.template not in (None, *TEMPLATES):
            raise WorkbenchError(
                f"Expected the template {', '.join(TEMPLATES)}, found {self.template!r}."
            )
        twice, times = next(iter(Counter(p.id for p in self.prompts).most_common(1)), ("", 0))
        if times > 1:
            raise WorkbenchError(f"Prompt ids must be unique in {self.name!r}; {twice!r} repeats.")

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> PromptSet: ...
    def __getitem__(self, at: int | slice) -> Prompt | PromptSet:
        """One prompt, or a set of some of them."""
        if isinstance(at, slice):
            return replace(self, prompts=self.prompts[at])
        return self.prompts[at]

    def at(self, places: Iterable[int]) -> PromptSet:
        """The prompts at these places, in their order."""
        return replace(self, prompts=tuple(self.prompts[place] for place in places))

    def __repr__(self) -> str:
        first = f", the first {self.prompts[0].text[-60:]!r}" if self.prompts else ""
        return f"PromptSet({self.name!r}, {len(self)} prompts{first})"

    @property
    def texts(self) -> list[str]:
        """The full texts, prompt + target."""
        return [p.text for p in self.prompts]

    @property
    def fingerprint(self) -> str:
        """sha256 of the prompts' content in their order, and of how they are rendered and scored;
        the set's name and seed stay out."""
        parts = [_data(p) for p in self.prompts]
        content = json.dumps([*parts, *self._asked.values()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def _asked(self) -> dict[str, Any]:
        """How they are scored and rendered, where that is not as plain prompts are."""
        found = {} if self.scorer == Continuation() else {"scorer": as_data(self.scorer)}
        return found | ({} if self.template is None else {"template": self.template})

    def _repr_html_(self) -> str:
        return convenience("PromptSet._repr_html_")(self)

    def select(self, *, split: Split | None = None, **tags: str) -> PromptSet:
        """The prompts of one split whose tags have these values, in the same order.

        Raises where the split or a tag is unknown to the whole set; an empty answer is allowed.
        """
        if split is not None and split not in SPLITS:
            raise WorkbenchError(f"Unknown split {split!r}; use one of {', '.join(SPLITS)}.")
        known = {name for p in self.prompts for name in p.tags}
        if self.prompts and not set(tags) <= known:
            raise WorkbenchError(
                f"No prompt of {self.name!r} has the tags {sorted(set(tags) - known)}; "
                f"known tags are {sorted(known)}."
            )
        kept = [
            p
            for p in self.prompts
            if split in (None, p.split) and all(p.tags.get(k) == v for k, v in tags.items())
        ]
        return replace(self, prompts=tuple(kept))

    def tag(self, name: str) -> NDArray[np.str_]:
        """(prompts,) values of a tag, or of a group by name where no prompt has it (`grouped`).
        Raises WorkbenchError where a prompt has none of it."""
        ids, tags = [p.id for p in self.prompts], [p.tags for p in self.prompts]
        found = tagged(self.name, ids, tags, name)
        if found is None:
            found = grouped(self.prompts, name)
        if found is None:
            known = sorted({one for own in tags for one in own})
            raise WorkbenchError(
                f"No prompt of {self.name!r} has the tag {name!r}; they have "
                f"{', '.join(known) or 'none'}, and {', '.join(GROUPS)} need none."
            )
        return np.asarray(found)

    def save(self, path: str | Path) -> Path:
        """Write JSON lines: a first line with name and seed, and scorer and template where they are
        not the plain ones, then one prompt a line. Raises WorkbenchError for a scorer that is a
        function, which a file cannot hold."""
        path = Path(path)
        if callable(getattr(self.scorer, "extract", None)):
            raise WorkbenchError(
                "A scorer whose extract is a function cannot be saved; give a regular expression, "
                "or set the scorer when the prompts are loaded."
            )
        first = {"name": self.name, "seed": self.seed} | self._asked
        rows = [first, *map(_data, self.prompts)]
        with writing(path, SAVED) as temporary:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        map: Mapping[str, str] | None = None,
        scorer: Scorer | str | None = None,
        template: str | None = None,
        letters: bool = False,
    ) -> PromptSet:
        """Prompts from a file as `save` writes it, or in a shape that others use: `tasks.read`,
        which says what is read, and how `map` names what is called otherwise."""
        return convenience("PromptSet.load")(
            path, map=map, scorer=scorer, template=template, letters=letters
        )


def are_prompts(path: str | Path) -> bool:
    """Whether a path is one of prompts by its name, or a folder that `datasets` wrote."""
    # os.path's, unlike Path's, bears any text.
    folder = any(os.path.isfile(os.path.join(path, one)) for one in (DATASET, DATASETS))
    return folder or Path(path).suffix in FILES


def tagged(
    of: str, ids: Sequence[str], tags: Sequence[Mapping[str, str]], name: str
) -> NDArray[np.str_] | None:
    """(items,) values of a tag; None where no item has it. Raises WorkbenchError where some have it
    and others do not. of: what the items are of."""
    have = [name in own for own in tags]
    if not any(have):
        return None
    if not all(have):
        raise WorkbenchError(
            f"{sum(have)} of {len(have)} items of {of!r} have the tag {name!r}, and "
            f"{ids[have.index(False)]!r} does not; give it to all, or leave it out."
        )
    return np.array([own[name] for own in tags])


def _data(prompt: Prompt) -> dict[str, Any]:
    """A prompt as JSON."""
    found = asdict(prompt)
    if not prompt.messages:  # as most have none, and fingerprints of before there were any
        del found["messages"]
    return found


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and one.keys() == {"role", "content"} and _texts(one.values())


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def require_halves(n: int, what: str = "prompts", least: int = 2) -> None:
    """Raises WorkbenchError for fewer items than so many for each of two halves."""
    if n < 2 * least:
        raise WorkbenchError(
            f"Expected at least {2 * least} {what}, {least} to choose on and {least} to report on, "
            f"found {n}; give more."
        )
