"""The first screen: which models were compared on what, and one sentence for each of them.

It is for somebody who decides which of the models to use. It says what `findings.equivalence`
measured, in words, and nothing else: learned as well, more or less than the full fine-tune, or
undecided; forgot more or less; and whether intruder dimensions are more than chance gives. Beside
it stands what the same measures are of models that learned nothing, where a run has some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from workbench import figures
from workbench.figures.compare.equivalence import KEY, MARKS, SIZE, UNITS
from workbench.figures.wording import change
from workbench.results.recipes import phantoms_of
from workbench.results.result import Result

# What a measure is held against, where that is no null.
BESIDE = {
    "score": "base", "forgetting": "base", "effective rank": "LoRA's rank",
    "TuCo": "other prompts", "graft size": "random", "gain in a tenth": "random",
    "base's circuit": "random heads", "circuit overlap": "random heads", "intruders": "chance",
}  # fmt: skip
FIRST = ("score", "forgetting", "intruders")  # what the sentences tell of
BILLION, MILLION = 10**9, 10**6
Rows = Mapping[tuple[str, str], pd.Series]


@dataclass(frozen=True)
class Cell:
    """One measure of one model: its value with the interval, what it is held against, what its
    difference from the full fine-tune is, and what it is of its phantoms."""

    value: str
    null: str = ""
    says: str = ""
    chance: bool = False  # no more than its null: shown in grey
    phantoms: str = ""

    @property
    def mark(self) -> str:
        return MARKS.get(self.says, "")


@dataclass(frozen=True)
class Group:
    """The models of one task. sentences: (member, words); measures: (name, its unit and n), a
    column each; rows: (member, cells)."""

    task: str
    sentences: list[tuple[str, str]]
    measures: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]

    @property
    def answered(self) -> bool:
        """Whether score or forgetting was measured: the others are of use to few readers."""
        return any(name in ("score", "forgetting") for name, _ in self.measures)


def groups(results: Sequence[Result], phantoms: Result | None = None) -> list[Group]:
    """The models by the task that they were fine-tuned on, largest group first. phantoms: the same
    measures of models that learned nothing."""
    first = next((one for one in results if one.analysis == KEY), None)
    if first is None:
        return []
    tasks = _tasks(results)
    members = list(dict.fromkeys(first.metric("measure")["member"]))
    by: dict[str, list[str]] = {}
    about = first.provenance.members
    for name in members:  # of a recipe of several runs the task of the first
        run = (about.get(name, {}).get("runs") or [name])[0]
        by.setdefault(tasks.get(run, ""), []).append(name)
    largest = sorted(by.items(), key=lambda one: -len(one[1]))
    return [_group(task, own, first, _nothing(first, phantoms)) for task, own in largest]


def _nothing(first: Result, phantoms: Result | None) -> dict[tuple[str, str], pd.Series]:
    """(model, measure) -> its phantoms' row; of a recipe of several runs that of the first."""
    if phantoms is None:
        return {}
    rows = {(r["member"], r["measure"]): r for _, r in phantoms.metric("measure").iterrows()}
    found = {}
    for name, about in first.provenance.members.items():
        run = (about.get("runs") or [name])[0]
        own = phantoms_of(run)
        found |= {(name, what): row for (one, what), row in rows.items() if one == own}
    return found


def base_line(base: Mapping[str, Any]) -> str:
    """The base's architecture and size, as far as they are known."""
    count = base.get("parameters")
    size = f"{_size(int(count))} parameters" if isinstance(count, int | float) and count else ""
    return ", ".join(filter(None, [str(base.get("model") or ""), size]))


