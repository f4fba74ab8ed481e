"""inspect-ai: the samples of one evaluation log, each under every scorer.

Logs of format 2 (inspect-ai 0.3) were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count
from workbench.forgetting.logs.item import (
    Item,
    Score,
    Task,
    beginning,
    digest,
    ending,
    is_id,
    number_of,
    tags_of,
    told,
)

# Correct, partly so, incorrect, no answer: as inspect's own accuracy counts them.
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
ATTACHED = "attachment://"
SAMPLE = "sample"  # the tag by which the epochs of one sample go together


def is_log(found: Any) -> bool:
    """Whether an object from JSON is an evaluation log, its samples aside."""
    return isinstance(found, Mapping) and isinstance(found.get("eval"), Mapping)


def task_of(about: Mapping[str, Any], samples: Sequence[Any]) -> Task:
    """about: the log but for its samples. Raises WorkbenchError for a sample that is none, or one
    that stands twice."""
    own = about["eval"]
    name = own.get("task")
    if not isinstance(name, str) or not name:
        raise WorkbenchError("its eval names no task")
    if not samples:
        raise WorkbenchError("it holds no samples (--no-log-samples leaves them out)")
    for number, sample in enumerate(samples, 1):
        whole = isinstance(sample, Mapping) and is_count(sample.get("epoch", 1), 0)
        if not whole or not is_id(sample.get("id")):
            raise WorkbenchError(f"sample {number} is not an object with an id and an epoch number")
    several = len({sample.get("epoch", 1) for sample in samples}) > 1
    items: dict[str, Item] = {}
    for number, sample in enumerate(samples, 1):
        key, epoch = str(sample["id"]), sample.get("epoch", 1)
        made = _item(sample, {SAMPLE: key} if several else {})
        key = f"{key}, epoch {epoch}" if several else key
        if key in items:
            raise WorkbenchError(f"sample {number} repeats {key}")
        items[key] = made
    return Task(name, items, "", _settings(own))


def model_of(about: Mapping[str, Any]) -> str:
    """What a log calls its model: the folder it was loaded from, where it says so."""
    own = about["eval"]
    args = own.get("model_args")
    path = args.get("model_path") if isinstance(args, Mapping) else None
    found = path if isinstance(path, str) and path else own.get("model")
    return found if isinstance(found, str) else ""


def notes_of(about: Mapping[str, Any]) -> Iterator[str]:
    status = about.get("status")
    if status not in ("success", None):
        yield f"the evaluation of {told(about['eval'].get('task'))} ended as {told(status)!r}"


def _settings(own: Mapping[str, Any]) -> dict[str, str]:
    packages, config = own.get("packages"), own.get("config")
    found = {
        "inspect-ai": packages.get("inspect_ai") if isinstance(packages, Mapping) else None,
        "version of the task": own.get("task_version"),
        "arguments of the task": own.get("task_args"),
        "solver": own.get("solver"),
        "generation": own.get("model_generate_config"),
        "epochs": config.get("epochs") if isinstance(config, Mapping) else None,
    }
    return {key: told(value) for key, value in found.items()}


def _item(sample: Mapping[str, Any], more: Mapping[str, str]) -> Item:
    attached = sample.get("attachments")
    attached = attached if isinstance(attached, Mapping) else {}
    asked = [_attached(text, attached) for text in _texts(sample.get("input"))]
    target, choices = sample.get("target"), sample.get("choices")
    options = choices if isinstance(choices, list) else []
    put = [_attached(text, attached) for text in _prompt(sample.get("messages"))]
    expected = target if isinstance(target, str) else ", ".join(_texts(target))
    scores = sample.get("scores")
    found: dict[str, Score] = {}
    for scorer, one in scores.items() if isinstance(scores, Mapping) else ():
        if isinstance(one, Mapping):
            found |= _scores(scorer, one, 1 / len(options) if len(options) > 1 else math.nan,
                             _attached(_written(sample), attached))  # fmt: skip
    return Item(
        frozenset([digest([asked, target, choices])]),
        digest(put) if put else "",
        found,
        {**tags_of(sample.get("metadata")), **more},
        ending(asked[-1]) if asked else "",
        beginning(expected),
    )


def _scores(scorer: str, one: Mapping[str, Any], chance: float, written: str) -> dict[str, Score]:
    """One scorer's, and where it gives several values, those by "scorer/name"."""
    value, answer = one.get("value"), one.get("answer")
    said = beginning(answer if isinstance(answer, str) and answer else written)
    parts = {scorer: value}
    if isinstance(value, Mapping):
        parts = {f"{scorer}/{name}": part for name, part in value.items()}
    found = {}
    for name, part in parts.items():
        number = LETTERS.get(part) if isinstance(part, str) else None
        number = number_of(part) if number is None else number
        if number is not None:
            found[name] = Score(number, chance, said)
    return found


def _texts(found: Any) -> list[str]:
    """The texts of an input: one, or those of its messages, and of their parts."""
    if isinstance(found, str):
        return [found]
    made: list[str] = []
    for one in found if isinstance(found, list) else ():
        if isinstance(one, str):
            made.append(one)
        elif isinstance(one, Mapping):
            inner = one.get("content", one.get("text"))
            made += [inner] if isinstance(inner, str) else _texts(inner)
    return made


def _prompt(messages: Any) -> list[str]:
    """The texts in front of the first answer of the model's own; those of examples go in."""
    before = []
    for one in messages if isinstance(messages, list) else ():
        own = isinstance(one, Mapping) and one.get("role") == "assistant"
        if own and one.get("source") != "input":
            break
        before.append(one)
    return _texts(before)


def _written(sample: Mapping[str, Any]) -> str:
    output = sample.get("output")
    text = output.get("completion") if isinstance(output, Mapping) else None
    return text if isinstance(text, str) else ""


def _attached(text: str, attached: Mapping[str, Any]) -> str:
    """A text that stands elsewhere in the sample, since it comes more than once."""
    found = attached.get(text.removeprefix(ATTACHED)) if text.startswith(ATTACHED) else None
    return found if isinstance(found, str) else text
