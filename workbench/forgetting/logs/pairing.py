"""The same items in two logs: which belong together, and what limits how they may be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from workbench.errors import WorkbenchError, some, visible
from workbench.forgetting.logs.item import Item, Log, Score, Task
from workbench.forgetting.paired import Paired

# The first of these that both logs have of a task is read where none is asked for; else the first
# that there is.
METRICS = (
    "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "pass_at_1", "em", "acc_norm",
    "mc1", "f1",
)  # fmt: skip
UNNAMED = "items"  # a task that neither log names
PLAIN = ("", "none")  # the filters of a task that has one
Key = tuple[str, str]


class Joined(NamedTuple):
    """paired: a task each, in the base log's order. notes: what was left out, and what differs."""

    paired: tuple[Paired, ...]
    notes: tuple[str, ...]


def joined(base: Log, tuned: Log, *, metric: str | None = None) -> Joined:
    """The items that both logs have, by task, filter and id.

    metric: of the items; None takes of each task the first of METRICS that is there. Items of one
    log alone, and those without a score, are left out with a note. Raises WorkbenchError where
    no task is in both, where an id stands for different questions, and where no task has the
    metric.
    """
    if base.harness != tuned.harness:
        raise WorkbenchError(
            f"Expected two logs of one harness, found {base.harness}'s in {base.path} "
            f"and {tuned.harness}'s in {tuned.path}; their items cannot be paired; "
            "give logs of the same harness."
        )
    both, notes = _tasks(base, tuned)
    made: list[Paired] = []
    metrics = {name: _metric(first, last, metric) for name, (first, last) in both.items()}
    if not any(metrics.values()):
        known = dict.fromkeys(one for first, _ in both.values() for one in _common(first.items))
        raise WorkbenchError(
            "Expected a metric between 0 and 1 that both logs have for a task, found "
            f"{some(list(map(visible, known)), 12) or 'none'}"
            f"{'' if metric is None else f', not {metric}'}; give metric=NAME of these."
        )
    notes += _passed_over(both, metrics, metric)
    for name, (first, last) in both.items():
        chosen = metrics[name]
        if chosen is None:
            continue
        paired, own = _paired(name, first, last, chosen)
        notes += own
        if paired is not None:
            made.append(paired)
    if not made:
        raise WorkbenchError(
            f"Expected an item that both logs scored, found none in {base.path} and {tuned.path}; "
            f"{' '.join(notes)}"
        )
    sides = [f"{side.path.name}: {note}." for side in (base, tuned) for note in side.notes]
    return Joined(tuple(made), tuple([*sides, *_alike(base, tuned), *_settings(both), *notes]))


def _tasks(base: Log, tuned: Log) -> tuple[dict[str, tuple[Task, Task]], list[str]]:
    """(name -> the task in both logs, notes of those of one alone)."""
    first, last = _named(base), _named(tuned)
    alone = [{name for name, _ in side} for side in (first, last)]
    if all(len(names) == 1 for names in alone) and alone[0] != alone[1]:
        (one,), (other,) = alone
        if one and other:
            raise WorkbenchError(
                f"Expected two logs of one task, found {visible(one)} in {base.path} and "
                f"{visible(other)} in {tuned.path}; give those of the same task."
            )
        # A file that was renamed does not say of which task it is: that of the other side.
        name = one or other
        first, last = ({(name, key[1]): task for key, task in side.items()}
                       for side in (first, last))  # fmt: skip
    shared = [key for key in first if key in last]
    if not shared:
        raise WorkbenchError(
            f"Expected a task that both logs have, found {_list(first)} in {base.path} and "
            f"{_list(last)} in {tuned.path}; give logs of the same tasks."
        )
    left = {name: [key for key in own if key not in other]
            for name, own, other in (("base", first, last), ("tuned", last, first))}  # fmt: skip
    notes = [
        f"these are only in the {side} log and are left out: {_list(dict.fromkeys(keys))}."
        for side, keys in left.items() if keys
    ]  # fmt: skip
    filters: dict[str, set[str]] = {}
    for name, chosen in [*first, *last]:
        filters.setdefault(name, set()).add(chosen)
    found = {}
    for name, chosen in shared:
        shown = visible(name or UNNAMED)
        shown = f"{shown}, {visible(chosen)}" if len(filters[name]) > 1 else shown
        found[shown] = (first[name, chosen], last[name, chosen])
    return found, notes


def _named(log: Log) -> dict[Key, Task]:
    return {(task.name, task.filter): task for task in log.tasks}


def _list(keys: Mapping[Key, object]) -> str:
    names = (
        f"{name or UNNAMED}, {of}" if of not in PLAIN else name or UNNAMED for name, of in keys
    )
    return _told([visible(name) for name in names])


def _metric(first: Task, last: Task, asked: str | None) -> str | None:
    """The metric to read of a task: a score between 0 and 1 that both logs have."""
    there = set(_common(last.items))
    known = [one for one in _common(first.items) if one in there]
    if asked is not None:
        return asked if asked in known else None
    return next((one for one in METRICS if one in known), known[0] if known else None)