def _size(count: int) -> str:
    for unit, name in ((BILLION, "billion"), (MILLION, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def asked(results: Sequence[Result]) -> list[str]:
    """What the models were scored on: the tasks of retention with their items, where it was
    measured; else the prompt sets of all analyses."""
    kept = next((r for r in results if r.analysis == "forgetting.retention"), None)
    found: dict[str, int] = {}
    if kept is not None:
        for metric in ("score", "loss_change"):
            rows = kept.table[(kept.table["metric"] == metric) & kept.table["n"].notna()]
            for task, own in rows.groupby("task", sort=False):
                found.setdefault(str(task), int(own["n"].max()))
    else:
        for result in results:
            for one in _sets(result.provenance.parameters.get("prompts")):
                if isinstance(one, Mapping) and "name" in one:
                    found[one["name"]] = max(found.get(one["name"], 0), int(one.get("n") or 0))
    return [f"{name} (n = {count})" for name, count in found.items()]


def _sets(given: Any) -> list[Any]:
    """The prompt sets that a parameter describes: one, several, or several by name."""
    if isinstance(given, Mapping) and "name" not in given:
        return list(given.values())
    return given if isinstance(given, list) else [given]


def _tasks(results: Sequence[Result]) -> dict[str, str]:
    """Member -> the task it was fine-tuned on, by the first analysis that names one."""
    found: dict[str, str] = {}
    for result in results:
        given = result.provenance.parameters
        task = given.get("task")
        prompts = given.get("prompts")
        if not isinstance(task, str) and isinstance(prompts, Mapping):
            task = prompts.get("name")
        if isinstance(task, str):
            for name in result.members:
                found.setdefault(name, task)
    return found


def _group(task: str, members: list[str], first: Result, nothing: Rows) -> Group:
    table = first.table[first.table["member"].isin(members)]
    measured = table[table["metric"] == "measure"]
    differs = table[table["metric"] == "difference"]
    rows = {(r["member"], r["measure"]): r for _, r in measured.iterrows()}
    apart = {(r["member"], r["measure"]): r for _, r in differs.iterrows()}
    names = list(dict.fromkeys(measured["measure"]))
    about = first.provenance.members
    sentences = [
        (
            name,
            _sentence(name, about.get(name, {}), task, rows, apart)
            + _learned_nothing(name, nothing),
        )
        for name in members
    ]
    lines = [
        (
            name,
            [
                _cell(rows.get((name, m)), apart.get((name, m)), nothing.get((name, m)))
                for m in names
            ],
        )
        for name in members
    ]
    return Group(task, sentences, [(m, _unit(m, measured)) for m in names], lines)


def _unit(measure: str, measured: pd.DataFrame) -> str:
    """What a measure counts, and over how many items."""
    counts = measured.loc[measured["measure"] == measure, "n"].dropna().astype(int)
    unit = UNITS.get(measure, "").removeprefix(f"{measure} ")
    unit = unit[1:-1] if unit.startswith("(") else unit
    ends = sorted({counts.min(), counts.max()}) if len(counts) else []
    return ", ".join(filter(None, [unit, f"n = {' to '.join(map(str, ends))}" if ends else ""]))


def _cell(row: pd.Series | None, apart: pd.Series | None, nothing: pd.Series | None) -> Cell:
    beside_it = "" if nothing is None else _valued(nothing)
    if row is None:
        return Cell("–")
    if pd.isna(row["value"]):
        return Cell(_undefined(row), phantoms=beside_it)
    beside = BESIDE.get(str(row["measure"]), "null")
    null = "" if pd.isna(row["baseline"]) else f"{beside} {row['baseline']:.3g}"
    says = "" if apart is None else str(apart["says"])
    shown = figures.interval(row["value"], row["low"], row["high"])
    return Cell(shown, null, says, row["measure"] == "intruders" and _by_chance(row), beside_it)


def _undefined(row: pd.Series) -> str:
    return "none tried suffices" if row["measure"] == SIZE else "undefined"


def _valued(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return _undefined(row)
    return figures.interval(row["value"], row["low"], row["high"])


def _by_chance(row: pd.Series) -> bool:
    """Whether the interval reaches the null, or stays below it."""
    return bool(pd.notna(row["baseline"]) and row["low"] <= row["baseline"])


def _learned_nothing(name: str, nothing: Rows) -> str:
    """What the same measures are of the model's phantoms: the first page's negative control."""
    own = {what: row for (one, what), row in nothing.items() if one == name}
    if not own:
        return ""
    count = max(int(row["runs"]) for row in own.values())
    chosen = [what for what in FIRST if what in own] or list(own)[:1]
    said = ", ".join(f"{UNITS.get(what, what)} {_valued(own[what])}" for what in chosen)
    models = "1 model" if count == 1 else f"{count} models"
    return f" Of {models} like it that learned nothing: {said}."


def _sentence(name: str, about: Mapping[str, Any], task: str, rows: Rows, apart: Rows) -> str:
    kind = {"full": "full fine-tune", "lora": "LoRA"}.get(str(about.get("kind")), "")
    if about.get("kind") == "lora" and about.get("rank"):
        kind += f", r = {about['rank']}"
    if about.get("runs"):
        kind += f"{', ' if kind else ''}{len(about['runs'])} training runs"
    said = [
        _learned(_beside("score", name, rows, apart), task or "its task"),
        _forgot(_beside("forgetting", name, rows, apart)),
        _intruders(rows.get((name, "intruders"))),
    ]
    words = "; ".join(filter(None, said)) or "see the table"
    return f"{f'({kind})' if kind else ''}: {words}."


class _Beside(NamedTuple):
    """One measure of a model, of the full fine-tune, and the difference of the two."""

    own: pd.Series
    full: pd.Series | None
    apart: pd.Series | None

    def against(self, form: str, unit: str = "") -> str:
        """Both values, and the difference with its interval."""
        assert self.full is not None
        assert self.apart is not None
        values = f"{self.own['value']:{form}} against {self.full['value']:{form}}{unit}"
        return f"{values}, difference {change(self.apart, '+.2f')}"


def _beside(measure: str, name: str, rows: Rows, apart: Rows) -> _Beside | None:
    """None where it was not measured; no difference where there is no full fine-tune."""
    own, between = rows.get((name, measure)), apart.get((name, measure))
    if own is None or pd.isna(own["value"]):
        return None
    full = None if between is None else rows.get((between["versus"], measure))
    return _Beside(own, full, None if full is None else between)


def _learned(found: _Beside | None, task: str) -> str:
    if found is None:
        return ""
    if found.apart is None:
        return f"answers a share of {change(found.own, '.2f')} of {task} correctly"
    full, says = found.apart["versus"], found.apart["says"]
    by = f"({found.against('.2f')})"
    if says == "alike":
        return f"learns {task} as well as {full} {by}"
    if says == "different":
        how = "better" if found.apart["value"] > 0 else "less well"
        return f"learns {task} {how} than {full} {by}"
    return f"undecided whether it learns {task} as well as {full} {by}"


def _forgot(found: _Beside | None) -> str:
    if found is None:
        return ""
    unit = " nats/token of pre-training text"
    if found.apart is None:
        by = f"({change(found.own, '+.2f')}{unit})"
        if found.own["low"] > 0:
            return f"forgets compared with the base {by}"
        sure = found.own["high"] < 0
        return f"{'does not forget' if sure else 'undecided whether it forgets'} {by}"
    full, says, by = found.apart["versus"], found.apart["says"], f"({found.against('+.2f', unit)})"
    if says == "alike":
        return f"forgets as much as {full} {by}"
    if says == "different":
        return f"forgets {'more' if found.apart['value'] > 0 else 'less'} than {full} {by}"
    return f"undecided whether it forgets more or less than {full} {by}"


def _intruders(row: pd.Series | None) -> str:
    if row is None or pd.isna(row["value"]) or pd.isna(row["baseline"]):
        return ""
    than = "no more than chance" if _by_chance(row) else "more than chance"
    share = figures.interval(100 * row["value"], 100 * row["low"], 100 * row["high"], ".1f")
    return f"intruder dimensions: {share}%, {than} ({100 * row['baseline']:.1f}%)"
