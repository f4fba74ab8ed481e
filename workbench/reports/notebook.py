"""What does a notebook show of an object? Its words and numbers as HTML, every text escaped.

Colours and type are the notebook's own, so that light and dark themes both suit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, visible

if TYPE_CHECKING:
    from workbench.loaders import CheckpointPair, Family, PairReport
    from workbench.results.result import Result
    from workbench.tasks import Prompt, PromptSet

ROWS = 5  # of a table
EXAMPLES = 3  # of a prompt set
LONG = 240  # characters of a text
LINE = 48  # characters that are not broken into lines
SHORT = 12  # characters of a fingerprint
SOFT = "opacity:.75;margin:.2em 0"
PLAIN = "white-space:pre-wrap;overflow-wrap:break-word;text-align:left"


@provides("Result._repr_html_")
def result(one: Result) -> str:
    """Headline, notes, the first rows of the table, and where it came from."""
    from workbench import figures

    lead, parts = figures.findings(one)
    about = one.provenance
    here = f"{about.device}, {about.dtype}" + ("" if about.seed is None else f", seed {about.seed}")
    whole = len(one.table)
    caption = f"{whole} rows in .table" if whole <= ROWS else f"the first {ROWS} of {whole} rows"
    given = {f"parameter {name}": value for name, value in about.parameters.items()}
    made = {f"version of {name}": value for name, value in about.versions.items()}
    return _card(
        one.analysis,
        _said(f"{lead}{':' if parts else '.'}"),
        _listed(parts),
        _noted(about.notes),
        _folded(f"Table: {caption}", _table(_tidy(one.table)), unfolded=True),
        _folded(
            f"Where it came from: {here}",
            _table(_members(about.base, about.members)),
            _pairs({**given, **made, "command": about.command, "created": about.created}),
        ),
    )


@provides("CheckpointPair._repr_html_")
def pair(one: CheckpointPair) -> str:
    """Both sides, and what the preflight finds in their headers; no tensor is read."""
    return _card(
        f"{one.name}: a base and its fine-tuned model",
        _table(_members(one.base.about, {one.name: one.tuned.about}, [one])),
        _checked([one]),
    )


@provides("Family._repr_html_")
def family(one: Family) -> str:
    """The members, and what the preflight says of their headers; no tensor is read."""
    members = {name: checkpoint.about for name, checkpoint in one.members.items()}
    return _card(
        f"A base and {len(one)} fine-tuned model{'s' * (len(one) != 1)}",
        _table(_members(one.base.about, members, one)),
        _checked(one),
    )


@provides("PromptSet._repr_html_")
def prompts(one: PromptSet) -> str:
    """Name, number, splits and a few examples with their answers."""
    splits = pd.Series([p.split for p in one], dtype=object).value_counts(sort=False)
    told = ", ".join(f"{count} {split}" for split, count in splits.items()) or "none"
    return _card(
        f"{one.name}: {len(one)} prompts",
        _said(f"Splits: {told}; seed {one.seed}. The answer is in bold; wrong answers follow it."),
        Markup("").join(_example(prompt) for prompt in one.prompts[:EXAMPLES]),
    )


@provides("PairReport._repr_html_")
def preflight(one: PairReport) -> str:
    """What needs a reader first, then what is in order."""
    order = one.table["status"].map({"stop": 0, "warn": 1, "note": 2}).fillna(3)
    lines = one.table.loc[order.sort_values(kind="stable").index]
    end = "comparable" if one.ok else "not comparable"
    return _card(f"Preflight: these checkpoints are {end}", _table(lines))


def _members(
    base: Mapping[str, Any],
    members: Mapping[str, Mapping[str, Any]],
    pairs: Iterable[CheckpointPair] = (),
) -> pd.DataFrame:
    """Base and members a row each: kind, rank, parameters compared, reference, fingerprint."""
    rows = [{"": "base", **base}, *({"": name, **about} for name, about in members.items())]
    frame = pd.DataFrame(rows)
    if compared := [_compared(one) for one in pairs]:
        frame["compared"] = ["", *compared]
    if "fingerprint" in frame:
        frame["fingerprint"] = [str(text)[:SHORT] for text in frame["fingerprint"]]
    frame.loc[0, [name for name in ("kind", "rank", "alpha") if name in frame]] = None
    order = ["", "kind", "rank", "alpha", "step", "seed", "compared", "reference", "fingerprint"]
    return frame[[name for name in order if name in frame and frame[name].notna().any()]]


def _compared(one: CheckpointPair) -> str:
    everything, matrices = len(one.comparable), len(one.sites())
    return f"{everything} parameters, {matrices} block matrices"


def _checked(pairs: Iterable[CheckpointPair]) -> Markup:
    """The preflight's notes; why a pair cannot be compared, where it cannot."""
    told: list[str] = []
    for one in pairs:
        try:
            report = one.check(read=False)
            report.require()
            told += [f"{one.name}: {note}" for note in report.notes]
        except WorkbenchError as error:
            told.append(f"{one.name} cannot be compared: {error}")
    return _noted(told)


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The first rows: an interval beside its value, and no column that is empty in them."""
    from workbench.figures.wording import interval

    rows = table.head(ROWS)
    rows = rows[[name for name in rows if name == "value" or rows[name].notna().any()]]
    if {"low", "high"} <= set(rows):
        values = rows[["value", "low", "high"]].itertuples(index=False)
        rows = rows.assign(value=["" if pd.isna(v) else interval(v, a, b) for v, a, b in values])
        rows = rows.rename(columns={"value": "value [95% interval]"})
    return rows.drop(columns=["low", "high"], errors="ignore")


def _example(prompt: Prompt) -> Markup:
    foils = f"  ({', '.join(foil.strip() for foil in prompt.foils)})" if prompt.foils else ""
    return Markup('<p style="{}"><span>{}</span><strong>{}</strong><span>{}</span></p>').format(
        PLAIN, _seen(prompt.prompt), _seen(prompt.target), _seen(foils)
    )


def _seen(value: Any) -> str:
    """A value as text: rounded, cut in the middle where it is long, nothing in it obeyed."""
    if isinstance(value, list | tuple | dict):
        value = ", ".join(str(part) for part in value)
    elif value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    text = visible(f"{value:.4g}" if isinstance(value, float) else str(value))
    half = LONG // 2
    return text if len(text) <= LONG else f"{text[:half]} … {text[-half:]}"


def _card(title: str, *parts: Markup) -> str:
    whole = Markup("").join((Markup("<p><strong>{}</strong></p>").format(_seen(title)), *parts))
    return str(Markup('<div style="max-width:75em">{}</div>').format(whole))


def _said(text: str) -> Markup:
    return Markup("<p>{}</p>").format(visible(text))


def _listed(texts: Iterable[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(visible(text)) for text in texts)
    return Markup("<ul>{}</ul>").format(items) if items else Markup("")


def _noted(notes: Iterable[str]) -> Markup:
    given = [Markup('<p style="{}">Note: {}</p>').format(SOFT, visible(note)) for note in notes]
    return Markup("").join(given)


def _folded(summary: str, *parts: Markup, unfolded: bool = False) -> Markup:
    begun = Markup("<details open>") if unfolded else Markup("<details>")
    shell = "{}<summary>{}</summary>{}</details>"
    return Markup(shell).format(begun, visible(summary), Markup("").join(parts))


def _pairs(about: Mapping[str, Any]) -> Markup:
    return _table(pd.DataFrame({"": list(about), "value": list(about.values())}))


def _table(frame: pd.DataFrame) -> Markup:
    """A frame as text, in a box of its own that scrolls where it is wide."""
    head = Markup("").join(
        Markup('<th style="text-align:left">{}</th>').format(_seen(name)) for name in frame.columns
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row)))
        for row in frame.astype(object).itertuples(index=False)
    )
    shell = (
        '<div style="overflow-x:auto"><table><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    )
    return Markup(shell).format(head, body)


def _cell(value: Any) -> Markup:
    text = _seen(value)
    style = PLAIN.replace("pre-wrap", "pre") if len(text) <= LINE else PLAIN
    return Markup('<td style="{}">{}</td>').format(style, text)
