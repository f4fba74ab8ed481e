"""What is a prompt with a known answer, and a set of them?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from workbench.errors import WorkbenchError
from workbench.results import writing

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Prompt:
    """One question with its answer. The full text is `prompt + target`.

    target: the right continuation; it carries its own leading space.
    foils: wrong continuations of the same kind, each with its leading space; may be empty.
    template: which wording the generator used.
    """

    id: str
    prompt: str
    target: str
    foils: tuple[str, ...] = ()
    split: Split = "test"
    tags: Mapping[str, str] = field(default_factory=dict)
    template: str = ""

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
        if isinstance(self.foils, str) or not isinstance(self.foils, list | tuple):
            raise WorkbenchError(f"Prompt {self.id!r}: foils must be a list of texts.")
        if not isinstance(self.tags, Mapping):
            raise WorkbenchError(f"Prompt {self.id!r}: tags must map names to texts.")
        object.__setattr__(self, "foils", tuple(self.foils))
        object.__setattr__(self, "tags", dict(self.tags))

    @property
    def text(self) -> str:
        """prompt + target."""
        return self.prompt + self.target


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, with the seed that drew them. Ids are unique."""

    name: str
    prompts: tuple[Prompt, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        ids = [p.id for p in self.prompts]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise WorkbenchError(f"Prompt ids must be unique in {self.name!r}; {twice!r} repeats.")

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def texts(self) -> list[str]:
        """The full texts, prompt + target."""
        return [p.text for p in self.prompts]

    @property
    def fingerprint(self) -> str:
        """sha256 of the prompts' content in their order; the set's name and seed stay out."""
        content = json.dumps([asdict(p) for p in self.prompts], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

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
        return PromptSet(self.name, tuple(kept), self.seed)

    def save(self, path: str | Path) -> Path:
        """Write JSON lines: a first line with name and seed, then one prompt a line."""
        path = Path(path)
        rows = [{"name": self.name, "seed": self.seed}, *(asdict(p) for p in self.prompts)]
        with writing(path) as temporary:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> PromptSet:
        """Read what `save` wrote; raises WorkbenchError naming the first bad line."""
        path = Path(path)
        if not path.is_file():
            raise WorkbenchError(f"Expected a prompt set (JSON lines) at {path}; no file is there.")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [_row(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]
        if not rows or not {"name", "seed"} <= rows[0].keys():
            raise WorkbenchError(
                f"{path}, line 1: expected the set's name and seed, as PromptSet.save writes them."
            )
        prompts = [_prompt(row, f"{path}, line {i}") for i, row in enumerate(rows[1:], 2)]
        return cls(rows[0]["name"], tuple(prompts), rows[0]["seed"])


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise WorkbenchError(f"{where}: not JSON ({error}); mend or remove the line.") from error
    if not isinstance(row, dict):
        raise WorkbenchError(f"{where}: expected a JSON object, found {type(row).__name__}.")
    return row


def _prompt(row: dict, where: str) -> Prompt:
    known = {f.name for f in fields(Prompt)}
    missing, unknown = {"id", "prompt", "target"} - row.keys(), row.keys() - known
    if missing or unknown:
        raise WorkbenchError(
            f"{where}: a prompt needs id, prompt and target and may have "
            f"{', '.join(sorted(known - {'id', 'prompt', 'target'}))}; "
            f"missing {sorted(missing)}, unknown {sorted(unknown)}."
        )
    try:
        return Prompt(**row)
    except WorkbenchError as error:
        raise WorkbenchError(f"{where}: {error}") from error
