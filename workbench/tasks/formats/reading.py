"""Prompts from any file people have them in: rows, their shape, and a `PromptSet` of them.

A set has one shape. What a row says beyond it are tags, so that results can be grouped by them; a
key that is nearly one we know is refused, since it was meant to be that. No code of a file runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, visible
from workbench.files.reading import is_count, is_number
from workbench.log import log
from workbench.tasks import scorers
from workbench.tasks.formats.containers import of_cells, rows_of
from workbench.tasks.formats.naming import checked, renamed, require_plain, unknown
from workbench.tasks.formats.shapes import Asked, Shape, fields_of, lettered, shape_of
from workbench.tasks.measurements import read_text
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import Loss, Scorer

ABOUT = {"name", "seed", "scorer", "template"}  # keys of the first line of a saved set
MOST_FAULTS = 5


def read(
    path: str | Path,
    *,
    map: Mapping[str, str] | None = None,
    scorer: Scorer | str | None = None,
    template: str | None = None,
    letters: bool = False,
) -> PromptSet:
    """Prompts from JSON lines (.jsonl), a JSON list (.json), a table with a header (.csv, .tsv,
    .parquet), a folder that `datasets` wrote with save_to_disk, or plain text (.txt, in pieces).

    Rows may be ours ({"prompt", "target"}, and what else a `Prompt` has; `PromptSet.save` writes
    them), TRL's prompt and completion, messages, or chosen and rejected, ShareGPT's conversations,
    a question with choices (a list, or under A, B, C ...) and the answer's number (from 0), letter
    or text, a prompt with the same that is taken as it is, HellaSwag's ctx, endings and label (of
    the ctx alone, which lm-eval puts the activity before), a question with its answer (worked, with
    "####", as GSM8K's), or texts. Of a DatasetDict the split test is read, else validation;
    give FOLDER/train for another.

    map: field -> dotted path into a row, for other names: {"target": "answers.0", "tags.kind":
    "meta.kind"}. scorer: when an answer is right, or as `tasks.scorers.scorer` reads it; None takes
    the file's own, or what its shape is scored by. template: "base", "tuned" or "plain", see
    `PromptSet`. letters: choices are listed in the prompt ("A. ..."), and their letters scored,
    instead of their texts.

    Further keys with texts or numbers are tags. id is the row's, where all have one of their own,
    else its line. A target that is not of our shape, or where it or the prompt was mapped, gets a
    leading space where the prompt ends without white space and it begins without; so do foils. Of
    messages the assistant's last is the target, without the white space before it. Raises
    WorkbenchError that names the lines that cannot be read, five at most.
    """
    path, paths = Path(path), checked(map)
    scorer = scorers.scorer(scorer) if isinstance(scorer, str) else scorer
    given: dict[str, Any] = {"scorer": scorer, "template": template}
    chosen = {name: value for name, value in given.items() if value is not None}
    if path.suffix == ".txt" and path.is_file():
        return _of_text(path, chosen)
    rows = rows_of(path)
    made = _Reading(path, paths, Asked(letters), rows.cells)
    for number, row in rows.each:
        made.take(number, row)
    return made.finished(chosen)


def _of_text(path: Path, chosen: Mapping[str, Any]) -> PromptSet:
    pieces = read_text(path)
    prompts = tuple(Prompt(str(i), "", piece) for i, piece in enumerate(pieces, 1))
    asked: dict[str, Any] = {"scorer": Loss()} | dict(chosen)
    return PromptSet(visible(path.stem), prompts, **asked)


class _Reading:
    """The rows of one file, as they become prompts."""

    def __init__(self, path: Path, paths: dict[str, str], asked: Asked, cells: bool) -> None:
        self.path, self.paths, self.asked, self.cells = path, paths, asked, cells
        self.about: dict[str, Any] = {}
        self.made: list[tuple[int, Prompt]] = []
        self.faults: dict[str, list[int]] = {}
        self.first: tuple[int, Shape] | None = None
        self.tools = 0

    def take(self, number: int, row: Any) -> None:
        """One row; what is wrong with it is kept for the end."""
        try:
            if number == 1 and _is_about(row):
                self.about = _about(row)
            else:
                self.made.append((number, self._prompt(number, row)))
        except WorkbenchError as error:
            self.faults.setdefault(str(error), []).append(number)

    def _prompt(self, number: int, row: Any) -> Prompt:
        if isinstance(row, WorkbenchError):
            raise row
        if not isinstance(row, dict):
            raise WorkbenchError(f"expected a JSON object, found {type(row).__name__}.")
        row = lettered(renamed({k: v for k, v in row.items() if v is not None}, self.paths))
        row = of_cells(row) if self.cells else row
        shape = shape_of(row)
        if shape is None:
            raise unknown(row, table=self.cells)
        self.first = self.first or (number, shape)
        if shape is not self.first[1]:
            raise WorkbenchError(
                f"this row is of {shape.title} and line {self.first[0]} of "
                f"{self.first[1].title}; put each kind into a separate file."
            )
        require_plain(row, shape)
        before = len(self.asked.left_out)
        spaced = not shape.own or bool(self.paths.keys() & {"prompt", "target", "foils"})
        made = fields_of(shape, row, self.asked, spaced=spaced)
        self.tools += len(self.asked.left_out) > before or bool(row.get("tools"))
        name = row.get("id", number)
        plain = is_number(name) or not (shape.own or isinstance(name, str))
        made["id"] = str(name if is_number(name) else number) if plain else name
        prompt = Prompt(**made)
        if prompt.target in prompt.foils:
            raise WorkbenchError(
                f"the foil {prompt.target[:60]!r} is the target; each choice must be another text."
            )
        return prompt

    def finished(self, chosen: Mapping[str, Any]) -> PromptSet:
        """The set; raises WorkbenchError with what was wrong."""
        if not self.faults:
            self._number()
        if self.faults:
            told = [f"{_lines(n)}: {fault}" for fault, n in self.faults.items()]
            more = f" (and {len(told) - MOST_FAULTS} more)" if len(told) > MOST_FAULTS else ""
            raise WorkbenchError(f"{self.path}: " + " ".join(told[:MOST_FAULTS]) + more)
        if self.first is None:
            raise WorkbenchError(f"{self.path} holds no prompts; give one JSON object a line.")
        if self.tools:
            log.warning(
                "%s: tools and their calls are left out, in %d rows.", self.path, self.tools
            )
        name = self.about.pop("name", visible(self.path.stem))
        asked: dict[str, Any] = {"scorer": self.first[1].scorer} | self.about | dict(chosen)
        return PromptSet(name, tuple(prompt for _, prompt in self.made), **asked)

    def _number(self) -> None:
        """Ids that repeat are refused in our own shape, in which somebody gave them; of others the
        lines are."""
        lines: dict[str, list[int]] = {}
        for number, prompt in self.made:
            lines.setdefault(prompt.id, []).append(number)
        twice = {name: own for name, own in lines.items() if len(own) > 1}
        if twice and self.first and self.first[1].own:
            name, own = next(iter(twice.items()))
            self.faults[f"the id {name!r} occurs in both; ids must be unique."] = own[:2]
        elif twice:
            self.made = [(n, replace(prompt, id=str(n))) for n, prompt in self.made]


def _lines(numbers: list[int]) -> str:
    """Which lines a fault is of."""
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if len(numbers) == 2:
        return f"lines {numbers[0]} and {numbers[1]}"
    return f"line {numbers[0]} and {len(numbers) - 1} more"


def _is_about(row: Any) -> bool:
    return isinstance(row, dict) and {"name", "seed"} <= row.keys() <= ABOUT


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    """Name and seed of a saved set, its scorer and template."""
    if not isinstance(row["name"], str) or not is_count(row["seed"], 0):
        raise WorkbenchError("name must be text and seed a whole number.")
    found = dict(row)
    if "scorer" in found:
        found["scorer"] = scorers.from_data(found["scorer"])
    return found


@provides("PromptSet.load")
def load(path: str | Path, **how: Any) -> PromptSet:
    return read(path, **how)
