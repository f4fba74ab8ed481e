"""The page stands alone, says everything, escapes everything, and appears whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.figures.synthetic import everything, family, intruders, result, retention, stepped
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.reports import packing

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags in order, with their attributes; raises where they do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of a family and of a run's checkpoints, with a preflight and a note."""
    made = [*everything(family(3)), intruders(stepped((1, 2))), retention(stepped((1, 2)))]
    lines = [("dtype", "warn", "bfloat16", "load both as stored"), ("names", "ok", "alike", "")]
    preflight = pd.DataFrame(lines, columns=["item", "status", "found", "remedy"])
    path = tmp_path_factory.mktemp("report") / "page.html"
    wb.report(made, path, preflight=preflight, notes=["Said once."])
    return made, path.read_text(encoding="utf-8")


def test_it_parses_and_loads_nothing(page):
    _, text = page
    parsed = Page(text)
    assert parsed.tags[0][0] == "html"
    assert parsed.tags[0][1]["lang"] == "en"
    assert not parsed.all("link")
    assert not any(attrs.keys() & {"onclick", "onload", "onerror"} for _, attrs in parsed.tags)
    for _, attrs in parsed.tags:
        for name in ("src", "href", "srcset", "action"):
            assert re.match(r"data:image/webp;base64,|#", attrs.get(name, "#"))
    assert "url(" not in packing.styles()
    assert "@import" not in packing.styles()


def test_the_policy_lets_run_what_the_page_holds_and_no_more(page):
    parsed = Page(page[1])
    policy = next(a for a in parsed.all("meta") if "http-equiv" in a)["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert allowed
    assert "unsafe-inline" not in allowed[1]
    run = re.findall(r"<script>(.*?)</script>", page[1], re.S)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in run]
    assert allowed[1].split() == [f"'sha256-{one}'" for one in digests]


def test_a_table_is_in_the_page_as_it_is_in_the_result(page):
    made, text = page
    packed = re.findall(r"data-packed>([^<]*)<", text)
    assert len(packed) == len(made)
    for one, content in zip(made, packed, strict=True):
        found = json.loads(gzip.decompress(base64.b64decode(content)))
        assert found["rows"] == len(one.table)
        for name in one.table:
            column = found["columns"][name]
            if isinstance(column, list):
                there = np.array(column, dtype=float)
                np.testing.assert_allclose(there, one.table[name].astype(float), rtol=1e-5)
            else:
                of = [None if at < 0 else column["of"][at] for at in column["at"]]
                given = [None if pd.isna(v) else str(v) for v in one.table[name]]
                assert of == given


