"""The report as a reader has it: in a browser, on a phone and a desk, whatever the names hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import axe_core_python
import pandas as pd
import pytest

import workbench as wb
from tests.models.conftest import write_base, write_member
from tests.reports.browser import Tab, tab
from workbench.errors import visible

NARROW, WIDE = 390, 1400  # CSS pixels
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(\'x\')"> & \'quoted\' "twice"',
    "🦊 é 漢字 {{ 7 * 7 }} $x_1$",
    "שלום עולם مرحبا \u202egnihtyna",
    "x" * 300,
)
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
UNSHOWN = (
    "Promise.all([...document.images].map(i => i.decode().catch(() => 0)))"
    ".then(() => [...document.images].filter(i => !i.naturalWidth).length)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of real Results whose every name, prompt and note is hostile."""
    folder = tmp_path_factory.mktemp("report")
    base = write_base("llama", folder / "base")
    members = {
        HOSTILE[0]: write_member("llama", "lora", folder / "lora"),
        HOSTILE[1]: write_member("llama", "full", folder / "full"),
    }
    family = wb.load_family(base, members)
    asked = [
        wb.tasks.PromptSet(
            name, tuple(wb.tasks.Prompt(str(i), f"3 4 {t}", " 5") for i, t in enumerate(HOSTILE))
        )
        for name in HOSTILE[2:]
    ]
    results = [
        wb.over(family, wb.spectral.intruders, k=3),
        wb.over(family, wb.forgetting.retention, prompts=asked, texts=["3 4 5 6", "7 8 9 3"]),
        wb.over(family, wb.tuco.contribution, prompts={one.name: one for one in asked[:2]}),
        wb.over(family, wb.behaviour.tokens, prompts=[f"3 4 5 {text}" for text in HOSTILE]),
    ]
    lines = [{"item": text, "status": "warn", "found": text, "remedy": text} for text in HOSTILE]
    return wb.report(
        results,
        folder / "page.html",
        title=f"{HOSTILE[0]} {HOSTILE[-1]}",
        preflight=pd.DataFrame(lines),
        notes=HOSTILE,
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("browser") / "profile") as made:
        yield made


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_report_in_a_browser(opened: Tab, page: Path, width: int):
    opened.requests.clear()
    opened.open(page.as_uri(), width)
    assert opened.ask(OVERFLOW) <= 0
    opened.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    drawn(opened)
    text = opened.ask("document.body.innerText")
    assert [one for one in map(visible, HOSTILE) if one not in text] == []
    assert opened.ask("document.images.length") > 4
    assert opened.ask(UNSHOWN) == 0
    assert opened.ask(OVERFLOW) <= 0
    assert opened.told == []
    asked = {url for url in opened.requests if not url.startswith("data:image/webp;base64,")}
    assert asked == {page.as_uri()}


def drawn(tab: Tab) -> None:
    """Wait until every chapter that is open shows its view."""
    packed = "document.querySelectorAll('details.chapter[open] script[data-packed]').length"
    shown = "[...document.querySelectorAll('details.chapter[open] .drawn')]"
    shown += ".filter(one => one.children.length).length"
    for _ in range(200):
        if tab.ask(f"{packed} === {shown}"):
            return
        tab.ask("new Promise(done => setTimeout(done, 50))")
    raise AssertionError("A view was not drawn within ten seconds")


@pytest.fixture
def report(opened: Tab, page: Path) -> Tab:
    """The page as it is opened, on a wide screen."""
    opened.told.clear()
    opened.open(page.as_uri(), WIDE)
    return opened


def chapter(tab: Tab, analysis: str) -> str:
    """JavaScript of a chapter, which is then open and drawn."""
    found = f"document.querySelector('details.chapter[data-name^=\"{analysis}\"]')"
    tab.ask(f"{found}.open = true")
    drawn(tab)
    return found


