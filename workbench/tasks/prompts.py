"""What is a prompt with a known answer, and a set of them?"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from workbench.conveniences import convenience
from workbench.errors import WorkbenchError, visible
from workbench.files.reading import MIB, is_count, parsed, read_text
from workbench.files.writing import Mark, says, writing
from workbench.tasks.scorers import Continuation, Scorer, as_data, from_data

Split = Literal["train", "validation", "test"]
TEMPLATES = ("base", "tuned", "plain")
SPLITS: tuple[Split, ...] = get_args(Split)
FILES = (".jsonl", ".csv", ".json")  # how files of prompts end
MOST = 512 * MIB  # of a file of prompts
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
        """(prompts,) values of a tag. Raises WorkbenchError where a prompt has none of it."""
        ids, tags = [p.id for p in self.prompts], [p.tags for p in self.prompts]
        found = tagged(self.name, ids, tags, name)
        if found is None:
            known = sorted({one for own in tags for one in own})
            raise WorkbenchError(
                f"No prompt of {self.name!r} has the tag {name!r}; they have "
                f"{', '.join(known) or 'none'}."
            )
        return found

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
    def load(cls, path: str | Path) -> PromptSet:
        """Prompts from JSON lines, as `save` writes them or one object a line, from a JSON list of
        such objects, or from CSV.

        A line needs prompt and target; id is its number, where there is none. In CSV foils are
        separated by "|" and further columns are tags. Raises WorkbenchError naming every bad line.
        """
        path = Path(path)
        if not path.is_file():
            raise WorkbenchError(f"Expected prompts (.jsonl or .csv) at {path}; no file is there.")
        text = read_text(path, most=MOST, remedy="give prompts as UTF-8 text")
        read = {".csv": _csv_rows, ".json": _list_rows}.get(path.suffix, _json_rows)
        lines = read(text)
        name, seed, prompts, faults = visible(path.stem), 0, [], []
        asked: dict[str, Any] = {}
        for number, row in lines:
            if isinstance(row, dict) and number == 1 and row.keys() >= {"name", "seed"}:
                name, seed = row["name"], row["seed"]
                asked |= {key: row[key] for key in ("scorer", "template") if key in row}
                if not isinstance(name, str) or not is_count(seed, 0):
                    faults.append("line 1: name must be text and seed a whole number.")
                continue
            try:
                prompts.append(_prompt(row, str(number)))
            except WorkbenchError as error:
                faults.append(f"line {number}: {error}")
        if faults:
            more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
            raise WorkbenchError(f"{path}: " + " ".join(faults[:5]) + more)
        if not prompts:
            raise WorkbenchError(f"{path} holds no prompts; give one JSON object a line.")
        if "scorer" in asked:
            asked["scorer"] = from_data(asked["scorer"])
        return cls(name, tuple(prompts), seed, **asked)


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
            f"{ids[have.index(False)]!r} has not; give it to all, or leave it out."
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


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    """(line number, object), or the parser's complaint in its place; empty lines are skipped."""
    # Not splitlines: a line separator of Unicode may stand inside a prompt.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parsed(line)
            except ValueError as error:
                yield number, WorkbenchError(f"not JSON ({error}); mend or remove the line.")


def _list_rows(text: str) -> Iterator[tuple[int, Any]]:
    """(number, object) of a JSON list, from 1; of anything else the one complaint."""
    try:
        found = parsed(text)
    except ValueError as error:
        yield 1, WorkbenchError(f"not JSON ({error}); mend it.")
        return
    if not isinstance(found, list):
        yield (
            1,
            WorkbenchError(
                f"expected a list of objects, found {type(found).__name__}; one object a line is "
                "read from a file that ends in .jsonl."
            ),
        )
        return
    yield from enumerate(found, 1)


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    """(line number, object) of a CSV table with a header; unknown columns are tags."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    known = {f.name for f in fields(Prompt)} - {"tags", "spans"}
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise csv.Error("a column stands twice in its header")
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, WorkbenchError(f"expected {len(header)} cells.")
                continue
            plain: dict[str, Any] = {k: v for k, v in row.items() if k in known and v}
            if "foils" in plain:
                plain["foils"] = plain["foils"].split("|")
            tags = {k: v for k, v in row.items() if k not in known and v}
            yield reader.line_num, plain | ({"tags": tags} if tags else {})
    except csv.Error as error:
        yield reader.line_num + 1, WorkbenchError(f"not CSV ({error}); mend it.")


def _prompt(row: Any, name: str) -> Prompt:
    """One line as a Prompt; raises WorkbenchError that says what is wrong with it."""
    if isinstance(row, WorkbenchError):
        raise row
    if not isinstance(row, dict):
        raise WorkbenchError(f"expected a JSON object, found {type(row).__name__}.")
    known = {f.name for f in fields(Prompt)}
    missing, unknown = {"prompt", "target"} - row.keys(), row.keys() - known
    if missing or unknown:
        raise WorkbenchError(
            f"a prompt needs prompt and target and may have "
            f"{', '.join(sorted(known - {'prompt', 'target'}))}; "
            f"missing {sorted(missing)}, unknown {sorted(unknown)}."
        )
    values: dict[str, Any] = {"id": name} | row
    return Prompt(**values)