def _common(items: Mapping[str, Item]) -> list[str]:
    """The metrics of a task's items that are scores between 0 and 1."""
    names = dict.fromkeys(name for item in items.values() for name in item.scores)
    wrong = {
        name
        for item in items.values()
        for name, score in item.scores.items()
        if not (0 <= score.value <= 1 or np.isnan(score.value))
    }
    return [name for name in names if name not in wrong]


def _passed_over(
    both: Mapping[str, tuple[Task, Task]], metrics: Mapping[str, str | None], asked: str | None
) -> list[str]:
    """Which metric is read and which are not; tasks that are told alike in one note."""
    told: dict[str, list[str]] = {}
    for name, (first, last) in both.items():
        chosen = metrics[name]
        others = [one for one in _common(first.items) if one in _common(last.items)]
        if chosen is None:
            what = "no score between 0 and 1" if asked is None else f"no {asked}"
            told.setdefault(f"both logs have {what}, and it is left out", []).append(name)
            continue
        others.remove(chosen)
        if others and asked is None:
            shown = some(list(map(visible, others)), 8)
            text = f"the score is {visible(chosen)}; there is also {shown} (metric=)"
            told.setdefault(text, []).append(name)
    return [f"{_told(names)}: {text}." for text, names in told.items()]


def _paired(name: str, first: Task, last: Task, metric: str) -> tuple[Paired | None, Iterator[str]]:
    """The items of a task that both logs scored, None where there are none, and notes."""
    shared = sorted(first.items.keys() & last.items.keys(), key=_order)
    pairs = {key: (first.items[key], last.items[key]) for key in shared}
    other = [key for key, (a, b) in pairs.items() if not a.content & b.content]
    if other:
        raise WorkbenchError(
            f"{name}: item {visible(other[0])} is another question, or has another "
            f"right answer, in each log ({len(other)} of {len(pairs)} items): these "
            "are two versions of the task, or of its data; measure both models with the same one."
        )
    nothing = Score(float("nan"))
    scores = {key: (a.scores.get(metric, nothing), b.scores.get(metric, nothing))
              for key, (a, b) in pairs.items()}  # fmt: skip
    kept = [key for key, (a, b) in scores.items() if not np.isnan(a.value + b.value)]
    notes = _left(name, first, last, pairs, kept)
    if not kept:
        return None, notes
    items, own = [pairs[key] for key in kept], [scores[key] for key in kept]
    made = Paired(
        name,
        tuple(map(visible, kept)),
        np.array([a.value for a, _ in own]),
        np.array([b.value for _, b in own]),
        np.array([a.chance for a, _ in own]),
        tuple({visible(k): visible(v) for k, v in a.tags.items()} for a, _ in items),
        tuple(visible(a.asked) for a, _ in items),
        tuple(visible(a.expected) for a, _ in items),
        tuple(visible(a.said) for a, _ in own),
        tuple(visible(b.said) for _, b in own),
    )
    return made, notes


def _order(key: str) -> tuple[int, int, str]:
    """Numbers by their size, then names."""
    return (0, len(key), key) if key.isascii() and key.isdigit() else (1, 0, key)


def _left(
    name: str, first: Task, last: Task, pairs: Mapping[str, tuple[Item, Item]], kept: list[str]
) -> Iterator[str]:
    alone = [len(task.items) - len(pairs) for task in (first, last)]
    if any(alone):
        yield (
            f"{name}: {alone[0]} items that only the base log has and {alone[1]} that "
            f"only the tuned one has are left out; {len(pairs)} are in both."
        )
    if len(kept) < len(pairs):
        yield f"{name}: {len(pairs) - len(kept)} of {len(pairs)} items lack a score in one log."
    put = sum(a.prompt != b.prompt for a, b in pairs.values() if a.prompt and b.prompt)
    if put:
        yield (
            f"{name}: {put} of {len(pairs)} items were worded differently for each "
            "model (few-shot examples, a chat template), so more than the models differs."
        )


def _alike(base: Log, tuned: Log) -> Iterator[str]:
    if base.fingerprint == tuned.fingerprint:
        yield "both logs are the same file, so nothing can have changed."
    elif base.model and base.model == tuned.model:
        yield f"both logs name the same model, {base.model}."


def _settings(both: Mapping[str, tuple[Task, Task]]) -> Iterator[str]:
    """What the two were not measured with alike, where both say it."""
    told: dict[str, list[str]] = {}
    for name, (first, last) in both.items():
        for key in first.settings.keys() & last.settings.keys():
            one, other = (visible(task.settings[key]) for task in (first, last))
            if one != other:
                text = f"{key}: {one or 'none'} of the base, {other or 'none'} of the tuned model"
                told.setdefault(text, []).append(name)
    for text, names in sorted(told.items()):
        yield f"the two models were measured differently ({_told(names)}): {text}."


def _told(names: list[str]) -> str:
    """Some names of tasks, of which one with a filter holds a comma."""
    return some([f'"{name}"' if ", " in name else name for name in names], 3)