def test_searching_leaves_the_parts_that_have_the_words(report: Tab):
    parts = "document.querySelectorAll('nav li:not([hidden])').length"
    every = report.ask(parts)
    report.ask(typed("document.getElementById('search')", "intruder nobody-wrote-this"))
    assert report.ask(parts) == 0
    report.ask(typed("document.getElementById('search')", "Intruders by component"))
    assert 0 < report.ask(parts) < every
    shown = "[...document.querySelectorAll('details.chapter')].filter(one => one.checkVisibility())"
    assert report.ask(f"{shown}.every(one => one.textContent.includes('Intruders by component'))")
    report.ask(typed("document.getElementById('search')", ""))
    assert report.ask(parts) == every


def typed(box: str, text: str) -> str:
    """JavaScript that writes `text` into a box as a person would."""
    return f"{box}.value = {json.dumps(text)}, {box}.dispatchEvent(new Event('input'))"


def test_a_model_that_is_switched_off_leaves_views_and_tables(report: Tab):
    found = chapter(report, "forgetting.retention")
    own = json.dumps(HOSTILE[0])
    rows = "[...document.querySelectorAll('[data-member]')].filter("
    rows += f"one => one.dataset.member === {own} && one.checkVisibility()).length"
    marks = f"{found}.querySelectorAll('.drawn svg [aria-roledescription=point]').length"
    before = report.ask(marks)
    assert report.ask(rows) > 0
    assert before > 0
    button = "[...document.querySelectorAll('button[data-toggle]')]"
    button += f".find(one => one.dataset.toggle === {own})"
    report.ask(f"{button}.click()")
    report.ask("new Promise(done => setTimeout(done, 400))")
    assert report.ask(f"{button}.getAttribute('aria-pressed')") == "false"
    assert report.ask(rows) == 0
    assert report.ask(marks) == before / 2
    report.ask(f"{button}.click()")
    report.ask("new Promise(done => setTimeout(done, 400))")
    assert report.ask(marks) == before


def test_hovering_tells_the_value(report: Tab):
    found = chapter(report, "forgetting.retention")
    mark = f"{found}.querySelector('.drawn svg [aria-roledescription=point]')"
    report.ask(f"{mark}.scrollIntoView({{block: 'center'}})")
    x, y = report.ask(
        f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())"
    )
    report.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - 1, y=y)
    report.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    report.ask("new Promise(done => setTimeout(done, 300))")
    assert "95% interval" in report.ask("document.getElementById('vg-tooltip-element').innerText")
    # A name that is markup is text in it.
    assert report.ask("document.querySelectorAll('#vg-tooltip-element img').length") == 0


def test_a_heading_sorts_and_a_box_filters(report: Tab):
    found = chapter(report, "forgetting.retention")
    rows = f"{found}.querySelector('details.everything')"
    report.ask(f"{rows}.open = true")
    report.ask("new Promise(done => setTimeout(done, 400))")
    body = f"{rows}.querySelector('.rows tbody')"
    place = (
        f"[...{rows}.querySelectorAll('thead th')].findIndex(one => one.textContent === 'value')"
    )
    values = (
        f"[...{body}.rows].map(one => one.cells[{place}].textContent).filter(one => one !== '')"
    )
    head = f"{rows}.querySelectorAll('thead th button')[{place}]"
    report.ask(f"{head}.click()")
    up = [float(one) for one in report.ask(values)]
    assert up == sorted(up)
    assert len(set(up)) > 1
    report.ask(f"{head}.click()")
    down = [float(one) for one in report.ask(values)]
    assert down == sorted(down, reverse=True)
    report.ask(typed(f"{rows}.querySelector('input')", "loss_change"))
    assert report.ask(f"[...{body}.rows].every(one => one.textContent.includes('loss_change'))")
    assert report.ask(f"{body}.rows.length") > 0


def test_a_table_is_saved_as_csv(report: Tab, tmp_path: Path, page: Path):
    report.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    found = chapter(report, "forgetting.retention")
    report.ask(f"{found}.querySelector('details.everything').open = true")
    report.ask("new Promise(done => setTimeout(done, 400))")
    report.ask(f"{found}.querySelector('details.everything button.save').click()")
    for _ in range(100):
        report.ask("new Promise(done => setTimeout(done, 50))")
        if made := list(tmp_path.glob("*.csv")):
            break
    saved = pd.read_csv(made[0])
    assert {"member", "metric", "value"} <= set(saved)
    assert set(saved["member"]) == {visible(HOSTILE[0]), visible(HOSTILE[1])}
    assert len(saved) == report.ask(
        f"{found}.querySelector('details.everything [role=status]').textContent.split(' ')[0] * 1"
    )


