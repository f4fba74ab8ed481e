"""A section of a model card: the first page's numbers in Markdown, and every name is text."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

import workbench as wb
from tests.export.hostile import NAMES, retained
from workbench.errors import visible
from workbench.export import card
from workbench.export.markdown import block, plain
from workbench.results.run_folder import about_run, load

KEPT = Path(__file__).parents[2] / "figures" / "smollm2"
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def rendered(text: str) -> str:
    return READER.render(text)


def rows(page: str, number: int) -> list[list[str]]:
    """The cells of one table of a page, as a browser shows them."""
    table = re.findall(r"<table>.*?</table>", page, re.DOTALL)[number]
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[1:]]
    return [[html.unescape(cell) for cell in row] for row in cells]


def said(name: str) -> str:
    return " ".join(visible(name).split())


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_text(name: str):
    shown = rendered(plain(name))
    assert html.unescape(re.sub(r"^<p>|</p>\n$", "", shown)) == said(name)
    assert not re.search("<(?!/?p>)", shown)
    listed = rendered(f"- {plain(name)}")
    assert html.unescape(re.sub("</?(ul|li)>|\n", "", listed)) == said(name)
    # Addresses become links where a page looks for them.
    assert "://" not in plain(name)
    assert "www." not in plain(name)


def test_a_block_holds_any_line():
    shown = rendered(block(["`````", "~~~", "```\nx", "<b>"]))
    lines = html.unescape(re.sub("</?(pre|code)>", "", shown))
    assert lines.strip().split("\n") == ["`````", "~~~", "``` x", "<b>"]


def test_the_first_pages_measures_are_in_it():
    results = load(KEPT)
    first = results["compare.equivalence"].table
    page = rendered(card(results, about_run(KEPT)))
    members, measures = rows(page, 0), rows(page, 1)
    assert [row[0] for row in members[1:]] == results["compare.equivalence"].members
    about = results["compare.equivalence"].provenance.members["lora-r16"]
    own = dict(zip(members[0], members[2], strict=True))
    assert own["fingerprint"] == about["fingerprint"][:12]
    assert own["reference"] == about["reference"]
    assert own["seed"] == "0"
    measured = first[first["metric"] == "measure"]
    assert len(measures) == 1 + len(measured)
    for row, (_, known) in zip(measures[1:], measured.iterrows(), strict=True):
        assert row[:2] == [known["measure"], known["member"]]
        value = f"{known['value']:.3g} [{known['low']:.3g}, {known['high']:.3g}]"
        assert row[2:5] == [
            value, "" if pd.isna(known["baseline"]) else f"{known['baseline']:.3g}",
            str(int(known["n"])),
        ]  # fmt: skip
        beside = first.query("metric == 'difference' and measure == @row[0] and member == @row[1]")
        assert row[5].startswith(beside["says"].iloc[0] if len(beside) else "")
        assert bool(row[5]) == bool(len(beside))
    assert "workbench demo --model smollm2 --out out/smollm2" in page
    assert f"torch {results['compare.equivalence'].provenance.versions['torch']}" in page
    assert "not over seeds" in page


def test_without_the_first_page_it_is_made():
    results = {name: one for name, one in load(KEPT).items() if not name.endswith(".steps")}
    whole = card(results)
    del results["compare.equivalence"]
    again = card(list(results.values()))
    assert rows(rendered(again), 1) == rows(rendered(whole), 1)


def test_names_are_text_all_over_it():
    made = retained()
    about = {
        "title": NAMES[6], "command": "workbench compare ```` <b> `x`", "results": [], "asked": [],
        "failures": [f"{NAMES[7]}: {NAMES[8]}"],
        "preflight": [
            {"item": NAMES[2], "status": "warn", "found": NAMES[9], "remedy": "", "member": "x"},
            {"item": "fine", "status": "ok", "found": "never shown", "remedy": ""},
        ],
    }  # fmt: skip
    page = rendered(card([made], about))
    tags = set(re.findall(r"</?(\w+)", page))
    assert tags <= {
        "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre", "code",
    }  # fmt: skip
    assert [row[0] for row in rows(page, 0)[1:]] == list(map(said, NAMES))
    assert [row[1] for row in rows(page, 1)[1:]] == list(map(said, NAMES))
    shown = html.unescape(page)
    assert f"<h2>{said(NAMES[6])}</h2>" in shown
    assert "workbench compare ```` <b> `x`" in shown
    assert f"Not run: {said(NAMES[7])}: {said(NAMES[8])}" in shown
    assert f"x {said(NAMES[2])}: {said(NAMES[9])}" in shown
    assert "never shown" not in shown


def test_many_notes_are_counted():
    made = retained()
    notes = tuple(f"note {number}" for number in range(33))
    one = wb.Result(made.analysis, made.table, replace(made.provenance, notes=notes))
    page = card([one])
    assert "- note 19\n" in page
    assert "note 20" not in page
    assert "13 further notes are in the report" in page


def test_nothing_to_tell_of_is_one_sentence():
    with pytest.raises(wb.WorkbenchError, match="at least one result"):
        card([])
