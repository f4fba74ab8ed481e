"""What was found, as a section of a model card: Markdown for a README on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import figures
from workbench.errors import WorkbenchError
from workbench.export.markdown import block, listed, plain, table
from workbench.figures.compare.equivalence import margins
from workbench.files.writing import Mark
from workbench.findings.equivalence import KEY, equivalence
from workbench.reports.page import ABOUT, SHORT
from workbench.results.result import Result
from workbench.results.run_folder import EMPTY, QUESTION

BEGINS, ENDS = "<!-- workbench card -->\n", "<!-- end of workbench card -->\n"
SHOWN = 20  # sentences of what limits the reading; the report has the others
CAUTION = (
    "Intervals of a single training run are over its prompts, texts or matrices, not over "
    "seeds; of twenty comparisons of equal models about one is called different by chance."
)
Row = Sequence[str]


def _whole(file: Path) -> bool:
    """Nothing before the section, and nothing behind: a card that it was put into is a person's."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return text.startswith(BEGINS) and text.find(ENDS) == len(text) - len(ENDS)


CARD = Mark("a model card's section", lambda path: path.is_file() and _whole(path))


def card(
    results: Mapping[str, Result] | Sequence[Result], about: Mapping[str, Any] | None = None
) -> str:
    """A Markdown section for a model card: what was compared, every measure of the report's first
    page with its 95% interval, null and n, what limits the reading, how to run it again, versions.

    results: of one base, from one run. about: its run.json, as
    `workbench.results.run_folder.about_run` reads it, for its title, command, failures and
    preflight. Whatever a name holds is text in it, never Markdown or HTML. Raises WorkbenchError
    where there are no results.
    """
    read = list(results.values()) if isinstance(results, Mapping) else list(results)
    if not read:
        raise WorkbenchError(
            "Expected at least one result for a model card, found none; give the "
            "--out folder of a run."
        )
    about = {**EMPTY, "title": QUESTION} | dict(about or {})
    first = next((one for one in read if one.analysis == KEY), None) or equivalence(read)
    provenance = (first or read[0]).provenance
    members = figures.everyone(read) if first is None else first.provenance.members
    known = [_cell(name, provenance.base.get(name)) for name in ("reference", "fingerprint")]
    base = " ".join(f"<code>{one}</code>" for one in known if one)
    commands = [about["command"]] if about["command"] else [r.provenance.command for r in read]
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    parts = [
        BEGINS.strip(), f"## {plain(about['title'])}",
        f"The base {base} and its fine-tuned models were compared by workbench:",
        table(*_members(members)),
        *(_measures(first) if first is not None else ()),
        "### Limits of these results", listed(_limits(read, about)),
        "### How to run it again", block(list(dict.fromkeys(commands))),
        f"Versions: {plain(versions)}.",
        ENDS.strip(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _members(members: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Columns and rows of what is known of the members."""
    known = [key for key in ABOUT if any(own.get(key) is not None for own in members.values())]
    rows: list[Row] = [
        [plain(name), *(_cell(key, own.get(key)) for key in known)] for name, own in members.items()
    ]
    return ["member", *known], rows


def _cell(key: str, value: Any) -> str:
    """What is known of a checkpoint under this key; of a fingerprint its beginning."""
    told = "" if value is None else str(value)
    return plain(told[:SHORT] if key == "fingerprint" else told)


def _measures(first: Result) -> Iterator[str]:
    """The table of the report's first page, a row a measure and member."""
    differs = first.table[first.table["metric"] == "difference"].set_index(["measure", "member"])
    rows = []
    for _, row in first.metric("measure").iterrows():
        own = (row["measure"], row["member"])
        beside = differs.loc[own] if own in differs.index else None
        ratio = beside is not None and beside["arm"] == "ratio"
        told = (
            ""
            if beside is None
            else (f"{plain(beside['says'])} ({'x ' if ratio else ''}{_interval(beside, '.3g')})")
        )
        null = "" if pd.isna(row["baseline"]) else f"{row['baseline']:.3g}"
        count = "" if pd.isna(row["n"]) else f"{int(row['n'])}"
        value = "undefined" if pd.isna(row["value"]) else _interval(row, ".3g")
        rows.append([*map(plain, own), value, null, count, told])
    yield "### What was measured"
    yield table(
        [
            "measure",
            "member",
            "value, 95% interval",
            "null",
            "n",
            "compared with the full fine-tune",
        ],
        rows,
    )
    if len(differs):
        told = margins(differs.reset_index())
        yield plain(
            "A model is called alike if the whole interval of its difference is "
            f"within a margin ({told}), different if the interval excludes zero, and "
            "undecided otherwise."
        )


def _interval(row: pd.Series, form: str) -> str:
    return figures.interval(row["value"], row["low"], row["high"], form)


def _limits(read: Sequence[Result], about: Mapping[str, Any]) -> list[str]:
    """The preflight's warnings, what failed, and the notes of the Results."""
    warned = [
        f"{row.get('member', '')} {row['item']}: {row['found']}".strip()
        for row in about["preflight"] if row["status"] != "ok"
    ]  # fmt: skip
    failed = [f"Not run: {one}" for one in about["failures"]]
    notes = [note for one in read for note in one.provenance.notes]
    every = list(dict.fromkeys([*warned, *failed, *notes]))
    more = len(every) - SHOWN
    rest = [f"{more} further notes are in the report."] if more > 0 else []
    return [CAUTION, *every[:SHOWN], *rest]