def test_a_table_that_is_too_long_is_named_and_left_out(tmp_path, monkeypatch):
    one = retention(family(2))
    monkeypatch.setattr(packing, "WHOLE", len(one.table) - 1)
    text = wb.report([one], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "data-packed>" not in text
    assert f"{one.analysis}/table.parquet" in text


def test_links_lead_somewhere_and_headings_are_in_order(page):
    parsed = Page(page[1])
    places = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(set(places)) == len(places)
    assert {attrs["href"][1:] for attrs in parsed.all("a")} <= set(places)
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_figure_and_sentence_is_there(page):
    made, text = page
    parsed = Page(text)
    images = parsed.all("img")
    assert len(images) == sum(len(list(figures.drawings(one, made))) for one in made)
    assert all(image["alt"].strip() for image in images)
    for one in made:
        lead, parts = figures.findings(one)
        assert all(part in unescape(text) for part in (lead, *parts))
    assert text.count("When it misleads:") == len(images)
    assert text.count("Said once.") == 1
    commands = {one.provenance.command for one in made}
    assert text.count("How to run it again") == 1
    assert all(text.count(f"<code>{command}</code>") == 1 for command in commands)
    assert "load both as stored" in text
    # Scrolling happens inside a box that the keyboard reaches, never of the page.
    boxes = [
        a
        for a in parsed.all("div")
        if (a.get("class") or "").split()[:1] in (["scroll"], ["picture"])
    ]
    assert len(boxes) >= len(parsed.all("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_long_tables_are_folded_and_raw_rows_stay_out(page):
    made, text = page
    parsed = Page(text)
    assert parsed.all("details")
    assert len(parsed.all("tr")) < 600 < sum(len(one.table) for one in made)


def test_everything_is_escaped(tmp_path):
    members = {EVIL: {"kind": "lora", "rank": 2, "fingerprint": EVIL, "reference": EVIL}}
    rows = [
        {"member": EVIL, "task": EVIL, "metric": metric, "value": 0.1}
        | {"low": 0.0, "high": 0.2, "n": 3, "baseline": 0.0}
        for metric in ("score", "score_change")
    ]
    rows += [row | {"task": "pretraining", "metric": "loss_change"} for row in rows[:1]]
    made = result("forgetting.retention", rows, members, task=EVIL, other=EVIL)
    preflight = pd.DataFrame([{"item": EVIL, "status": EVIL, "found": EVIL, "remedy": EVIL}])
    path = wb.report([made], tmp_path / "x.html", title=EVIL, preflight=preflight, notes=[EVIL])
    text = path.read_text(encoding="utf-8")
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_saved_folders_and_an_analysis_without_figures(tmp_path):
    members = family(2)
    folder = retention(members).save(tmp_path / "saved")
    rows = [{"member": name, "metric": "gap", "value": 0.25} for name in members]
    path = wb.report([folder, result("another.analysis", rows, members)], tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "another.analysis" in text
    assert "0.25" in text


def test_numbers_in_the_tables(page):
    """The count that the sentence gives stands in the table, too."""
    made, text = page
    frames = re.findall(r"<table[^>]*>.*?</table>", text, re.S)
    counts = figures.intruder_counts(made[0])
    first = counts[(counts["member"] == "lora-r1") & (counts["arm"] == "tuned")].iloc[0]
    table = next(one for one in frames if "Intruders among" in one)
    row = re.search(r"lora-r1</th>(.*?)</tr>", table, re.S)
    assert row
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert cells[:3] == [f"{first['count']:g}", str(first["n"]), f"{100 * first['fraction']:.1f}"]


def test_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="at least one Result"):
        wb.report([], tmp_path / "x.html")
    one, other = retention(family(1)), intruders(family(1))
    other.provenance.base["fingerprint"] = "another"  # type: ignore[index]
    with pytest.raises(WorkbenchError, match="one base"):
        wb.report([one, other], tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch):
    path = wb.report([retention(family(1))], tmp_path / "page.html")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WorkbenchError, match="disk full"):
        wb.report([retention(family(2))], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_results_of_one_analysis_are_told_apart_by_their_task(tmp_path):
    asked = [{"prompts": {"name": name, "n": 1, "fingerprint": name}} for name in ("facts", "sums")]
    one = retention(family(3))
    made = [replace(one, provenance=replace(one.provenance, parameters=p)) for p in asked]
    text = wb.report(made, tmp_path / "page.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert sum(heading.endswith("on facts") for heading in headings) == 1
    assert sum(heading.endswith("on sums") for heading in headings) == 1


def test_a_note_stands_with_its_numbers_or_once_before_all_of_them(tmp_path):
    made = [retention(family(1)), intruders(family(1))]
    notes = [("Of both.", "Of the first."), ("Of both.", "Of the second.")]
    made = [
        replace(one, provenance=one.provenance.with_notes(own))
        for one, own in zip(made, notes, strict=True)
    ]
    text = wb.report(made, tmp_path / "page.html").read_text(encoding="utf-8")
    _, first, second = re.split(r'<details class="chapter"', text)
    second, about = second.split('<h2 id="about-run">')
    assert [note in about for note in ("Of both.", "Of the first.")] == [True, False]
    assert ["Of the first." in part for part in (first, second)] == [True, False]
    assert ["Of the second." in part for part in (first, second)] == [False, True]
    assert text.count("Of both.") == 1