def test_texts_are_text_and_can_be_searched(report: Tab):
    found = chapter(report, "forgetting.retention")
    show = f"{found}.querySelector('.pickers select')"
    item = f"[...{show}.options].find(one => one.textContent.startsWith('items')).value"
    report.ask(f"{show}.value = {item}, {show}.dispatchEvent(new Event('change'))")
    only = f"{found}.querySelector('.drawn select')"
    if report.ask(f"{only} !== null"):
        report.ask(f"{only}.value = 'all items', {only}.dispatchEvent(new Event('change'))")
    texts = f"[...{found}.querySelectorAll('.texts article')]"
    every = report.ask(f"{texts}.length")
    report.ask(typed(f"{found}.querySelector('.drawn input')", HOSTILE[0]))
    assert 0 < report.ask(f"{texts}.length") < every
    assert report.ask(f"{texts}.every(one => one.innerText.includes({json.dumps(HOSTILE[0])}))")
    assert report.ask(f"{found}.querySelectorAll('.texts script, .texts img').length") == 0


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_page_is_accessible(report: Tab, page: Path, width: int):
    """axe-core finds nothing serious, with every chapter open and drawn."""
    axe = Path(axe_core_python.__file__).parent / "axe.min.js"
    report.open(page.as_uri(), width)
    report.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    drawn(report)
    report.call("Page.setBypassCSP", enabled=True)
    report.ask(axe.read_text(encoding="utf-8") + "; 0")
    found = report.ask(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => "
        "({id: v.id, impact: v.impact, n: v.nodes.length, first: v.nodes[0].html.slice(0, 200)})))"
    )
    assert [one for one in found if one["impact"] in ("serious", "critical")] == []


def test_whatever_opens_or_shows_has_a_name(report: Tab):
    """What axe-core learned to ask after the version that is here."""
    report.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    drawn(report)
    named = "(one.textContent.trim() || one.getAttribute('aria-label') || '')"
    for what in ("summary", "button", "th[scope=row]"):
        all_of = f"[...document.querySelectorAll('{what}')]"
        assert report.ask(f"{all_of}.length") > 0
        assert report.ask(f"{all_of}.filter(one => !{named}).length") == 0
    marks = "document.querySelectorAll('svg [role=graphics-symbol]:not([aria-label])').length"
    assert report.ask(marks) == 0


def test_on_paper_everything_is_unfolded_and_what_needs_a_screen_is_gone(report: Tab):
    report.call("Emulation.setEmulatedMedia", media="print")
    text = report.ask("document.body.innerText")
    seen = "[...document.querySelectorAll({0!r})].filter(one => one.checkVisibility()).length"
    assert report.ask(seen.format("nav")) == 0
    assert report.ask(seen.format(".toggles")) == 0
    assert report.ask(seen.format("figcaption")) == report.ask(
        "document.querySelectorAll('figcaption').length"
    )
    report.call("Emulation.setEmulatedMedia", media="")
    assert "When it misleads" in text


def test_what_must_not_be_there_would_be_seen(opened: Tab, tmp_path: Path):
    """The same questions of a page that has all of it."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<div style='width:3000px'>x</div><img src='missing.png'>"
        "<script>console.log('said'); alert('asked')</script>"
    )
    opened.requests.clear()
    opened.open(bad.as_uri(), NARROW)
    assert opened.ask(OVERFLOW) > 0
    assert opened.ask(UNSHOWN) == 1
    assert opened.ask("document.scripts.length") == 1
    for event in ("Runtime.consoleAPICalled", "Page.javascriptDialogOpening", "Log.entryAdded"):
        assert any(line.startswith(event) for line in opened.told)
    assert any(url.endswith("missing.png") for url in opened.requests)
    opened.told.clear()
